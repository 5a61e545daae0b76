//! The semantics of x86 instructions, written once.
//!
//! An instruction is decoded by `iced-x86`, given a [`Handler`] by [`select()`], and executed
//! on a [`Cpu`] through a [`Ctx`]. A handler that returns `Err(Stop::Fault)` has changed
//! nothing architectural, but for the completed iterations of a REP.

pub mod cpu;
pub mod ctx;
pub mod flags;
pub mod insn;
pub mod mem;
pub mod sync;
pub mod vec;
mod vec_gather;
mod vec_state;

pub use cpu::{CodeSize, Cpu, Mode};
pub use ctx::{Ctx, Stop};
pub use flags::Flags;
pub use insn::{Cold, Handler, Insn};
