//! A file that is booted from.

use boot::Bytes;
use std::{fs::File, io, os::unix::fs::FileExt};

/// A kernel or an initrd. An open file is read at power-on and at each reset, and its bytes
/// are not kept meanwhile: a running guest has no use for them.
#[derive(Debug)]
pub enum Image {
    Memory(Bytes),
    File(File),
}

impl Image {
    pub(crate) fn bytes(&self) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.clone()),
            Self::File(file) => {
                let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(bytes.into())
            }
        }
    }
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes.into())
    }
}

impl From<File> for Image {
    fn from(file: File) -> Self {
        Self::File(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_read_each_time() {
        let path = std::env::temp_dir().join(format!("sarang-image-{}", std::process::id()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"one").unwrap();
        let image = Image::from(file.try_clone().unwrap());
        assert_eq!(image.bytes().unwrap().as_slice(), b"one");
        file.write_all(b", two").unwrap();
        assert_eq!(image.bytes().unwrap().as_slice(), b"one, two");
    }
}
