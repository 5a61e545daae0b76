//! The state that a case starts from: registers with edges in them, and addresses that mostly
//! hit memory.

use crate::{
    Rng,
    case::{Background, CODE_LEN, Case, Mode},
    generate::{
        encode,
        values::{self, extended, integer, vector},
    },
    layout::{self, CODE, DATA, READ_ONLY, STACK},
    segments,
};
use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
    UsedMemory,
};
use vcpu_state::SegReg;
use x86_defs::{gpr, rflags, xsave};

/// A case of these instructions, with a state that suits the first ones.
pub fn case(rng: &mut Rng, mode: Mode, code: &[u8], bases: bool, background: &Background) -> Case {
    let len = code.len().min(CODE_LEN);
    let at = match rng.below(30) {
        // Over the page boundary, or into the absent page.
        0 => layout::PAGE - 1 - rng.below(16),
        1 => CODE.len() - 1 - rng.below(16),
        _ => rng.below(CODE.len() - CODE_LEN),
    };
    let mut case = Case::new(&code[..len], at as u32);
    registers(rng, mode, &mut case);
    if bases {
        case.fs_base = base(rng);
        case.gs_base = base(rng);
    }
    fpu(rng, &mut case);
    aim(rng, mode, &mut case, background);
    if mode != Mode::Long {
        for value in &mut case.gpr {
            *value &= 0xffff_ffff;
        }
        case.gpr[8..].fill(0);
    }
    case
}

/// Mostly where an address made from it can still be in the data area.
fn base(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => 0,
        1 => (integer(rng) as i64 >> 17) as u64,
        2 => DATA.linear,
        _ => rng.below(1 << 28) as u64 & !0xf,
    }
}

fn registers(rng: &mut Rng, mode: Mode, case: &mut Case) {
    for value in &mut case.gpr {
        *value = match rng.below(8) {
            0 => values::address(rng),
            _ => integer(rng),
        };
    }
    if !rng.one_in(40) {
        case.gpr[gpr::RSP] = match rng.below(12) {
            0 => STACK.linear + rng.below(STACK.len()) as u64,
            1 => STACK.linear + rng.below(20) as u64,
            2 => STACK.end() - rng.below(20) as u64,
            3 => STACK.linear + layout::PAGE as u64 + rng.below(16) as u64 - 8,
            _ => STACK.linear + 512 + 8 * rng.below(800) as u64,
        };
    }
    if mode.segmented() {
        case.gpr[gpr::RSP] = case.gpr[gpr::RSP].wrapping_sub(STACK.linear);
        for value in &mut case.gpr {
            // Offsets rather than linear addresses.
            if rng.one_in(3) {
                *value &= 0x3fff;
            }
        }
        if mode == Mode::Seg16 && rng.one_in(2) {
            // Not used, and to be kept.
            case.gpr[gpr::RSP] |= rng.u64() << 16;
        }
    }
    let mut flags = rng.u64() & rflags::STATUS;
    if rng.one_in(3) {
        flags |= rflags::DF;
    }
    if rng.one_in(40) {
        flags |= rflags::AC;
    }
    case.rflags = flags | rflags::FIXED | rflags::IF;
    if mode == Mode::Long && rng.one_in(8) {
        // Registers with equal values.
        let value = rng.pick(&case.gpr);
        case.gpr[rng.pick(&[0, 1, 2, 3, 6, 7, 8, 12])] = value;
    }
}

