//! Why a file is no disk.

use crate::header::HeaderError;
use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    File(#[from] disk_raw::OpenError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("it was not closed, so that its reference counts may be wrong")]
    Dirty,
    #[error("repairing it failed: {0}")]
    Repair(io::Error),
    #[error("it has internal snapshots or bitmaps, and can only be read")]
    Extras,
    #[error("it is qcow2 of version 2, and can only be read")]
    Old,
    /// imago refuses it.
    #[error("its tables make no sense: {0}")]
    Damaged(io::Error),
    #[error("an overlay cannot be made in {}: {source}", folder.display())]
    Overlay { folder: PathBuf, source: io::Error },
    #[error("it does not say what format its backing file {0:?} has")]
    BackingFormat(String),
    #[error("its backing file {name:?} has format {format:?}")]
    BackingUnknown { name: String, format: String },
    #[error("its backing file {0:?} is no path of a file")]
    BackingName(String),
    #[error("its backing file {} is not in its folder", .0.display())]
    BackingElsewhere(PathBuf),
    #[error("it has more than {0} backing files")]
    Chain(usize),
    #[error("backing file {}: {source}", file.display())]
    Backing { file: PathBuf, source: Box<OpenError> },
}

impl OpenError {
    pub(crate) fn io(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| disk_raw::OpenError::Io { call, source }.into()
    }

    pub(crate) fn in_backing(self, file: PathBuf) -> Self {
        Self::Backing { file, source: Box::new(self) }
    }

    /// The error itself, whichever file of a chain it concerns.
    pub fn root(&self) -> &Self {
        match self {
            Self::Backing { source, .. } => source.root(),
            other => other,
        }
    }
}
