//! The semantics of x86 instructions, written once.
//!
//! An instruction is decoded by `iced-x86`, given a [`Handler`] by [`select()`], and executed
//! on a [`Cpu`] through a [`Ctx`]. A handler that returns `Err(Stop::Fault)` has changed
//! nothing architectural, but for the completed iterations of a REP.

pub mod code_pages;
pub mod cpu;
mod cpuid;
pub mod ctx;
pub mod event;
mod far;
pub mod features;
pub mod flags;
pub mod insn;
mod int_alu;
mod int_bcd;
mod int_bits;
mod int_branch;
mod int_flags;
mod int_io;
mod int_mov;
mod int_muldiv;
mod int_shift;
mod int_stack;
mod int_string;
pub mod mem;
mod msr;
pub mod operand;
mod quiet;
mod ring3;
mod seg;
pub mod select;
pub mod sync;
pub mod sys_call;
mod sys_cr;
mod sys_flags;
mod sys_iret;
mod sys_select;
mod sys_table;
mod sys_time;
mod sys_v86;
mod task;
pub mod vec;
mod vec_gather;
mod vec_state;

pub use cpu::{CodeSize, Cpu, Mode};
pub use ctx::{Ctx, Stop};
pub use flags::Flags;
pub use insn::{Cold, Handler, Insn};
pub use select::{ends_block, select};
