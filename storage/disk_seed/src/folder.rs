//! The files of a seed, as they are in a folder of the host.

use crate::{BYTES_MAX, File, SeedError};
use std::{fs, io, io::Read, path::Path};

const USER_DATA: &str = "user-data";
const META_DATA: &str = "meta-data";
const OPTIONAL: [&str; 2] = ["network-config", "vendor-data"];

/// Reads the files of a seed. Without `meta-data` the instance is named by the others' content, so
/// that a guest takes changed ones as a new instance's, and does its work again.
///
/// # Errors
/// If there is no `user-data`, or one of the files cannot be read.
pub fn read_folder(folder: &Path) -> Result<Vec<File>, SeedError> {
    let mut left = BYTES_MAX;
    let user_data = read(folder, USER_DATA, &mut left)?.ok_or(SeedError::NoUserData)?;
    let meta_data = read(folder, META_DATA, &mut left)?;
    let mut files = vec![user_data];
    for name in OPTIONAL {
        files.extend(read(folder, name, &mut left)?);
    }
    let meta_data = meta_data.unwrap_or_else(|| named_by(&files));
    files.push(meta_data);
    Ok(files)
}

/// `None` if there is no such file.
fn read(folder: &Path, name: &str, left: &mut usize) -> Result<Option<File>, SeedError> {
    let path = folder.join(name);
    let failed = |source| SeedError::Io { path: path.clone(), source };
    match fs::metadata(&path) {
        Ok(data) if data.is_file() => {}
        Ok(_) => return Err(SeedError::Kind(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The folder itself may be what is missing.
            fs::metadata(folder)
                .map_err(|source| SeedError::Io { path: folder.to_owned(), source })?;
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(&path).map_err(failed)?;
    file.take(*left as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    *left = left.checked_sub(bytes.len()).ok_or(SeedError::TooLarge)?;
    Ok(Some(File { name: name.into(), bytes }))
}

/// FNV-1a of all that is there: it only has to differ when they do.
fn named_by(files: &[File]) -> File {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        for byte in file.name.bytes().chain([0]).chain(file.bytes.iter().copied()).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let text = format!("instance-id: sarang-{hash:016x}\n");
    File { name: META_DATA.into(), bytes: text.into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta_data(files: &[File]) -> String {
        let file = files.iter().find(|file| file.name == META_DATA).unwrap();
        String::from_utf8(file.bytes.clone()).unwrap()
    }

    #[test]
    fn a_folder_becomes_a_seed() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert!(matches!(read_folder(folder.path()), Err(SeedError::NoUserData)));
        put("user-data", "#cloud-config\n");
        put("other", "not read");
        let files = read_folder(folder.path()).unwrap();
        let names: Vec<_> = files.iter().map(|file| &*file.name).collect();
        assert_eq!(names, ["user-data", "meta-data"]);
        let id = meta_data(&files);
        assert!(id.starts_with("instance-id: sarang-"), "{id}");
        assert_eq!(meta_data(&read_folder(folder.path()).unwrap()), id);
        put("network-config", "version: 2\n");
        assert_ne!(meta_data(&read_folder(folder.path()).unwrap()), id);
        put("meta-data", "instance-id: mine\n");
        assert_eq!(meta_data(&read_folder(folder.path()).unwrap()), "instance-id: mine\n");
    }

    #[test]
    fn what_is_no_seed_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = read_folder(&missing).unwrap_err().to_string();
        assert!(error.starts_with(&missing.display().to_string()), "{error}");
        fs::create_dir(folder.path().join("user-data")).unwrap();
        assert!(matches!(read_folder(folder.path()), Err(SeedError::Kind(_))));
        fs::remove_dir(folder.path().join("user-data")).unwrap();
        fs::write(folder.path().join("user-data"), vec![b'x'; BYTES_MAX + 1]).unwrap();
        assert!(matches!(read_folder(folder.path()), Err(SeedError::TooLarge)));
    }
}
