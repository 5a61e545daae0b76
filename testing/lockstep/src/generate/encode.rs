//! Machine code for a given [`Code`], with prefixes, registers and addressing forms at random.

use crate::{Rng, case::Mode, generate::values};
use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix, OpCodeInfo,
    OpCodeOperandKind, OpCodeTableKind,
};

/// What an instruction may look like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Register operands only, where there is the choice.
    pub registers: bool,
    /// Prefixes that the instruction does not need, LOCK where it is not allowed.
    pub wild: bool,
}

/// Bytes that decode to `code`, if some are found.
pub fn encode(rng: &mut Rng, code: Code, mode: Mode, style: Style) -> Option<Vec<u8>> {
    for _ in 0..60 {
        let info = code.op_code();
        let mut bytes = Vec::with_capacity(32);
        match info.encoding() {
            EncodingKind::Legacy => legacy(rng, info, mode, style, &mut bytes),
            _ => vex(rng, info, mode, style, &mut bytes),
        }
        let insn = decode(&bytes, mode, 0);
        if insn.code() == code {
            bytes.truncate(insn.len());
            return Some(bytes);
        }
    }
    None
}

pub fn decode(bytes: &[u8], mode: Mode, rip: u64) -> Instruction {
    Decoder::with_ip(mode.bitness(), bytes, rip, DecoderOptions::NONE).decode()
}

/// The segment-override prefixes; CS, SS, DS and ES have no effect in 64-bit mode.
const SEGMENTS: [u8; 6] = [0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e];

fn legacy(rng: &mut Rng, info: &OpCodeInfo, mode: Mode, style: Style, out: &mut Vec<u8>) {
    let wild = |rng: &mut Rng, n| style.wild && rng.one_in(n);
    let mut prefixes = Vec::new();
    if rng.one_in(10) {
        prefixes.push(rng.pick(&SEGMENTS));
    }
    let default_address = mode.bitness();
    let address_differs =
        !matches!(info.address_size(), 0) && info.address_size() != default_address;
    if address_differs || rng.one_in(16) {
        prefixes.push(0x67);
    }
    let size = info.operand_size();
    let other = if mode == Mode::Seg16 { 32 } else { 16 };
    if size == other || info.mandatory_prefix() == MandatoryPrefix::P66 || wild(rng, 8) {
        prefixes.push(0x66);
    }
    match info.mandatory_prefix() {
        MandatoryPrefix::PF3 => prefixes.push(0xf3),
        MandatoryPrefix::PF2 => prefixes.push(0xf2),
        MandatoryPrefix::None if info.can_use_rep_prefix() && rng.one_in(2) => {
            prefixes.push(rng.pick(&[0xf2, 0xf3]));
        }
        MandatoryPrefix::None if wild(rng, 12) => prefixes.push(rng.pick(&[0xf2, 0xf3])),
        _ => {}
    }
    if info.can_use_lock_prefix() && rng.one_in(3) || wild(rng, 40) {
        prefixes.push(0xf0);
    }
    while !prefixes.is_empty() {
        out.push(prefixes.swap_remove(rng.below(prefixes.len())));
    }
    if mode == Mode::Long {
        let rex = if rng.one_in(2) { 0x40 | rng.u8() & 7 } else { 0 };
        let wide = size == 64 && !info.default_op_size64() && !info.force_op_size64();
        let wide = if wide || info.w() == 1 || wild(rng, 8) { 0x48 } else { 0 };
        if rex | wide != 0 {
            out.push(rex | wide);
        }
    }
    match info.table() {
        OpCodeTableKind::T0F => out.push(0x0f),
        OpCodeTableKind::T0F38 => out.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => out.extend([0x0f, 0x3a]),
        _ => {}
    }
    opcode(rng, info, out);
    operands(rng, info, mode, style, out);
}

fn opcode(rng: &mut Rng, info: &OpCodeInfo, out: &mut Vec<u8>) {
    use OpCodeOperandKind::{r8_opcode, r16_opcode, r32_opcode, r64_opcode, sti_opcode};
    let mut opcode = info.op_code();
    let in_opcode = [r8_opcode, r16_opcode, r32_opcode, r64_opcode, sti_opcode];
    if info.op_kinds().iter().any(|kind| in_opcode.contains(kind)) {
        opcode = opcode & !7 | u32::from(rng.u8() & 7);
    }
    if info.op_code_len() == 2 {
        out.push((opcode >> 8) as u8);
    }
    out.push(opcode as u8);
}

