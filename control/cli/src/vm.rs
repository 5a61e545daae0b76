//! The machine, as this command uses it.

use std::{io::Write, sync::Arc, time::Instant};

use byte_stream::{Input, Output};
use vm_spec::VmSpec;

use crate::{Failure, engines::Engine, guest::Files, monitor::Control};

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the machine that tells these is not part of this build yet")]
pub enum Ended {
    PoweredOff,
    GuestPanicked,
    DebugExit(u32),
    TripleFault(String),
    Quit,
    Failed(String),
}

/// A machine and its threads.
pub struct Running {
    control: Arc<dyn Control>,
    input: Arc<dyn Input>,
}

impl Running {
    /// Builds it, not running yet.
    pub fn build(
        _spec: &VmSpec,
        engine: Engine,
        _files: Files,
        _console: Arc<dyn Output>,
        _trace: Option<Box<dyn Write + Send>>,
    ) -> Result<Self, Failure> {
        Err(Failure::host(format!(
            "engine {}: this build has no machine to run guests on; build a later version",
            engine.name()
        )))
    }

    pub fn control(&self) -> Arc<dyn Control> {
        self.control.clone()
    }

    pub fn input(&self) -> Arc<dyn Input> {
        self.input.clone()
    }

    pub fn start(&self, _spec: &VmSpec) -> Result<(), Failure> {
        Ok(())
    }

    /// How it ended; `None` if the deadline passes first.
    pub fn wait(&self, _deadline: Option<Instant>) -> Option<Ended> {
        None
    }
}
