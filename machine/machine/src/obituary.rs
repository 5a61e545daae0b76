//! What a thread of a machine leaves behind if it panics.

use crate::owner::Request;
use std::sync::mpsc::Sender;

/// Tells the owner of a thread that panics: a bug of ours ends the machine with a report, instead
/// of leaving it without that thread.
pub(crate) struct Obituary {
    owner: Sender<Request>,
    text: Option<Request>,
}

impl Obituary {
    /// For the thread that keeps it as long as it lives.
    pub(crate) fn new(owner: Sender<Request>, text: Request) -> Self {
        Self { owner, text: Some(text) }
    }
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(text) = self.text.take()
        {
            // A machine that has ended needs no telling.
            drop(self.owner.send(text));
        }
    }
}
