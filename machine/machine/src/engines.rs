//! The engines of this build, by name.

use engine::{Engine, Error};
use engine_kvm::KvmEngine;
use engine_translate::{Translate, Translation, Windowing};
use vm_spec::VmSpec;

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

/// Opens an engine as a VM wants it.
pub fn open_for(kind: Kind, spec: &VmSpec) -> Result<Box<dyn Engine>, Error> {
    match (kind, usize::try_from(spec.code_cache)) {
        (Kind::Translate, Ok(code_cache @ 1..)) => {
            let code_memory = code_cache / spec.cpus.max(1) as usize;
            let windows = if spec.windows { Windowing::Patient } else { Windowing::Off };
            let translation = Translation {
                code_memory,
                perf_map: spec.perf_map,
                windows,
                ..Translation::default()
            };
            Ok(Box::new(Translate::new()?.with_translation(translation)))
        }
        _ => open(kind),
    }
}