fn fpu(rng: &mut Rng, case: &mut Case) {
    let mut fpu = case.fpu();
    for n in 0..8 {
        let value = match rng.below(4) {
            // MMX leaves the exponent all ones.
            0 => 0xffff << 64 | u128::from(integer(rng)),
            _ => extended(rng),
        };
        fpu.area[xsave::ST + 16 * n..][..16].copy_from_slice(&value.to_le_bytes());
    }
    fpu.area[xsave::FTW] = match rng.below(4) {
        0 => rng.u8(),
        1 => 0,
        _ => 0xff,
    };
    let control = match rng.below(4) {
        0 => rng.u64() as u16 & 0xf3f | 0x40,
        1 => 0x7f | rng.u64() as u16 & 0xf00,
        _ => xsave::FCW_RESET,
    };
    let mut status = rng.u64() as u16 & 0x7f00;
    if rng.one_in(6) {
        status |= rng.u64() as u16 & 0x7f;
    }
    // ES and B summarise the unmasked exceptions (SDM volume 1, 8.1.3.3).
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    fpu.set_u16(xsave::FCW, control);
    fpu.set_u16(xsave::FSW, status);
    let mxcsr = match rng.below(4) {
        0 => rng.u64() as u32 & xsave::MXCSR_MASK_VALUE,
        1 => xsave::MXCSR_RESET | rng.u64() as u32 & xsave::MXCSR_MASK_VALUE,
        _ => xsave::MXCSR_RESET,
    };
    fpu.set_u32(xsave::MXCSR, mxcsr);
    for n in 0..16 {
        fpu.set_xmm(n, vector(rng));
        fpu.set_ymm_hi(n, vector(rng));
    }
    case.fpu = fpu.area;
}

/// Gives registers and displacements values with which memory operands lie where something is.
fn aim(rng: &mut Rng, mode: Mode, case: &mut Case, background: &Background) {
    let mut factory = InstructionInfoFactory::new();
    let mut taken = [false; 16];
    let mut offset = 0;
    while offset < case.bytes().len() {
        let insn = encode::decode(&case.bytes()[offset..], mode, case.rip(mode) + offset as u64);
        if insn.is_invalid() {
            break;
        }
        particulars(rng, mode, case, &insn);
        let memory: Vec<UsedMemory> = factory.info(&insn).used_memory().to_vec();
        for used in &memory {
            let target = target(rng, mode, &insn, used);
            solve(rng, mode, case, offset, used, target, &mut taken);
            if insn.mnemonic() == Mnemonic::Cmpxchg
                || insn.mnemonic() == Mnemonic::Cmpxchg8b
                || insn.mnemonic() == Mnemonic::Cmpxchg16b
            {
                make_equal(rng, case, &insn, target, background);
            }
        }
        offset += insn.len();
    }
}

/// Where the operand shall be.
fn target(rng: &mut Rng, mode: Mode, insn: &Instruction, used: &UsedMemory) -> u64 {
    let size = match insn.mnemonic() {
        Mnemonic::Xsave | Mnemonic::Xsave64 => 832,
        _ => (used.memory_size().size() as u64).clamp(1, 512),
    };
    // A locked access across cache lines locks the bus: kernels slow down who does that.
    if insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg {
        let at = if rng.one_in(12) { READ_ONLY.linear } else { DATA.linear };
        return at + rng.below(layout::PAGE / 16) as u64 * 16;
    }
    if mode.segmented() && used.segment() == Register::SS && !rng.one_in(12) {
        return match rng.below(6) {
            0 => STACK.end() - rng.below(size as usize + 2) as u64,
            1 => STACK.linear + layout::PAGE as u64 - rng.below(size as usize + 1) as u64,
            _ => STACK.linear + rng.below(STACK.len() - size as usize) as u64,
        };
    }
    let within = |rng: &mut Rng, step: u64| {
        DATA.linear + rng.below(((DATA.len() as u64 - size) / step) as usize) as u64 * step
    };
    let edge = |rng: &mut Rng, at: u64| at.wrapping_sub(rng.below(size as usize + 1) as u64);
    match rng.below(40) {
        0..20 => within(rng, size.next_power_of_two().min(64)),
        20..29 => within(rng, 1),
        29..32 => edge(rng, DATA.linear + layout::PAGE as u64),
        32 => edge(rng, READ_ONLY.linear),
        33 => READ_ONLY.linear + rng.below(layout::PAGE - size as usize) as u64,
        34 => edge(rng, READ_ONLY.end()),
        35 => edge(rng, DATA.linear),
        36 => STACK.linear + rng.below(STACK.len() - size as usize) as u64,
        37 => CODE.linear + rng.below(CODE.len() - size as usize) as u64,
        38 => edge(rng, STACK.end()),
        _ => match rng.below(4) {
            0 => integer(rng),
            1 => 0x7fff_ffff_ffff + rng.below(2) as u64,
            2 => 1 << 47 | rng.u64() >> 20,
            _ => rng.u64() >> 32,
        },
    }
}

