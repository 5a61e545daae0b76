//! One case: instructions and the state they start from; and what came out of it.
//!
//! Both are plain integers throughout, so that they can cross to the native process through
//! shared memory whatever it writes there.

use crate::layout::{CODE, WORDS};
use vcpu_state::FpuState;
use x86_defs::xsave;

/// Which code segment the instructions run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// 64-bit mode.
    Long,
    /// Compatibility mode with 32-bit defaults and flat segments.
    Compat,
    /// Compatibility mode with 16-bit code and stack, and segments that have bases and limits.
    Seg16,
    /// The same with 32-bit code and stack.
    Seg32,
}

impl Mode {
    pub const ALL: [Self; 4] = [Self::Long, Self::Compat, Self::Seg16, Self::Seg32];

    pub fn bitness(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Compat | Self::Seg32 => 32,
            Self::Seg16 => 16,
        }
    }

    /// General registers that the mode has.
    pub fn registers(self) -> usize {
        match self {
            Self::Long => 16,
            _ => 8,
        }
    }

    /// Segments are not flat.
    pub fn segmented(self) -> bool {
        matches!(self, Self::Seg16 | Self::Seg32)
    }
}

/// Bytes of instructions at most.
pub const CODE_LEN: usize = 96;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Case {
    /// A standard XSAVE area: x87, SSE, AVX.
    pub fpu: [u8; xsave::LEN],
    pub gpr: [u64; 16],
    pub rflags: u64,
    /// In 64-bit mode. (In compatibility mode FS is flat and GS is null.)
    pub fs_base: u64,
    pub gs_base: u64,
    pub code: [u8; CODE_LEN],
    pub code_len: u32,
    /// Where in [`CODE`] the code begins; what passes its end is cut off.
    pub at: u32,
}

impl Case {
    pub fn new(code: &[u8], at: u32) -> Self {
        let mut bytes = [0; CODE_LEN];
        let len = code.len().min(CODE_LEN);
        bytes[..len].copy_from_slice(&code[..len]);
        Self {
            fpu: FpuState::init().area,
            gpr: [0; 16],
            rflags: 0x202,
            fs_base: 0,
            gs_base: 0,
            code: bytes,
            code_len: len as u32,
            at,
        }
    }

    /// The instruction pointer: an offset in the code segment.
    pub fn rip(&self, mode: Mode) -> u64 {
        let base = if mode.segmented() { 0 } else { CODE.linear };
        base + u64::from(self.at)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.code[..(self.code_len as usize).min(CODE_LEN)]
    }

    /// What of [`Self::bytes`] lies in the code area.
    pub fn mapped_bytes(&self) -> &[u8] {
        let room = CODE.len().saturating_sub(self.at as usize);
        let bytes = self.bytes();
        &bytes[..bytes.len().min(room)]
    }

    pub fn fpu(&self) -> FpuState {
        FpuState { area: self.fpu }
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("code", &format_args!("{:02x?}", self.bytes()))
            .field("at", &self.at)
            .field("gpr", &format_args!("{:x?}", self.gpr))
            .field("rflags", &format_args!("{:#x}", self.rflags))
            .finish_non_exhaustive()
    }
}

/// A word of memory that differs from the background.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Written {
    /// Index of the 64-bit word in [`crate::layout::AREAS`].
    pub word: u64,
    pub value: u64,
}

/// Written words that an outcome can hold; more are counted and not kept.
pub const WRITTEN: usize = 512;

/// How a case ended that no exception ended.
pub const TIMED_OUT: u32 = 0x100;
/// The process died.
pub const DIED: u32 = 0x101;
/// The engine ended otherwise than by an exception.
pub const ENGINE: u32 = 0x102;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Outcome {
    pub fpu: [u8; xsave::LEN],
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// Of the exception that ended the case (3: it ran to its end), or [`TIMED_OUT`] and so on.
    pub vector: u32,
    pub error: u32,
    /// Of a page fault.
    pub cr2: u64,
    pub written_count: u32,
    pub written: [Written; WRITTEN],
}

impl Outcome {
    pub fn new() -> Self {
        Self {
            fpu: [0; xsave::LEN],
            gpr: [0; 16],
            rip: 0,
            rflags: 0,
            fs_base: 0,
            gs_base: 0,
            vector: DIED,
            error: 0,
            cr2: 0,
            written_count: 0,
            written: [Written::default(); WRITTEN],
        }
    }

    pub fn written(&self) -> &[Written] {
        &self.written[..(self.written_count as usize).min(WRITTEN)]
    }

    pub fn fpu(&self) -> FpuState {
        FpuState { area: self.fpu }
    }

    /// Notes that `word` is now `value`.
    pub fn push(&mut self, word: usize, value: u64) {
        if let Some(slot) = self.written.get_mut(self.written_count as usize) {
            *slot = Written { word: word as u64, value };
        }
        self.written_count = self.written_count.saturating_add(1);
    }
}

impl Default for Outcome {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome")
            .field("vector", &self.vector)
            .field("error", &format_args!("{:#x}", self.error))
            .field("cr2", &format_args!("{:#x}", self.cr2))
            .field("rip", &format_args!("{:#x}", self.rip))
            .field("rflags", &format_args!("{:#x}", self.rflags))
            .field("gpr", &format_args!("{:x?}", self.gpr))
            .field("written", &self.written())
            .finish_non_exhaustive()
    }
}

/// What the data and stack areas hold before each case of a batch.
pub type Background = [u64; WORDS];
