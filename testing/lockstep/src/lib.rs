//! Differential tests: the host processor against the interpreter.
//!
//! A [`Case`] is a few instructions and a state. [`native`] runs it on the host processor, in
//! a confined child process.

mod case;
pub mod layout;
pub mod native;
mod rng;

pub use case::{
    Background, CODE_LEN, Case, DIED, ENGINE, Mode, Outcome, TIMED_OUT, WRITTEN, Written,
};
pub use native::Native;
pub use rng::Rng;
