//! Guest basic blocks to host code, with an inline check of a software TLB.
//!
//! The interpreter decodes blocks and counts how often they run; a hot one comes here. Its
//! instructions are copied, with other registers, into host code that runs beside the
//! interpreter's state: see [`regs`](crate) and `docs/translator.md`. Whatever is not copied,
//! and every access that filling the TLB does not settle, is executed by the instruction's own
//! handler in the middle of the block, so that faults, devices and code that changes are the
//! interpreter's matter.

mod asm;
mod callout;
mod counters;
mod far;
mod forms;
mod jumps;
mod kept;
mod levels;
mod light;
mod lower;
mod native;
mod perf_map;
mod probe;
mod recover;
mod region;
mod regs;
mod segments;
mod sites;
mod source;
mod spaces;
mod state;
mod table;
mod thunks;
mod tlb;
mod translator;
mod vectors;
mod width;
mod windows;

pub use lower::{Check, immediate};
pub use perf_map::PerfMap;
pub use sites::Intercept;
pub use source::Source;
pub use table::{Code, Link};
pub use translator::{Left, Translator};
pub use width::Width;
pub use windows::Windowing;
