//! From a package's name to a guest in the cache.

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufReader},
};

use crate::{
    Cache, Error, Guest, Progress,
    apt::{Apt, Package},
    cache::Made,
    deb,
    modules::{self, Modules},
    root,
};

/// The default guest's kernel: the newest of Debian 12's stock cloud kernels.
pub const DEFAULT_KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";
const BUSYBOX: &str = "busybox-static";
const BUFFER: usize = 256 << 10;

/// Fetches guests into a cache.
#[derive(Debug)]
pub struct Fetcher<'a> {
    pub cache: &'a Cache,
}

impl Fetcher<'_> {
    /// The default guest, from the cache if it is there.
    pub fn default_guest(&self, progress: &mut dyn Progress) -> Result<Guest, Error> {
        self.guest(DEFAULT_KERNEL, progress)
    }

    /// The newest kernel whose package's name fits `pattern`, with a root made for it; from
    /// the cache if the pattern was asked for before.
    pub fn guest(&self, pattern: &str, progress: &mut dyn Progress) -> Result<Guest, Error> {
        match self.cache.find(pattern) {
            Some(guest) => Ok(guest),
            None => self.make(pattern, false, progress),
        }
    }

    /// Fetches the guest again, and replaces the one in the cache only with a whole one.
    pub fn refresh(&self, pattern: &str, progress: &mut dyn Progress) -> Result<Guest, Error> {
        self.make(pattern, true, progress)
    }

    fn make(
        &self,
        pattern: &str,
        again: bool,
        progress: &mut dyn Progress,
    ) -> Result<Guest, Error> {
        let lock = self.cache.lock(progress)?;
        // Another process may have made it while this one waited.
        if !again && let Some(guest) = self.cache.find(pattern) {
            return Ok(guest);
        }
        let staging = lock.staging()?;
        let mut apt = Apt::new(staging.path())?;
        let kernel_package = apt.download(pattern, progress)?;
        let busybox_package = apt.download(BUSYBOX, progress)?;

        progress.step(&format!("unpacking {}", kernel_package.name));
        let kernel = Kernel::unpack(&kernel_package, progress)?;
        let busybox = unpack_busybox(&busybox_package)?;
        progress.step("building the guest's root");
        let selection = kernel
            .modules
            .select(modules::WANTED)
            .map_err(|e| bad(&kernel_package.name, e.to_string()))?;
        let made = Made {
            initrd: root::build(&kernel.release, &busybox, &selection),
            kernel: kernel.image,
            release: kernel.release,
            package: kernel_package.name,
        };
        if progress.cancelled() {
            return Err(Error::Interrupted);
        }
        self.cache.publish(&staging, pattern, &made)
    }
}

/// What is used of a kernel package.
#[derive(Debug)]
struct Kernel {
    image: Vec<u8>,
    release: String,
    modules: Modules,
}

impl Kernel {
    fn unpack(package: &Package, progress: &mut dyn Progress) -> Result<Self, Error> {
        let size = file_size(package)?;
        let mut image = None;
        let mut modules = Modules::default();
        let mut cancelled = false;
        let read = Cell::new(0);
        deb::for_each_file(
            BufReader::with_capacity(BUFFER, Counted { inner: open(package)?, read: &read }),
            |path| path.starts_with("boot/vmlinuz-") || path.contains("lib/modules/"),
            |path, bytes| {
                let permille = read.get().saturating_mul(1000).checked_div(size).unwrap_or(0);
                progress.advance(u16::try_from(permille).unwrap_or(1000));
                if progress.cancelled() {
                    cancelled = true;
                    return Err(io::Error::from(io::ErrorKind::Interrupted));
                }
                if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
                    image = Some((release.to_string(), bytes));
                } else if let Some(inside) = inside_release(&path) {
                    modules.add(inside, bytes);
                }
                Ok(())
            },
        )
        .map_err(|e| {
            if cancelled { Error::Interrupted } else { bad(&package.name, e.to_string()) }
        })?;
        let (release, image) =
            image.ok_or_else(|| bad(&package.name, "it holds no boot/vmlinuz-*".into()))?;
        if !is_release(&release) {
            return Err(bad(&package.name, format!("{release:?} is no kernel release")));
        }
        Ok(Self { image, release, modules })
    }
}

/// `usr/lib/modules/6.1.0/kernel/a.ko` as `kernel/a.ko`.
fn inside_release(path: &str) -> Option<&str> {
    let path = path.strip_prefix("usr/").unwrap_or(path);
    Some(path.strip_prefix("lib/modules/")?.split_once('/')?.1)
}

/// The release names a directory of the root.
fn is_release(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._~".contains(&b))
}

fn unpack_busybox(package: &Package) -> Result<Vec<u8>, Error> {
    let mut busybox = None;
    deb::for_each_file(
        BufReader::with_capacity(BUFFER, open(package)?),
        |path| path == "bin/busybox" || path == "usr/bin/busybox",
        |_, bytes| {
            busybox = Some(bytes);
            Ok(())
        },
    )
    .map_err(|e| bad(&package.name, e.to_string()))?;
    busybox.ok_or_else(|| bad(&package.name, "it holds no bin/busybox".into()))
}

fn open(package: &Package) -> Result<File, Error> {
    File::open(&package.file).map_err(Error::cache("reading", &package.file))
}

fn file_size(package: &Package) -> Result<u64, Error> {
    let data = std::fs::metadata(&package.file);
    Ok(data.map_err(Error::cache("reading", &package.file))?.len())
}

fn bad(package: &str, reason: String) -> Error {
    Error::BadPackage { package: package.into(), reason }
}

/// A reader that tells how far it has come while another holds it.
#[derive(Debug)]
struct Counted<'a> {
    inner: File,
    read: &'a Cell<u64>,
}

impl io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.set(self.read.get().saturating_add(n as u64));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Silent,
        deb::tests::{package, tarball},
    };

    fn on_disk(name: &str, bytes: &[u8]) -> Package {
        let file = std::env::temp_dir().join(format!("sarang-{name}-{}.deb", std::process::id()));
        std::fs::write(&file, bytes).unwrap();
        Package { name: name.into(), file }
    }

    #[test]
    fn a_kernel_package_is_understood() {
        let module = crate::modules::tests::module("depends=");
        let data = tarball(&[
            ("./boot/config-6.1.0-1", b"x"),
            ("./boot/vmlinuz-6.1.0-1", b"kernel"),
            ("./lib/modules/6.1.0-1/kernel/drivers/button.ko", &module),
        ]);
        let package = on_disk("kernel", &package("data.tar", &data));
        let kernel = Kernel::unpack(&package, &mut Silent).unwrap();
        std::fs::remove_file(&package.file).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.image.as_slice()), ("6.1.0-1", &b"kernel"[..]));
        let selection = kernel.modules.select(modules::WANTED).unwrap();
        assert_eq!(selection.dependencies, "kernel/drivers/button.ko:\n");
    }

    #[test]
    fn packages_without_what_is_needed_are_refused() {
        let data = tarball(&[("./usr/share/doc/x", b"x")]);
        let empty = on_disk("empty", &package("data.tar", &data));
        let line = Kernel::unpack(&empty, &mut Silent).unwrap_err().to_string();
        assert!(line.contains("boot/vmlinuz"), "{line}");
        let line = unpack_busybox(&empty).unwrap_err().to_string();
        assert!(line.contains("bin/busybox"), "{line}");
        std::fs::remove_file(&empty.file).unwrap();
        assert!(is_release("6.12.9+bpo-cloud-amd64") && !is_release("../x") && !is_release("6/1"));
    }
}
