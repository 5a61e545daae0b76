//! Host code: executable memory, and stubs that run one instruction on the host's own units.
//!
//! Vector and floating-point instructions are not interpreted: a stub loads the registers that
//! the instruction uses from the guest's state, executes the instruction itself, and stores what
//! it changed. Its memory operand is a buffer, so a stub cannot fault.
//!
//! # Use
//!
//! Once per decoded instruction, [`StubCache::compile`] gives a [`Stub`] to keep beside it.
//! [`Unsupported`] means that the instruction is not on the allow-list or that the host lacks it.
//!
//! Each time it executes, with [`Stub::properties`] at hand:
//!
//! 1. Raise #UD and #NM as [`Unit`] says, from CR0, CR4 and XCR0. (Whether the guest's CPUID
//!    offers the extension is for the decoder's user to check, once.)
//! 2. If there is a memory operand: check [`MemoryUse::alignment`] against the linear address
//!    (#GP), read the operand into an [`Operand`] if it is read, and probe it for writing if it
//!    is written, so that the store below cannot fault. (An x87 store pops the stack.)
//! 3. [`Stub::run`], and see [`Outcome`] for exceptions: nothing was changed if there is one, but
//!    for MXCSR's flags.
//! 4. If the operand is written and the outcome is [`Outcome::Done`], write it to memory.
//! 5. If `x87_pointers`: [`x87::record`].
//!
//! ```
//! use emit::{Operand, Outcome, StubCache};
//! use iced_x86::{Decoder, DecoderOptions};
//! use vcpu_state::FpuState;
//!
//! let cache = StubCache::new()?;
//! // addsd xmm3, [rbx+8]
//! let bytes = [0xf2, 0x0f, 0x58, 0x5b, 0x08];
//! let insn = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
//! let stub = cache.compile(&insn)?;
//!
//! let (mut fpu, mut gpr, mut rflags) = (FpuState::init(), [0u64; 16], 2u64);
//! fpu.set_xmm(3, u128::from(1.5f64.to_bits()));
//! let mut operand = Operand::new();
//! let memory = stub.properties().memory.ok_or("addsd has a memory operand")?;
//! assert_eq!((memory.size, memory.read, memory.write), (8, true, false));
//! // Read from guest memory:
//! operand.0[..8].copy_from_slice(&2.25f64.to_le_bytes());
//! assert_eq!(stub.run(&mut fpu, &mut gpr, &mut rflags, &mut operand), Outcome::Done);
//! assert_eq!(f64::from_bits(fpu.xmm(3) as u64), 3.75);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What has no stub
//!
//! In software here: FLDENV, FNSTENV, FRSTOR and FNSAVE ([`x87_env`]), the gathers ([`gather`]),
//! masked moves and MASKMOVDQU ([`masked_move`]), LDMXCSR, VZEROUPPER and VZEROALL
//! ([`sse_control`]). The caller's own: STMXCSR, FXSAVE, FXRSTOR and the XSAVE family
//! (whoever loads FCW and FSW calls [`x87::load_control`]), prefetches and fences.

mod allow;
mod cache;
mod code_memory;
pub mod gather;
mod host;
mod lanes;
pub mod masked_move;
mod properties;
pub mod sse_control;
mod stub;
mod stub_code;
#[cfg(test)]
mod sweep;
pub mod x87;
pub mod x87_env;

pub use cache::{DEFAULT_LEN, StubCache};
pub use code_memory::{CodeMemory, serialize};
pub use properties::{MemoryUse, Properties, Unit};
pub use stub::{Operand, Outcome, Stub};

/// Why an instruction has no stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// It is not on the allow-list.
    #[error("the instruction is not one that may run on the host")]
    NotListed,
    /// The host's processor or operating system lacks its extension.
    #[error("the host lacks the instruction's extension")]
    Host,
    /// It has no encoding in 64-bit mode with these operands.
    #[error("the instruction cannot be encoded for the host")]
    Encoding,
}
