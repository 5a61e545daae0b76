//! Kernels and roots of guests other than the default one.

use assets::{Cache, Fetcher, Guest, Silent};

/// Debian's 6.12 cloud kernel, from backports: a ZSTD bzImage.
pub const KERNEL_6_12: &str = "linux-image-6.12*-cloud-amd64";

/// Debian's 6.12 kernel for all PCs, with drivers for what real ones have, which the cloud kernels
/// lack.
pub const KERNEL_FULL: &str = "linux-image-6.12.*+deb12-amd64";

/// Debian's 6.1 kernel for all PCs.
pub const KERNEL_6_1_FULL: &str = "linux-image-6.1.0-??-amd64";

/// The guest of this kernel package, fetched if the cache has it not. `None`, with a line that
/// says so, when it cannot be had here; where the tests must be whole (`CI=true`), that is a
/// failure.
///
/// # Panics
/// With `CI=true` in the environment, when the guest cannot be had.
pub fn guest_files(pattern: &str) -> Option<Guest> {
    let fetched =
        Cache::locate().and_then(|cache| Fetcher { cache: &cache }.guest(pattern, &mut Silent));
    match fetched {
        Ok(guest) => Some(guest),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "{pattern}: {why}");
            eprintln!("skipped: {pattern} cannot be had here: {why}");
            None
        }
    }
}
