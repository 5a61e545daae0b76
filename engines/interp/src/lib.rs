//! The reference interpreter: decode cache and run loop over `semantics`.
//!
//! Code is decoded into blocks, which are kept by guest-physical address and mode, so that all
//! address spaces share them. A block runs to its end unless an instruction faults or asks to
//! leave; between blocks the vCPU looks whether another thread wants something of it, and
//! between blocks alone it takes interrupts.

mod boundary;
mod cache;
mod checked;
mod counters;
mod decode;
mod fetch;
mod run;
mod templates;
mod translated;
mod trap;

pub use cache::Cache;
pub use run::Interp;
