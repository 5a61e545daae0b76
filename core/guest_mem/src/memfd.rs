//! Memory that others can map again.
#![expect(unsafe_code, reason = "memfd_create has no safe wrapper in std")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd},
    sync::Arc,
};

/// Guest RAM by handle: translator windows, vhost-user and migration map it too.
#[derive(Debug)]
pub struct Memfd(File);

impl Memfd {
    pub fn new(len: u64) -> io::Result<Arc<Self>> {
        // SAFETY: the name is a C string, and the result is checked.
        let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made, and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len)?;
        Ok(Arc::new(Self(file)))
    }

    pub fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
