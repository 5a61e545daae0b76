//! The mark of an image that is being written.

use crate::header::set_dirty;
use std::{
    fs::File,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// Says in an image that its reference counts may be wrong. It is set before anything else is
/// written, and cleared when everything else is.
#[derive(Debug)]
pub(crate) struct Mark {
    set: AtomicBool,
    /// None for an image that has no mark, or needs none.
    file: Option<Mutex<File>>,
    durable: bool,
}

impl Mark {
    pub(crate) fn new(file: Option<File>, durable: bool) -> Self {
        Self { set: AtomicBool::new(false), file: file.map(Mutex::new), durable }
    }

    /// Before a write; cheap when it is set.
    pub(crate) fn set(&self) -> io::Result<()> {
        if self.set.load(SeqCst) { Ok(()) } else { self.write(true) }
    }

    /// After all is flushed, while nobody writes.
    pub(crate) fn clear(&self) -> io::Result<()> {
        if self.set.load(SeqCst) { self.write(false) } else { Ok(()) }
    }

    fn write(&self, to: bool) -> io::Result<()> {
        if let Some(file) = &self.file {
            let file = file.lock().unwrap_or_else(PoisonError::into_inner);
            set_dirty(&file, to)?;
            if self.durable {
                file.sync_data()?;
            }
        }
        self.set.store(to, SeqCst);
        Ok(())
    }
}
