//! Two engines, one machine: a whole boot under the interpreter, and the same boot under the
//! translator, compared after every few thousand instructions.
//!
//! The first vCPU leads. It runs on a [`board`] whose time is the number of retired
//! instructions, and everything that crosses the seam is written down. The second has memory
//! of its own and no board: it is given the same answers, and has to ask the same questions in
//! the same order ([`record`]). After each piece both have the same registers and have written
//! the same memory ([`pair`]), or [`find`] looks for the first instruction after which they
//! have not.

mod board;
mod find;
mod memory;
mod pair;
mod record;
mod side;
mod undefined;

pub use find::Found;
pub use pair::{Counts, End, Pair, Plan};

/// What a machine starts from.
#[derive(Clone, Debug)]
pub struct Start {
    /// A bzImage or an ELF file.
    pub kernel: Vec<u8>,
    pub initrd: Option<Vec<u8>>,
    pub command_line: String,
    /// Bytes of RAM, at most 3 GiB.
    pub memory: u64,
}

pub type Error = Box<dyn std::error::Error + Send + Sync>;
