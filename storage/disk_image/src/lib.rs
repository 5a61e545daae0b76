//! Disk images: qcow2 with backing files, and overlays that are dropped at the end.
//!
//! The formats are imago's. What is here is which files are opened, how they are locked, what is
//! refused before imago sees it ([`HeaderError`]), and the [`Disk`] contract. An image that is
//! written has one user, and its backing files none who writes them.
//!
//! **What survives.** Data are written before the tables that lead to them, in the order of the
//! calls, so that a process that is killed leaves an image with all that was written until the
//! last [`Disk::flush`]. imago does not order the reference counts as well. So an image is marked,
//! by the format's own bit, before it is first written and until [`Disk::close`]; of one that is
//! marked when it is opened, the references are counted anew, as QEMU does. That is also what
//! helps after a crash of the host, whose page cache has its own order.
//!
//! **Discards** give clusters back to the image, which uses them again; its file does not shrink.

mod chain;
mod detect;
mod error;
mod header;
mod mark;
mod overlay;
mod repair;

pub use detect::{Format, Guess, guess};
pub use error::OpenError;
pub use header::{Backing, Header, HeaderError};

use chain::{Image, Opened};
use disk::{Disk, Error, Shape};
use mark::Mark;
use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub read_only: bool,
    /// Without the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// A flush leaves the data to the host's page cache.
    pub unsafe_flush: bool,
    /// Backing files that may be used though they are not in the image's folder.
    pub backing: Vec<PathBuf>,
}

/// An image that is a disk.
pub struct ImageDisk {
    /// Discards need it alone, as they break mappings that others are about to use.
    image: RwLock<Image>,
    shape: Shape,
    unsafe_flush: bool,
    mark: Mark,
    /// imago has failed in a way that leaves what it knows of the image in doubt.
    broken: AtomicBool,
}

impl fmt::Debug for ImageDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageDisk").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl ImageDisk {
    /// Opens and locks an image and its backing files.
    ///
    /// # Errors
    /// If one of them cannot be opened, is in use, or cannot be used.
    pub fn open(path: &Path, format: Format, options: &Options) -> Result<Self, OpenError> {
        let opened = chain::open(path, format, options)?;
        Ok(Self::of(opened, options))
    }

    /// Opens an image for reading, and keeps what is written in a file without a name in
    /// `folder`, which is gone when the disk is.
    ///
    /// # Errors
    /// As [`Self::open`], or if such a file cannot be made.
    pub fn ephemeral(
        path: &Path,
        format: Format,
        options: &Options,
        folder: &Path,
    ) -> Result<Self, OpenError> {
        let below = Options { read_only: true, ..options.clone() };
        let base = chain::open(path, format, &below)?;
        let opened = overlay::over(base.image, folder)?;
        // Nobody will ever read it again.
        let options = Options { read_only: false, unsafe_flush: true, ..options.clone() };
        Ok(Self::of(opened, &options))
    }

    fn of(opened: Opened, options: &Options) -> Self {
        let Opened { image, discards, cluster, mark } = opened;
        // A guest that aligns to more than this gains little.
        let physical_block = u32::try_from(cluster).unwrap_or(4096).clamp(512, 4096);
        let shape = Shape {
            physical_block,
            read_only: options.read_only,
            discard: discards && !options.read_only,
            ..Shape::of_bytes(image.size())
        };
        let unsafe_flush = options.unsafe_flush;
        Self {
            image: RwLock::new(image),
            shape,
            unsafe_flush,
            mark: Mark::new(mark, !unsafe_flush),
            broken: AtomicBool::new(false),
        }
    }

    /// Calls imago. The image's tables are whatever its maker put there; a panic over them ends
    /// the use of the image, not the machine.
    fn attempt(
        &self,
        call: &'static str,
        work: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Io { call, source };
        if self.broken.load(SeqCst) {
            return Err(failed(io::Error::other("the image's tables make no sense")));
        }
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(done) => done.map_err(failed),
            Err(_) => {
                self.broken.store(true, SeqCst);
                Err(failed(io::Error::other("the image's tables make no sense")))
            }
        }
    }

    fn shared(
        &self,
        call: &'static str,
        work: impl FnOnce(&Image) -> io::Result<()>,
    ) -> Result<(), Error> {
        // Whoever panicked with the lock has set `broken`.
        self.attempt(call, || work(&self.image.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn alone(
        &self,
        call: &'static str,
        work: impl FnOnce(&mut Image) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.attempt(call, || work(&mut self.image.write().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Disk for ImageDisk {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.shape.check(offset, data.len() as u64)?;
        self.shared("read", |image| image.read(data, offset))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.shape.check_write(offset, data.len() as u64)?;
        self.shared("write", |image| {
            self.mark.set()?;
            image.write(data, offset)
        })
    }

    fn flush(&self) -> Result<(), Error> {
        if self.shape.read_only {
            return Ok(());
        }
        self.shared("flush", |image| {
            image.flush()?;
            if self.unsafe_flush { Ok(()) } else { image.sync() }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.shape.check_write(offset, len)?;
        if !self.shape.discard || len == 0 {
            return Ok(());
        }
        self.alone("discard", |image| {
            self.mark.set()?;
            image.discard_to_any(offset, len)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.shape.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if unmap && self.shape.discard {
            self.alone("discard", |image| {
                self.mark.set()?;
                image.discard_to_zero(offset, len)
            })
        } else {
            self.shared("write zeroes", |image| {
                self.mark.set()?;
                image.write_zeroes(offset, len)
            })
        }
    }

    fn close(&self) -> Result<(), Error> {
        self.flush()?;
        if self.shape.read_only {
            return Ok(());
        }
        // What was written since is flushed alone.
        self.alone("close", |image| {
            image.flush()?;
            image.sync()?;
            self.mark.clear()
        })
    }
}

impl Drop for ImageDisk {
    fn drop(&mut self) {
        // Who wants to hear of a failure closes it.
        let _ = self.close();
    }
}
