//! Why a guest could not be had: each variant is one line with the remedy.

use std::{io, path::Path, path::PathBuf};

const OWN_KERNEL: &str = "or give a kernel and a root with --kernel FILE --initrd FILE";

/// Why a guest could not be fetched, unpacked or cached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package mirrors cannot be reached.
    #[error(
        "fetching {package}: the package mirror cannot be reached ({detail}); connect to the network, {OWN_KERNEL}"
    )]
    Offline { package: String, detail: String },

    /// The host has no `apt-get`.
    #[error(
        "fetching {package}: this host has no apt-get, so Debian's packages cannot be pulled; give a kernel and a root with --kernel FILE --initrd FILE"
    )]
    NoApt { package: String },

    /// No package source offers it.
    #[error(
        "fetching {package}: no package source of this host offers it; add a Debian 12 source to apt, {OWN_KERNEL}"
    )]
    NoPackage { package: String },

    /// The package client failed for another reason.
    #[error(
        "fetching {package}: apt-get failed ({detail}); see whether `apt-get download {package}` works, {OWN_KERNEL}"
    )]
    Apt { package: String, detail: String },

    /// A package is not what it should be.
    #[error("unpacking {package}: {reason}; run `sarang cache clear` and try again, {OWN_KERNEL}")]
    BadPackage { package: String, reason: String },

    /// The name of a package cannot be one.
    #[error(
        "package pattern {pattern:?}: not the name of a Debian package; give a name such as linux-image-6.1.0-*-cloud-amd64"
    )]
    BadPattern { pattern: String },

    /// The cache cannot be read or written.
    #[error("{action} {}: {}; {}", path.display(), describe(source), remedy(source))]
    Cache { action: &'static str, path: PathBuf, source: io::Error },

    /// There is no place for a cache.
    #[error(
        "finding the cache: neither XDG_CACHE_HOME nor HOME is set to an absolute path; set one of them"
    )]
    NoHome,

    /// The operator asked to stop.
    #[error("fetching the guest: interrupted; nothing is kept, run it again")]
    Interrupted,
}

impl Error {
    pub(crate) fn cache(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Cache { action, path, source }
    }
}

/// The operating system's word for it, without the number.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free about 100 MB there, or set XDG_CACHE_HOME to a directory with room"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make the directory writable, or set XDG_CACHE_HOME to one that is"
        }
        _ => "set XDG_CACHE_HOME to a directory that can be written",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_one_line_with_a_remedy() {
        let package = || "linux-image-cloud-amd64".to_string();
        for error in [
            Error::Offline { package: package(), detail: "no route".into() },
            Error::NoApt { package: package() },
            Error::NoPackage { package: package() },
            Error::Apt { package: package(), detail: "E: held".into() },
            Error::BadPackage { package: package(), reason: "cut short".into() },
            Error::BadPattern { pattern: "a\nb".into() },
            Error::cache("writing", Path::new("/x"))(io::Error::from_raw_os_error(28)),
            Error::NoHome,
            Error::Interrupted,
        ] {
            let line = error.to_string();
            assert!(line.contains("; ") && !line.contains('\n'), "{line:?}");
        }
    }

    #[test]
    fn a_full_disk_is_called_so() {
        let line = Error::cache("writing", Path::new("/x"))(io::Error::from_raw_os_error(28));
        assert_eq!(
            line.to_string(),
            "writing /x: No space left on device; free about 100 MB there, or set XDG_CACHE_HOME \
             to a directory with room"
        );
    }
}
