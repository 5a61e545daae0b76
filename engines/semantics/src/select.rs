//! From a decoded instruction to its handler and hot operands.

mod integer;
mod operands;

use crate::{CodeSize, Cold, Handler, Insn, features::IsaFeatures, insn::prefix, int_io};
use emit::StubCache;
use iced_x86::{Instruction, Mnemonic};

/// What handlers were found for, and which operand forms they have.
pub(crate) struct Picker<'i> {
    pub iced: &'i Instruction,
    pub size: CodeSize,
    pub insn: Insn,
}

/// A handler, and whether it reads [`Insn::iced`].
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    pub handler: Handler,
    pub cold: bool,
}

pub(crate) fn hot(handler: Handler) -> Option<Pick> {
    Some(Pick { handler, cold: false })
}

pub(crate) fn cold(handler: Handler) -> Option<Pick> {
    Some(Pick { handler, cold: true })
}

/// The executable form of an instruction that `iced-x86` has decoded in code of this size. What
/// is not defined, here or for this guest, gets a handler that raises #UD.
///
/// `bytes` are those that it was decoded from.
pub fn select(
    iced: &Instruction,
    bytes: &[u8],
    size: CodeSize,
    features: IsaFeatures,
    stubs: &StubCache,
) -> Insn {
    let insn = Insn {
        handler: int_io::undefined,
        len: iced.len() as u8,
        asize: match size {
            CodeSize::Bits16 => 2,
            CodeSize::Bits32 => 4,
            CodeSize::Bits64 => 8,
        },
        prefix: prefixes(iced),
        ..crate::insn::too_long()
    };
    let mut picker = Picker { iced, size, insn };
    if iced.is_invalid() || (!features.allow(iced) && !plain_without(iced)) {
        return picker.insn;
    }
    picker.memory_operand();
    let pick =
        picker.integer(features).or_else(|| crate::sys_select::select_system(iced).and_then(cold));
    let mut insn = picker.insn;
    if let Some(pick) = pick {
        insn.handler = pick.handler;
        if pick.cold {
            insn.cold = Some(Box::new(Cold { iced: *iced, stub: None, fop: 0 }));
        }
    } else if let Some(vector) = crate::vec::select_vector(iced, bytes, stubs) {
        insn.handler = vector.handler;
        insn.cold = Some(Box::new(Cold { iced: *iced, stub: vector.stub, fop: vector.fop }));
    }
    insn
}

/// LZCNT and TZCNT are BSR and BSF where they do not exist.
fn plain_without(iced: &Instruction) -> bool {
    matches!(iced.mnemonic(), Mnemonic::Lzcnt | Mnemonic::Tzcnt)
}

fn prefixes(iced: &Instruction) -> u8 {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    bit(iced.has_lock_prefix(), prefix::LOCK)
        | bit(iced.has_rep_prefix() || iced.has_repe_prefix(), prefix::REP)
        | bit(iced.has_repne_prefix(), prefix::REPNE)
}

/// The instruction ends a block: what follows it in memory does not follow it in time. A
/// conditional branch does not: its handler says when it is taken.
pub fn ends_block(iced: &Instruction) -> bool {
    use iced_x86::FlowControl::*;
    iced.is_invalid() || !matches!(iced.flow_control(), Next | ConditionalBranch)
}
