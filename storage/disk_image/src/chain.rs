//! Opening an image and the files that it stands on.
//!
//! An image names its backing file, and whoever made the image chose that name. So a file is
//! followed only into the image's own folder and those below, after symbolic links; others are to
//! be named by who opens the image. The format of a backing file is never guessed.

use crate::{
    Format, OpenError, Options,
    header::{Backing, Header, set_dirty},
    repair::repair,
};
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, file::File as Storage, qcow2::Qcow2,
    raw::Raw,
};
use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Backing files of backing files; a chain that leads to itself is longer.
const DEPTH_MAX: usize = 64;

/// An image with all that it stands on.
pub(crate) type Image = FormatAccess<Storage>;

/// An open image, and what its format can do.
pub(crate) struct Opened {
    pub image: Image,
    pub discards: bool,
    /// Bytes that are allocated together.
    pub cluster: u64,
    /// Where to say that it is not closed.
    pub mark: Option<File>,
}

pub(crate) fn open(path: &Path, format: Format, options: &Options) -> Result<Opened, OpenError> {
    open_at(path, format, options, 0)
}

fn open_at(
    path: &Path,
    format: Format,
    options: &Options,
    depth: usize,
) -> Result<Opened, OpenError> {
    let read_only = options.read_only || depth > 0;
    let file = disk_raw::open_file(path, read_only, options.direct)?;
    match format {
        Format::Raw => {
            disk_raw::size(&file)?;
            let storage = storage(file)?;
            let raw = guarded(|| Raw::builder(storage).write(!read_only).open(deny()))?;
            Ok(Opened { image: FormatAccess::new(raw), discards: true, cluster: 4096, mark: None })
        }
        Format::Qcow2 => open_qcow2(path, file, options, depth),
    }
}

fn open_qcow2(
    path: &Path,
    file: File,
    options: &Options,
    depth: usize,
) -> Result<Opened, OpenError> {
    let read_only = options.read_only || depth > 0;
    // What is not aligned goes by way of the host's page cache. The lock is on the other one.
    let cached = match options.direct {
        true => reopen(path, read_only),
        false => file.try_clone(),
    };
    let cached = cached.map_err(OpenError::io("open"))?;
    let header = Header::read(&cached)?;
    if !read_only {
        make_sound(&cached, &header)?;
    } else if header.dirty {
        return Err(OpenError::Dirty);
    }
    let backing = match &header.backing {
        Some(backing) if depth < DEPTH_MAX => {
            Some(open_backing(path, backing, options, depth)?.image)
        }
        Some(_) => return Err(OpenError::Chain(DEPTH_MAX)),
        None => None,
    };
    let builder = Qcow2::builder(storage(file)?).write(!read_only);
    let qcow2 = guarded(|| builder.backing(backing).data_file(None).open(deny()))?;
    Ok(Opened {
        image: FormatAccess::new(qcow2),
        // Version 2 has no clusters of zeroes.
        discards: header.version > 2,
        cluster: 1 << header.cluster_bits,
        mark: (!read_only).then_some(cached),
    })
}

fn reopen(path: &Path, read_only: bool) -> io::Result<File> {
    File::options().read(true).write(!read_only).open(path)
}

/// An image that is to be written, as imago wants it.
fn make_sound(file: &File, header: &Header) -> Result<(), OpenError> {
    // imago writes the new L1 tables of those before it counts what they share; and version 2
    // cannot say that it was not closed.
    if header.extras {
        return Err(OpenError::Extras);
    }
    if header.version < 3 {
        return Err(OpenError::Old);
    }
    if header.dirty {
        let repaired = repair(file, header).and_then(|()| set_dirty(file, false));
        repaired.and_then(|()| file.sync_data()).map_err(OpenError::Repair)?;
    }
    Ok(())
}

fn open_backing(
    image: &Path,
    backing: &Backing,
    options: &Options,
    depth: usize,
) -> Result<Opened, OpenError> {
    let name = &backing.name;
    let format = match backing.format.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some("raw" | "file" | "host_device") => Format::Raw,
        Some(format) => {
            return Err(OpenError::BackingUnknown { name: name.clone(), format: format.into() });
        }
        None => return Err(OpenError::BackingFormat(name.clone())),
    };
    let path = locate(image, name, &options.backing)?;
    open_at(&path, format, options, depth + 1).map_err(|error| error.in_backing(path))
}

/// Where a backing file is, if it may be used.
fn locate(image: &Path, name: &str, named: &[PathBuf]) -> Result<PathBuf, OpenError> {
    // `nbd://host`, `json:{...}`: what QEMU would take for something else than a path.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(OpenError::BackingName(name.to_owned()));
    }
    let absolute = |path: &Path| path.canonicalize();
    let folder = absolute(image).map_err(OpenError::io("realpath"))?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let path = folder.join(name);
    let real = absolute(&path).map_err(|error| OpenError::io("open")(error).in_backing(path))?;
    let allowed = real.starts_with(folder)
        || named.iter().any(|named| absolute(named).is_ok_and(|named| named == real));
    if allowed { Ok(real) } else { Err(OpenError::BackingElsewhere(real)) }
}

pub(crate) fn storage(file: File) -> Result<Storage, OpenError> {
    Storage::try_from(file).map_err(OpenError::io("stat"))
}

/// Nothing is opened but what is opened here.
pub(crate) fn deny() -> DenyImplicitOpenGate {
    DenyImplicitOpenGate::default()
}

/// imago on tables that nobody has checked yet: should it panic, the image is to blame.
pub(crate) fn guarded<T>(open: impl FnOnce() -> io::Result<T>) -> Result<T, OpenError> {
    let opened = catch_unwind(AssertUnwindSafe(open));
    let opened = opened.unwrap_or_else(|_| Err(io::Error::other("they lead outside")));
    opened.map_err(OpenError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn backing_files_are_near_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("here"), folder.path().join("there"));
        fs::create_dir_all(here.join("below")).unwrap();
        fs::create_dir(&there).unwrap();
        let image = here.join("image.qcow2");
        for file in [&image, &here.join("base"), &here.join("below/base"), &there.join("base")] {
            fs::write(file, "x").unwrap();
        }
        symlink(there.join("base"), here.join("link")).unwrap();
        let find = |name: &str, named: &[PathBuf]| locate(&image, name, named);
        assert_eq!(find("base", &[]).unwrap(), here.canonicalize().unwrap().join("base"));
        assert!(find("below/base", &[]).is_ok() && find("./below/../base", &[]).is_ok());
        assert!(find(&here.join("base").to_string_lossy(), &[]).is_ok());
        for name in ["../there/base", "link", "/etc/passwd"] {
            assert!(matches!(find(name, &[]), Err(OpenError::BackingElsewhere(_))), "{name}");
        }
        assert!(find("link", &[there.join("base")]).is_ok(), "whoever names it may");
        assert!(find("/etc/passwd", &[there.join("base")]).is_err());
        for name in ["nbd://localhost/x", "json:{}", "file:/etc/passwd", "http://x"] {
            assert!(matches!(find(name, &[]), Err(OpenError::BackingName(_))), "{name}");
        }
        assert!(find("nowhere", &[]).unwrap_err().to_string().contains("nowhere"));
    }
}
