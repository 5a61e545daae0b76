//! The contract between a disk device and what stores its blocks.
//!
//! A device (virtio-blk, AHCI) holds an `Arc<dyn Disk>` and calls it from as many threads as it
//! has queues; what stores the blocks (a file, an image format, a server, a mirror of others)
//! implements it. Calls block until they are done: each comes from a thread that has nothing
//! else to do. Two calls that overlap in time and in place have no order.

use std::io;

/// The unit of capacities and addresses of most interfaces to disks.
pub const SECTOR: u64 = 512;

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Capacity in bytes, a multiple of `logical_block`.
    pub bytes: u64,
    /// What a guest addresses: 512, or a larger power of two.
    pub logical_block: u32,
    /// What is written without reading around it: a power of two, at least `logical_block`.
    pub physical_block: u32,
    pub read_only: bool,
    /// [`Disk::discard`] gives storage back.
    pub discard: bool,
}

impl Shape {
    /// A writable disk of 512-byte blocks.
    pub fn of_bytes(bytes: u64) -> Self {
        let block = SECTOR as u32;
        Self {
            bytes,
            logical_block: block,
            physical_block: block,
            read_only: false,
            discard: false,
        }
    }

    /// Whether `len` bytes from `offset` on are inside the disk.
    pub fn check(&self, offset: u64, len: u64) -> Result<(), Error> {
        let end = offset.checked_add(len).filter(|end| *end <= self.bytes);
        end.map(|_| ()).ok_or(Error::OutOfRange { offset, len })
    }

    /// The same, and that it may be written.
    pub fn check_write(&self, offset: u64, len: u64) -> Result<(), Error> {
        if self.read_only { Err(Error::ReadOnly) } else { self.check(offset, len) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{len} bytes at {offset} are not inside the disk")]
    OutOfRange { offset: u64, len: u64 },
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("the disk cannot {0}")]
    Unsupported(&'static str),
    #[error("{call} failed")]
    Io { call: &'static str, source: io::Error },
}

/// What stores a disk's blocks. Offsets and lengths are in bytes and need no alignment, unless
/// a disk says otherwise.
pub trait Disk: Send + Sync {
    /// Fixed while the disk is open.
    fn shape(&self) -> Shape;

    /// Fills `data`.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error>;

    /// Writes all of `data`. It is durable after the next [`Self::flush`].
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error>;

    /// What was written before this is called is on stable storage when it returns.
    fn flush(&self) -> Result<(), Error>;

    /// Flushes, and leaves what stores the blocks as whoever opens it next wants to find it. To be
    /// called when the disk's user is done with it; it may still be used.
    fn close(&self) -> Result<(), Error> {
        self.flush()
    }

    /// Nobody needs these bytes any more: they read as what they were, or as zeroes.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.shape().check_write(offset, len)
    }

    /// These bytes read as zeroes from now on. With `unmap` their storage may be given back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error>;
}

/// Writes zeroes by writing them: for disks that have no better way.
pub fn write_zeroes_plainly(
    disk: &(impl Disk + ?Sized),
    offset: u64,
    len: u64,
) -> Result<(), Error> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    disk.shape().check_write(offset, len)?;
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let here = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROES.len());
        disk.write(at, &ZEROES[..here])?;
        at += here as u64;
    }
    Ok(())
}

/// A disk in memory, for the tests of devices.
#[derive(Debug)]
pub struct Memory {
    shape: Shape,
    bytes: std::sync::Mutex<Vec<u8>>,
    flushes: std::sync::atomic::AtomicU64,
}

impl Memory {
    /// Of zeroes.
    pub fn new(shape: Shape) -> Self {
        let bytes = vec![0; usize::try_from(shape.bytes).unwrap_or(0)];
        Self { shape, bytes: bytes.into(), flushes: 0.into() }
    }

    /// How often it was flushed.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn with<T>(
        &self,
        offset: u64,
        len: usize,
        work: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        self.shape.check(offset, len as u64)?;
        let mut bytes = self.bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = offset as usize;
        Ok(work(&mut bytes[at..at + len]))
    }
}

impl Disk for Memory {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.with(offset, data.len(), |bytes| data.copy_from_slice(bytes))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.shape.check_write(offset, data.len() as u64)?;
        self.with(offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn flush(&self) -> Result<(), Error> {
        self.flushes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> Result<(), Error> {
        write_zeroes_plainly(self, offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_inside_is_refused() {
        let shape = Shape::of_bytes(4096);
        assert!(shape.check(0, 4096).is_ok() && shape.check(4096, 0).is_ok());
        for (offset, len) in [(0, 4097), (4096, 1), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            assert!(shape.check(offset, len).is_err(), "{offset} {len}");
        }
        let read_only = Shape { read_only: true, ..shape };
        assert!(matches!(read_only.check_write(0, 1), Err(Error::ReadOnly)));
    }

    #[test]
    fn zeroes_are_written_where_they_belong() {
        let disk = Memory::new(Shape::of_bytes(256 << 10));
        disk.write(0, &vec![0xee; 256 << 10]).unwrap();
        disk.write_zeroes(1000, 150_000, false).unwrap();
        let mut bytes = vec![0; 256 << 10];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes[..1000].iter().all(|b| *b == 0xee));
        assert!(bytes[1000..151_000].iter().all(|b| *b == 0));
        assert!(bytes[151_000..].iter().all(|b| *b == 0xee));
        assert!(disk.write_zeroes(200 << 10, 100 << 10, false).is_err());
    }
}