/// What the segment's base is, unless it is the case's.
pub fn segment_base(mode: Mode, register: Register) -> u64 {
    let which = match register {
        Register::ES => SegReg::Es,
        Register::CS => SegReg::Cs,
        Register::SS => SegReg::Ss,
        Register::FS => SegReg::Fs,
        Register::GS => SegReg::Gs,
        _ => SegReg::Ds,
    };
    segments::base(mode, which)
}

fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}

/// Makes `used` mean `target`, by the base register, else the index, else the displacement.
fn solve(
    rng: &mut Rng,
    mode: Mode,
    case: &mut Case,
    offset: usize,
    used: &UsedMemory,
    target: u64,
    taken: &mut [bool; 16],
) {
    let base = number(used.base());
    let index = number(used.index());
    let scale = u64::from(used.scale());
    let segment = match used.segment() {
        Register::FS if mode == Mode::Long => case.fs_base,
        Register::GS if mode == Mode::Long => case.gs_base,
        other => segment_base(mode, other),
    };
    let wanted = target.wrapping_sub(segment).wrapping_sub(used.displacement());
    if used.vsib_size() != 0 {
        // Elements near the base, with now and then one far away.
        let far = rng.one_in(10);
        let n = used.index().number();
        let mut small = || {
            let lane = |rng: &mut Rng| u128::from((rng.below(256) as i32 - 128) as u32);
            match used.vsib_size() {
                4 => (0..4).fold(0, |v, _| v << 32 | lane(rng)),
                _ => (0..2).fold(0, |v, _| v << 64 | (rng.below(256) as i64 - 128) as u64 as u128),
            }
        };
        let (low, high) = (small(), small());
        if !far {
            let mut fpu = case.fpu();
            fpu.set_xmm(n, low);
            fpu.set_ymm_hi(n, high);
            case.fpu = fpu.area;
        }
    }
    let of = |case: &Case, n: Option<usize>| n.map_or(0, |n| case.gpr[n]);
    match (base, index) {
        (Some(b), i) if b != gpr::RSP && !taken[b] => {
            taken[b] = true;
            if i == Some(b) {
                case.gpr[b] = wanted / (scale + 1);
                return;
            }
            if mode == Mode::Long && rng.one_in(2) && i.is_some_and(|i| !taken[i]) {
                // An index of any size would do; small ones are what programs have.
                case.gpr[i.unwrap_or(0)] = rng.below(512) as u64;
            }
            if let Some(i) = i {
                taken[i] = true;
            }
            case.gpr[b] = wanted.wrapping_sub(of(case, i).wrapping_mul(scale));
        }
        (b, Some(i)) if !taken[i] => {
            taken[i] = true;
            case.gpr[i] = wanted.wrapping_sub(of(case, b)) / scale.max(1);
        }
        (None, None) => displace(mode, case, offset, wanted.wrapping_add(used.displacement())),
        _ => {}
    }
}

