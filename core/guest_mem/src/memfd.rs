//! Memory that others can map again.
#![expect(unsafe_code, reason = "memfd_create has no safe wrapper in std")]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd},
        unix::fs::FileExt,
    },
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

    /// Copies out, wherever it is mapped and whether it is at all: for devices that show or save
    /// memory of their own.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    /// Copies in, without telling the planes of any slot that shows it: see
    /// [`GuestMem::write`](crate::GuestMem::write) for memory that the guest may execute or that
    /// is logged.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    /// Gives pages back to the host; they read as zeroes, wherever they are mapped, and are the
    /// guest's again when they are written.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, flags, offset, len)?)
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
