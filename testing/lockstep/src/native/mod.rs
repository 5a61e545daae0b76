//! The host processor as an executor of cases: a confined child process that runs them one
//! after another, each begun by a signal return and ended by a signal.

mod child;
mod confine;
mod process;

pub use child::host_has_fsgsbase;

use crate::case::{Background, Case, Mode, Outcome};
use process::Child;
use std::io;

/// Cases that cross at once.
pub const BATCH: usize = 128;

/// Runs cases on the host processor; starts its process anew when that dies.
#[derive(Debug)]
pub struct Native {
    mode: Mode,
    child: Option<Child>,
    /// Processes that died so far.
    pub deaths: usize,
}

impl Native {
    /// Fails where the kernel does not allow the mode, which may be for want of an LDT.
    pub fn new(mode: Mode) -> io::Result<Self> {
        let mut native = Self { mode, child: Some(Child::start(mode)?), deaths: 0 };
        // A NOP tells whether the mode works here.
        let nothing = Box::new([0; crate::layout::WORDS]);
        match native.run(&nothing, &[Case::new(&[0x90], 0)])?.first() {
            Some(outcome) if outcome.vector == 3 => Ok(native),
            _ => Err(io::Error::other(format!("this host does not execute mode {mode:?}"))),
        }
    }

    /// FS and GS bases can be given: the host offers FSGSBASE.
    pub fn has_bases(&self) -> bool {
        self.mode == Mode::Long && child::host_has_fsgsbase()
    }

    /// Runs each case from `background`. An outcome with [`crate::case::DIED`] killed the
    /// process; its other fields mean nothing.
    pub fn run(&mut self, background: &Background, cases: &[Case]) -> io::Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(cases.len());
        while outcomes.len() < cases.len() {
            let child = match &mut self.child {
                Some(child) => child,
                gone => gone.insert(Child::start(self.mode)?),
            };
            let rest = &cases[outcomes.len()..];
            let rest = &rest[..rest.len().min(BATCH)];
            let done = child.run(background, rest)?;
            let count = done.len();
            outcomes.extend(done);
            if count < rest.len() {
                self.child = None;
                self.deaths += 1;
                outcomes.push(Outcome::new());
            }
        }
        Ok(outcomes)
    }
}
