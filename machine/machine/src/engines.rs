//! The engines of this build, by name.

use engine::{Engine, Error};
use engine_kvm::KvmEngine;
use engine_translate::Translate;

/// Which engine executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kvm,
    Translate,
}

/// Opens an engine, or says what this host lacks for it.
pub fn open(kind: Kind) -> Result<Box<dyn Engine>, Error> {
    Ok(match kind {
        Kind::Kvm => Box::new(KvmEngine::open()?),
        Kind::Translate => Box::new(Translate::new()?),
    })
}