/// ModRM, SIB, displacement, immediates: more than any instruction takes.
fn operands(rng: &mut Rng, info: &OpCodeInfo, mode: Mode, style: Style, out: &mut Vec<u8>) {
    let mut modrm = rng.u8();
    if style.registers || rng.one_in(4) {
        modrm |= 0xc0;
    }
    if info.group_index() >= 0 {
        modrm = modrm & 0xc7 | (info.group_index() as u8 & 7) << 3;
    }
    if info.rm_group_index() >= 0 {
        modrm = modrm & 0xf8 | info.rm_group_index() as u8 & 7 | 0xc0;
    }
    let has_modrm = info.is_group() || info.is_rm_group() || info.op_kinds().iter().any(by_modrm);
    if has_modrm {
        out.push(modrm);
        if modrm < 0xc0 && modrm & 7 == 4 && mode != Mode::Seg16 {
            out.push(rng.u8());
        }
        match modrm >> 6 {
            1 => out.push(values::integer(rng) as u8),
            2 if mode == Mode::Seg16 => out.extend((values::integer(rng) as u16).to_le_bytes()),
            2 => out.extend((values::integer(rng) as u32).to_le_bytes()),
            _ => {}
        }
    }
    out.extend(values::integer(rng).to_le_bytes());
    out.extend(rng.u64().to_le_bytes());
}

fn by_modrm(kind: &OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    !matches!(
        *kind,
        None | r8_opcode
            | r16_opcode
            | r32_opcode
            | r64_opcode
            | sti_opcode
            | es
            | cs
            | ss
            | ds
            | fs
            | gs
            | al
            | cl
            | ax
            | dx
            | eax
            | rax
            | st0
            | imm8
            | imm8_const_1
            | imm8sex16
            | imm8sex32
            | imm8sex64
            | imm16
            | imm32
            | imm32sex64
            | imm64
            | seg_rSI
            | es_rDI
            | seg_rDI
            | seg_rBX_al
            | br16_1
            | br32_1
            | br64_1
            | br16_2
            | br32_4
            | br64_4
            | mem_offs
            | farbr2_2
            | farbr4_2
    )
}

fn vex(rng: &mut Rng, info: &OpCodeInfo, mode: Mode, style: Style, out: &mut Vec<u8>) {
    if rng.one_in(10) {
        out.push(rng.pick(&SEGMENTS));
    }
    if rng.one_in(16) {
        out.push(0x67);
    }
    if style.wild && rng.one_in(60) {
        out.push(rng.pick(&[0x66, 0xf2, 0xf3, 0xf0]));
    }
    let map = match info.table() {
        OpCodeTableKind::T0F => 1,
        OpCodeTableKind::T0F38 => 2,
        _ => 3,
    };
    let pp = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let ignored_w = info.is_wig() || mode != Mode::Long && info.is_wig32();
    let w = if ignored_w { rng.u8() & 1 } else { info.w() as u8 & 1 };
    let l = if info.is_lig() { rng.u8() & 1 } else { info.l() as u8 & 1 };
    let vvvv = if rng.one_in(2) { 0xf } else { rng.u8() & 0xf };
    // Inverted R, X, B. Outside 64-bit mode R and X set tell VEX from LES and LDS.
    let (rxb, vvvv) = match mode {
        Mode::Long => (rng.u8() & 7, vvvv),
        _ => (6 | rng.u8() & 1, vvvv | 8),
    };
    let last = vvvv << 3 | l << 2 | pp;
    if map == 1 && w == 0 && rxb & 3 == 3 && rng.one_in(2) {
        out.extend([0xc5, rxb >> 2 << 7 | last]);
    } else {
        out.extend([0xc4, rxb << 5 | map, w << 7 | last]);
    }
    opcode(rng, info, out);
    operands(rng, info, mode, style, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::select;

    /// A template that no longer matches its instruction would silently drop it.
    #[test]
    fn nearly_every_allowed_code_is_encoded() {
        for mode in Mode::ALL {
            let mut rng = Rng::new(1);
            let codes = select::codes(mode);
            let missed: Vec<Code> = codes
                .iter()
                .copied()
                .filter(|&code| {
                    (0..8).all(|_| encode(&mut rng, code, mode, Style::default()).is_none())
                })
                .collect();
            println!("{mode:?}: {} codes, not encoded: {missed:?}", codes.len());
            assert!(missed.len() * 100 <= codes.len(), "{missed:?}");
        }
    }
}
