//! Several instructions in a row, of general registers and flags: what one leaves the next
//! reads.

use crate::{
    Rng,
    case::{CODE_LEN, Mode},
    compare::{self, Undefined},
    generate::{encode, encode::Style, select},
};
use iced_x86::{Code, CpuidFeature, FlowControl, Mnemonic};

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
                && !compare::pushes_part(*code)
        })
        .collect()
}

/// Two to seven instructions, none of which reads a flag that is undefined.
pub fn sequence(rng: &mut Rng, plain: &[Code], mode: Mode) -> Vec<u8> {
    let count = 2 + rng.below(6);
    let mut code = Vec::new();
    let mut undefined = Undefined::default();
    for _ in 0..8 * count {
        let style = Style { registers: !rng.one_in(6), wild: false };
        let Some(bytes) = encode::encode(rng, rng.clone().pick(plain), mode, style) else {
            continue;
        };
        rng.u64();
        let insn = encode::decode(&bytes, mode, 0x1000);
        let target = insn.near_branch_target();
        // Back into the sequence would be a loop.
        let backwards = insn.flow_control() != FlowControl::Next && target < insn.next_ip();
        if !select::allowed(&insn, mode)
            || backwards
            || undefined.read_by(&insn)
            || code.len() + bytes.len() > CODE_LEN
        {
            continue;
        }
        let mut after = undefined;
        after.step(&insn, None);
        if after.values {
            continue;
        }
        undefined = after;
        code.extend(bytes);
        if code.len() >= CODE_LEN - 15 {
            break;
        }
    }
    code
}
