//! Several instructions in a row, of general registers and flags: what one leaves the next
//! reads.

use crate::{
    Rng,
    case::{CODE_LEN, Mode},
    defined::{self, Undefined},
    generate::{encode, encode::Style, select},
};
use iced_x86::{Code, CpuidFeature, FlowControl, Mnemonic, OpCodeOperandKind, OpKind};

/// Those of `codes` that sequences are made of.
pub fn plain(codes: &[Code]) -> Vec<Code> {
    use CpuidFeature::*;
    let general = |feature: &CpuidFeature| {
        matches!(
            feature,
            INTEL8086
                | INTEL186
                | INTEL386
                | INTEL486
                | X64
                | CMOV
                | BMI1
                | BMI2
                | ADX
                | POPCNT
                | LZCNT
                | MOVBE
        )
    };
    codes
        .iter()
        .copied()
        .filter(|code| {
            let flow = code.flow_control();
            code.cpuid_features().iter().all(general)
                && matches!(flow, FlowControl::Next | FlowControl::ConditionalBranch)
                && !code.op_code().is_privileged()
                // A wild RFLAGS or stack pointer ends most sequences at once.
                && !matches!(code.mnemonic(), Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq)
                && !matches!(code.mnemonic(), Mnemonic::Leave | Mnemonic::Enter)
                && !defined::pushes_part(*code)
        })
        .collect()
}

/// Two to seven instructions, none of which reads a flag that is undefined.
pub fn sequence(rng: &mut Rng, plain: &[Code], mode: Mode) -> Vec<u8> {
    let count = 2 + rng.below(6);
    let mut all: Vec<Vec<u8>> = Vec::new();
    let mut undefined = Undefined::default();
    for _ in 0..8 * count {
        let style = Style { registers: !rng.one_in(6), wild: false };
        let code = rng.pick(plain);
        let Some(bytes) = encode::encode(rng, code, mode, style) else {
            continue;
        };
        let insn = encode::decode(&bytes, mode, 0x1000);
        // What such an iteration that does not happen leaves differs.
        let vague = mode == Mode::Long && insn.is_string_instruction() && bytes.contains(&0x67);
        if !select::allowed(&insn, mode) || vague || undefined.read_by(&insn) {
            continue;
        }
        let mut after = undefined;
        after.step(&insn, None);
        if after.values {
            continue;
        }
        undefined = after;
        all.push(bytes);
        let len: usize = all.iter().map(Vec::len).sum();
        if all.len() >= count || len + 15 > CODE_LEN {
            break;
        }
    }
    join(rng, all, mode)
}

/// Branches go forward to an instruction, or to the end.
fn join(rng: &mut Rng, mut all: Vec<Vec<u8>>, mode: Mode) -> Vec<u8> {
    for n in 0..all.len() {
        let insn = encode::decode(&all[n], mode, 0x1000);
        if insn.flow_control() == FlowControl::Next {
            continue;
        }
        let skipped = rng.below(all.len() - n);
        let distance: usize = all[n + 1..n + 1 + skipped].iter().map(Vec::len).sum();
        let len = all[n].len();
        // Leaves 16 bits of the instruction pointer: out of the code.
        if insn.op0_kind() == OpKind::NearBranch16 && !mode.segmented() {
            continue;
        }
        let size = match insn.code().op_code().op0_kind() {
            OpCodeOperandKind::br32_4 | OpCodeOperandKind::br64_4 => 4,
            OpCodeOperandKind::br16_2 => 2,
            _ => 1,
        };
        all[n][len - size..].copy_from_slice(&distance.to_le_bytes()[..size]);
    }
    all.concat()
}
