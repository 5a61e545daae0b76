//! The cache: whole guests or nothing.

use std::{
    env,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Error, Progress};

/// Raised when what is put into a guest's root changes, so that an older one is not used.
const RECIPE: u32 = 9;

const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";
const ABOUT: &str = "about";

/// A guest in the cache, ready to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The kernel's Debian package.
    pub package: String,
    /// What the guest's `uname -r` says.
    pub release: String,
}

/// What [`Cache::entries`] lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    /// `None` for one that this build does not use: made by an older one.
    pub guest: Option<Guest>,
    pub bytes: u64,
}

/// The directory in which fetched guests are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/sarang`, or `~/.cache/sarang`.
    pub fn locate() -> Result<Self, Error> {
        // A relative path there is to be ignored (XDG Base Directory Specification, 0.8).
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .ok_or(Error::NoHome)?;
        Ok(Self::at(base.join("sarang")))
    }

    /// A cache in this directory, which need not exist yet.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The guest made for this pattern, if it is there.
    pub fn find(&self, pattern: &str) -> Option<Guest> {
        read_guest(&self.entry_path(pattern))
    }

    /// Everything that takes room.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let listing = match fs::read_dir(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::cache("reading the cache", &self.root))?,
        };
        let current = format!("guest-{RECIPE}-");
        let mut entries = Vec::new();
        for item in listing.flatten() {
            let path = item.path();
            if !path.is_dir() {
                continue;
            }
            let ours = item.file_name().to_string_lossy().starts_with(&current);
            let guest = if ours { read_guest(&path) } else { None };
            entries.push(Entry { bytes: size_of_tree(&path), guest, path });
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// Removes everything; says how many bytes that were.
    pub fn clear(&self, progress: &mut dyn Progress) -> Result<u64, Error> {
        if !self.root.exists() {
            return Ok(0);
        }
        let _lock = self.lock(progress)?;
        let mut bytes = 0;
        for entry in self.entries()? {
            remove_tree(&entry.path)?;
            bytes += entry.bytes;
        }
        Ok(bytes)
    }

    /// Waits until no other process changes the cache, and clears away what a killed one left.
    pub(crate) fn lock(&self, progress: &mut dyn Progress) -> Result<Lock, Error> {
        fs::create_dir_all(&self.root)
            .map_err(Error::cache("making the cache directory", &self.root))?;
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::cache("locking the cache with", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => {
                    return Err(Error::cache("locking the cache with", &path)(e));
                }
            }
            if !told {
                progress.step("waiting for another sarang that fills the cache");
                told = true;
            }
            if progress.cancelled() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.sweep()?;
        Ok(Lock { root: self.root.clone(), _file: file })
    }

    fn sweep(&self) -> Result<(), Error> {
        for entry in self.entries()? {
            let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("staging-") {
                remove_tree(&entry.path)?;
            }
        }
        Ok(())
    }

    fn entry_path(&self, pattern: &str) -> PathBuf {
        self.root.join(format!("guest-{RECIPE}-{}", file_name(pattern)))
    }

    /// Puts a complete guest in place of the one that may be there.
    pub(crate) fn publish(
        &self,
        staging: &Staging,
        pattern: &str,
        made: &Made,
    ) -> Result<Guest, Error> {
        let fresh = staging.path().join("guest");
        fs::create_dir(&fresh).map_err(Error::cache("making", &fresh))?;
        write_synced(&fresh.join(KERNEL), &made.kernel)?;
        write_synced(&fresh.join(INITRD), &made.initrd)?;
        let about = format!("package={}\nrelease={}\n", made.package, made.release);
        write_synced(&fresh.join(ABOUT), about.as_bytes())?;
        sync_directory(&fresh)?;

        let place = self.entry_path(pattern);
        if place.exists() {
            let old = staging.path().join("replaced");
            fs::rename(&place, &old).map_err(Error::cache("replacing", &place))?;
        }
        fs::rename(&fresh, &place).map_err(Error::cache("writing", &place))?;
        sync_directory(&self.root)?;
        read_guest(&place).ok_or_else(|| {
            Error::cache("reading back", &place)(io::Error::from(io::ErrorKind::NotFound))
        })
    }
}

/// The contents of a guest's directory.
#[derive(Debug)]
pub(crate) struct Made {
    pub kernel: Vec<u8>,
    pub initrd: Vec<u8>,
    pub package: String,
    pub release: String,
}

