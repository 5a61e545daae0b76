//! Gathers and masked moves, element by element.

use emit::gather::Gather;
use emit::masked_move::MaskedMove;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use vcpu_state::FpuState;
use x86_defs::xsave;

fn decode(bitness: u32, bytes: &[u8]) -> Instruction {
    Decoder::new(bitness, bytes, DecoderOptions::NONE).decode()
}

fn dwords(values: [u32; 4]) -> u128 {
    values.iter().rev().fold(0, |all, &value| all << 32 | u128::from(value))
}

#[test]
fn gather_loads_what_the_mask_names() {
    // vpgatherdd xmm1, [rax+xmm2*4+0x10], xmm3
    let insn = decode(64, &[0xc4, 0xe2, 0x61, 0x90, 0x4c, 0x90, 0x10]);
    let gather = Gather::of(&insn).unwrap();
    let mut fpu = FpuState::init();
    let mut gpr = [0; 16];
    gpr[0] = 0x1000;
    fpu.set_xmm(1, dwords([1, 2, 3, 4]));
    fpu.set_ymm_hi(1, 5);
    fpu.set_xmm(2, dwords([0, u32::MAX, 7, 0x10]));
    fpu.set_xmm(3, dwords([0x8000_0000, 0xffff_ffff, 0x7fff_ffff, 0x8000_0000]));
    let mut offsets = Vec::new();
    while let Some(element) = gather.next(&fpu, &gpr) {
        offsets.push(element.offset);
        gather.complete(&mut fpu, element, element.offset + 0xa000_0000);
    }
    assert_eq!(offsets, [0x1010, 0x100c, 0x1050]);
    gather.finish(&mut fpu);
    assert_eq!(fpu.xmm(1), dwords([0xa000_1010, 0xa000_100c, 3, 0xa000_1050]));
    assert_eq!((fpu.ymm_hi(1), fpu.xmm(3)), (0, 0));
}

#[test]
fn an_interrupted_gather_goes_on() {
    // vgatherqps xmm1, [r12+ymm9*8], xmm3
    let insn = decode(64, &[0xc4, 0x82, 0x65, 0x93, 0x0c, 0xcc]);
    let gather = Gather::of(&insn).unwrap();
    let mut fpu = FpuState::init();
    let mut gpr = [0; 16];
    gpr[12] = 0xffff_8000_0000_0000;
    fpu.set_xmm(9, 1 | 2 << 64);
    fpu.set_ymm_hi(9, 3 | u128::from(u64::MAX) << 64);
    fpu.set_xmm(3, u128::MAX);
    let first = gather.next(&fpu, &gpr).unwrap();
    assert_eq!(first.offset, 0xffff_8000_0000_0008);
    gather.complete(&mut fpu, first, 11);
    assert_eq!(fpu.xmm(3), dwords([0, u32::MAX, u32::MAX, u32::MAX]), "a fault would show this");
    let mut offsets = Vec::new();
    while let Some(element) = gather.next(&fpu, &gpr) {
        offsets.push(element.offset);
        gather.complete(&mut fpu, element, 12);
    }
    gather.finish(&mut fpu);
    assert_eq!(offsets, [0xffff_8000_0000_0010, 0xffff_8000_0000_0018, 0xffff_7fff_ffff_fff8]);
    assert_eq!(fpu.xmm(1), dwords([11, 12, 12, 12]));
}

#[test]
fn gather_of_two_dwords_clears_the_rest() {
    // vpgatherqd xmm1, [rax+xmm2], xmm3
    let insn = decode(64, &[0xc4, 0xe2, 0x61, 0x91, 0x0c, 0x10]);
    let gather = Gather::of(&insn).unwrap();
    let mut fpu = FpuState::init();
    fpu.set_xmm(1, u128::MAX);
    fpu.set_xmm(3, u128::MAX);
    while let Some(element) = gather.next(&fpu, &[0; 16]) {
        gather.complete(&mut fpu, element, 1);
    }
    gather.finish(&mut fpu);
    assert_eq!((fpu.xmm(1), fpu.xmm(3)), (dwords([1, 1, 0, 0]), 0));
}

