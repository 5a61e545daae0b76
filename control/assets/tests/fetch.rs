//! Fetching from Debian's mirrors: needs the network, so run with `--ignored`.

use std::{fs, path::PathBuf};

use assets::{Cache, DEFAULT_KERNEL, Fetcher, Progress, Silent};

/// A new cache, or with `SARANG_TEST_CACHE` one that is kept.
fn cache(name: &str) -> (Cache, Option<PathBuf>) {
    match std::env::var_os("SARANG_TEST_CACHE") {
        Some(kept) => (Cache::at(kept.into()), None),
        None => {
            let root =
                std::env::temp_dir().join(format!("sarang-fetch-{name}-{}", std::process::id()));
            (Cache::at(root.clone()), Some(root))
        }
    }
}

fn fetch(name: &str, pattern: &str, release_prefix: &str) {
    let (cache, scratch) = cache(name);
    let fetcher = Fetcher { cache: &cache };
    let guest = fetcher.guest(pattern, &mut Silent).unwrap();
    assert!(guest.release.starts_with(release_prefix), "{guest:?}");
    let kernel = fs::read(&guest.kernel).unwrap();
    // The setup header's signature (Linux, Documentation/arch/x86/boot.rst).
    assert_eq!(&kernel[0x202..0x206], b"HdrS");
    let initrd = fs::read(&guest.initrd).unwrap();
    assert!(initrd.starts_with(b"070701"));
    assert!(initrd.len() < 8 << 20, "a small root, not {} bytes", initrd.len());
    for module in ["virtio_blk.ko", "button.ko", "evdev.ko"] {
        let found = initrd.windows(module.len()).any(|w| w == module.as_bytes());
        assert!(found, "{module} is in the root");
    }
    assert_eq!(fetcher.guest(pattern, &mut Silent).unwrap(), guest, "found again");
    assert_eq!(cache.entries().unwrap().iter().filter(|e| e.guest.is_none()).count(), 0);
    if let Some(root) = scratch {
        fs::remove_dir_all(root).unwrap();
    }
}

#[test]
#[ignore = "needs the network"]
fn the_default_guest() {
    fetch("default", DEFAULT_KERNEL, "6.1.0-");
}

#[test]
#[ignore = "needs the network"]
fn a_kernel_from_backports() {
    fetch("backports", "linux-image-6.12*-cloud-amd64", "6.12.");
}

#[test]
#[ignore = "needs the network"]
fn stopping_leaves_nothing() {
    /// Stops at the first sign of a download's progress.
    struct Stop(bool);
    impl Progress for Stop {
        fn step(&mut self, _: &str) {}
        fn advance(&mut self, _: u16) {
            self.0 = true;
        }
        fn cancelled(&self) -> bool {
            self.0
        }
    }
    let root = std::env::temp_dir().join(format!("sarang-fetch-stop-{}", std::process::id()));
    let cache = Cache::at(root.clone());
    let stopped = Fetcher { cache: &cache }.default_guest(&mut Stop(false));
    assert!(matches!(stopped, Err(assets::Error::Interrupted)), "{stopped:?}");
    assert_eq!(cache.entries().unwrap(), []);
    fs::remove_dir_all(root).unwrap();
}