/// The right to change the cache.
#[derive(Debug)]
pub(crate) struct Lock {
    root: PathBuf,
    _file: File,
}

impl Lock {
    /// A directory to work in, removed when dropped.
    pub(crate) fn staging(&self) -> Result<Staging, Error> {
        let path = self.root.join(format!("staging-{}", std::process::id()));
        fs::create_dir(&path).map_err(Error::cache("making", &path))?;
        Ok(Staging { path })
    }
}

/// A directory in the cache that no reader looks at.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A failure leaves a directory that the next holder of the lock removes.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn read_guest(path: &Path) -> Option<Guest> {
    let about = fs::read_to_string(path.join(ABOUT)).ok()?;
    let field = |name: &str| {
        about.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_string()))
    };
    let guest = Guest {
        kernel: path.join(KERNEL),
        initrd: path.join(INITRD),
        package: field("package")?,
        release: field("release")?,
    };
    (guest.kernel.is_file() && guest.initrd.is_file()).then_some(guest)
}

/// A pattern as a file name: what is not in a package's name becomes `@`, or `_` for a `?`.
fn file_name(pattern: &str) -> String {
    let one = |c: char| match c {
        '?' => '_',
        c if c.is_ascii_alphanumeric() || "+-.".contains(c) => c,
        _ => '@',
    };
    pattern.chars().map(one).collect()
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::cache("writing", path))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::cache("writing", path))
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    fs::remove_dir_all(path).map_err(Error::cache("removing", path))
}

fn size_of_tree(path: &Path) -> u64 {
    let Ok(listing) = fs::read_dir(path) else { return 0 };
    listing
        .flatten()
        .map(|item| match item.metadata() {
            Ok(m) if m.is_dir() => size_of_tree(&item.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    /// A cache in a directory of its own, removed when dropped.
    struct Scratch(Cache);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("sarang-cache-{name}-{}", std::process::id());
            let root = env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&root);
            Self(Cache::at(root))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.root);
        }
    }

    fn made(release: &str) -> Made {
        Made {
            kernel: b"kernel".to_vec(),
            initrd: b"initrd".to_vec(),
            package: format!("linux-image-{release}"),
            release: release.into(),
        }
    }

    #[test]
    fn publishes_finds_replaces_and_clears() {
        let scratch = Scratch::new("publish");
        let cache = &scratch.0;
        assert_eq!(cache.find("linux-*"), None);
        assert_eq!(cache.entries().unwrap(), []);
        for release in ["6.1", "6.2"] {
            let lock = cache.lock(&mut Silent).unwrap();
            let staging = lock.staging().unwrap();
            let guest = cache.publish(&staging, "linux-*", &made(release)).unwrap();
            assert_eq!(guest.release, release);
            drop(staging);
            drop(lock);
            assert_eq!(cache.find("linux-*").unwrap(), guest);
        }
        let entries = cache.entries().unwrap();
        assert_eq!(entries.len(), 1, "no staging directory remains: {entries:?}");
        assert!(entries[0].bytes > 12);
        assert_eq!(cache.clear(&mut Silent).unwrap(), entries[0].bytes);
        assert_eq!(cache.find("linux-*"), None);
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_never_found() {
        let scratch = Scratch::new("sweep");
        let cache = &scratch.0;
        let left = cache.root.join("staging-1");
        fs::create_dir_all(left.join("guest")).unwrap();
        let half = cache.entry_path("half");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join(KERNEL), b"kernel").unwrap();
        assert_eq!(cache.find("half"), None);
        drop(cache.lock(&mut Silent).unwrap());
        assert!(!left.exists());
    }

    #[test]
    fn a_second_process_waits_until_told_to_stop() {
        struct Impatient(bool);
        impl Progress for Impatient {
            fn step(&mut self, text: &str) {
                assert!(text.contains("waiting"));
                self.0 = true;
            }
            fn advance(&mut self, _: u16) {}
            fn cancelled(&self) -> bool {
                self.0
            }
        }
        let scratch = Scratch::new("lock");
        let _held = scratch.0.lock(&mut Silent).unwrap();
        let second = scratch.0.lock(&mut Impatient(false));
        assert!(matches!(second, Err(Error::Interrupted)));
    }

    #[test]
    fn an_impossible_directory_is_named() {
        let cache = Cache::at("/proc/version/sarang".into());
        let line = cache.lock(&mut Silent).unwrap_err().to_string();
        assert!(line.contains("/proc/version/sarang") && line.contains("XDG_CACHE_HOME"), "{line}");
    }
}