#[test]
fn gather_wraps_with_32_bit_addresses() {
    // vpgatherdd xmm1, [eax+xmm2*8-4], xmm3
    let insn = decode(32, &[0xc4, 0xe2, 0x61, 0x90, 0x4c, 0xd0, 0xfc]);
    let gather = Gather::of(&insn).unwrap();
    let mut fpu = FpuState::init();
    fpu.set_xmm(3, 1 << 31);
    assert_eq!(gather.next(&fpu, &[0; 16]).unwrap().offset, 0xffff_fffc);
}

#[test]
fn gather_with_equal_registers_is_none() {
    // vpgatherdd xmm1, [rax+xmm1*4], xmm3
    let insn = decode(64, &[0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x88]);
    assert_eq!(Gather::of(&insn), None);
}

#[test]
fn masked_loads_zero_and_stores_skip() {
    // vmaskmovps ymm1, ymm2, [rax]
    let load = MaskedMove::of(&decode(64, &[0xc4, 0xe2, 0x6d, 0x2c, 0x08])).unwrap();
    assert_eq!((load.stores, load.count, load.element_size), (false, 8, 4));
    let mut fpu = FpuState::init();
    fpu.set_xmm(1, u128::MAX);
    fpu.set_ymm_hi(1, u128::MAX);
    fpu.set_xmm(2, dwords([1 << 31, 0, 1 << 31, 0x7fff_ffff]));
    fpu.set_ymm_hi(2, dwords([0, 0, 0, u32::MAX]));
    assert_eq!(load.active(&fpu), 0b1000_0101);
    load.finish_load(&mut fpu, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!((fpu.xmm(1), fpu.ymm_hi(1)), (dwords([1, 0, 3, 0]), dwords([0, 0, 0, 8])));
    // vpmaskmovq [rax], xmm2, xmm1
    let store = MaskedMove::of(&decode(64, &[0xc4, 0xe2, 0xe9, 0x8e, 0x08])).unwrap();
    assert_eq!((store.stores, store.count, store.element_size), (true, 2, 8));
    assert_eq!(store.active(&fpu), 0);
    assert_eq!(store.element(&fpu, 1), 3);
}

#[test]
fn maskmov_of_bytes() {
    // maskmovdqu xmm1, xmm2
    let moves = MaskedMove::of(&decode(64, &[0x66, 0x0f, 0xf7, 0xca])).unwrap();
    assert_eq!((moves.count, moves.element_size, moves.mmx), (16, 1, false));
    let mut fpu = FpuState::init();
    fpu.set_xmm(2, 0x80 | 0xff << 120);
    fpu.set_xmm(1, 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
    assert_eq!(moves.active(&fpu), 0x8001);
    assert_eq!((moves.element(&fpu, 0), moves.element(&fpu, 15)), (0, 15));
    // maskmovq mm1, mm2
    let moves = MaskedMove::of(&decode(64, &[0x0f, 0xf7, 0xca])).unwrap();
    assert_eq!((moves.count, moves.mmx), (8, true));
    // TOP is 6, hence MM2 (R2) is ST(4), and MM1 is ST(3).
    fpu.set_u16(xsave::FSW, 6 << 11);
    fpu.set_u64(xsave::ST + 16 * 4, 0x80_0000_0000_0080);
    fpu.set_u64(xsave::ST + 16 * 3, 0x0706_0504_0302_0155);
    assert_eq!(moves.active(&fpu), 0b100_0001);
    assert_eq!(moves.element(&fpu, 0), 0x55);
    moves.finish_store(&mut fpu);
    assert_eq!(fpu.u16(xsave::FSW), 0);
    assert_eq!(fpu.area[xsave::FTW], 0xff);
    assert_eq!(fpu.u64(xsave::ST + 16), 0x0706_0504_0302_0155, "MM1 is R1 still");
}
