//! Differential tests: the host processor against the interpreter, and the interpreter against
//! the translator.
//!
//! [`boots`] runs whole guests in two engines. For the rest, a [`Case`] is a few instructions and a state. [`native`] runs it on the host processor, in
//! a confined child process.

pub mod boots;
mod case;
mod compare;
mod defined;
pub mod generate;
mod guest;
pub mod layout;
mod minimise;
pub mod native;
mod oracle;
mod rng;
mod segments;
mod text;
mod vendor;
mod warm;

pub use case::{
    Background, CODE_LEN, Case, DIED, ENGINE, Mode, Outcome, TIMED_OUT, WRITTEN, Written,
};
pub use compare::{Verdict, compare};
pub use generate::Generator;
pub use guest::Guest;
pub use native::Native;
pub use oracle::{Difference, Oracle, Spoil, Tally};
pub use rng::Rng;
pub use text::Kept;
pub use vendor::is_amd;

/// Everything is translated at its first execution, in little memory.
pub fn at_once() -> engine_translate::Translation {
    let windows = engine_translate::Windowing::Eager;
    let all = engine_translate::Translation::default();
    engine_translate::Translation { code_memory: 1 << 20, hot: 0, windows, ..all }
}