/// Writes `address` into the instruction, whose operand has no register.
fn displace(mode: Mode, case: &mut Case, offset: usize, address: u64) {
    let ip = case.rip(mode) + offset as u64;
    let bytes = &case.bytes()[offset..];
    let mut decoder = Decoder::with_ip(mode.bitness(), bytes, ip, DecoderOptions::NONE);
    let insn = decoder.decode();
    let constants = decoder.get_constant_offsets(&insn);
    let has_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    if !constants.has_displacement() || !has_memory {
        return;
    }
    let value = if insn.is_ip_rel_memory_operand() {
        address.wrapping_sub(insn.next_ip())
    } else {
        address
    };
    let at = offset + constants.displacement_offset();
    let size = constants.displacement_size().min(8);
    if let Some(to) = case.code.get_mut(at..at + size) {
        to.copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// Values without which an instruction would nearly always do the same.
fn particulars(rng: &mut Rng, mode: Mode, case: &mut Case, insn: &Instruction) {
    use Mnemonic::*;
    let flat = !mode.segmented();
    let (code, stack) = if flat { (CODE.linear, STACK.linear) } else { (0, 0) };
    let prefixed = insn.has_rep_prefix() || insn.has_repne_prefix();
    match insn.mnemonic() {
        Div | Idiv if !rng.one_in(4) => {
            let low = case.gpr[gpr::RAX];
            case.gpr[gpr::RDX] = match rng.below(3) {
                0 => 0,
                1 => (low as i64 >> 63) as u64,
                _ => rng.below(16) as u64,
            };
            if rng.one_in(2) {
                case.gpr[gpr::RAX] &= !0xff00 | rng.u64() & 0x300;
            }
        }
        Bt | Bts | Btr | Btc if insn.op0_kind() == OpKind::Memory => {
            // The bit offset reaches beyond the operand.
            if let Some(n) = number(insn.op1_register()) {
                case.gpr[n] = (rng.below(4096) as i64 - 2048) as u64;
            }
        }
        Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz if rng.one_in(2) => {
            case.gpr[gpr::RCX] = rng.pick(&[0, 1, 2, 1 << 32, 1 << 16]);
        }
        Jmp | Call if rng.one_in(2) => {
            if let Some(n) = number(insn.op0_register()) {
                case.gpr[n] = code + rng.below(CODE.len() + 8) as u64;
            }
        }
        Pcmpestri | Pcmpestrm | Pcmpestri64 | Pcmpestrm64 | Vpcmpestri | Vpcmpestrm
        | Vpcmpestri64 | Vpcmpestrm64 => {
            case.gpr[gpr::RAX] = (rng.below(40) as i64 - 20) as u64;
            case.gpr[gpr::RDX] = (rng.below(40) as i64 - 20) as u64;
        }
        Xsave | Xsave64 => {
            // What the host has beyond AVX is not the guest's.
            case.gpr[gpr::RAX] = rng.u64() & 7;
            case.gpr[gpr::RDX] = 0;
        }
        Enter => case.gpr[gpr::RBP] = stack + rng.below(STACK.len()) as u64,
        Leave => case.gpr[gpr::RBP] = stack + 8 * rng.below(STACK.len() / 8) as u64,
        _ => {}
    }
    if insn.is_string_instruction() && prefixed {
        let high = if rng.one_in(8) { rng.u64() << 32 } else { 0 };
        case.gpr[gpr::RCX] = high
            | match rng.below(24) {
                0 => rng.below(6000) as u64,
                1 => 0,
                2 => rng.u64() >> 33,
                _ => rng.below(40) as u64,
            };
    }
}

/// Makes the comparison of CMPXCHG succeed, half the time.
fn make_equal(
    rng: &mut Rng,
    case: &mut Case,
    insn: &Instruction,
    target: u64,
    background: &Background,
) {
    let at = |address: u64| -> u64 {
        let mut bytes = [0; 8];
        for (n, byte) in bytes.iter_mut().enumerate() {
            let offset = layout::offset_of(address.wrapping_add(n as u64)).unwrap_or(0);
            *byte = background[offset / 8].to_le_bytes()[offset % 8];
        }
        u64::from_le_bytes(bytes)
    };
    if rng.one_in(2) {
        return;
    }
    let (low, high) = match insn.mnemonic() {
        Mnemonic::Cmpxchg8b => (at(target) & 0xffff_ffff, at(target) >> 32),
        Mnemonic::Cmpxchg16b => (at(target), at(target.wrapping_add(8))),
        _ => (at(target), case.gpr[gpr::RDX]),
    };
    (case.gpr[gpr::RAX], case.gpr[gpr::RDX]) = (low, high);
}
