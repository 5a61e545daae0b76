//! SIMD floating-point exceptions as the host's processor itself reports them, by SIGFPE.

#![expect(unsafe_code, reason = "calls generated code, handles a signal")]

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use x86_defs::xsave;

use super::simd_fp::{MXCSR_FLAGS, MXCSR_MASKS, MXCSR_UE};
use super::*;
use crate::StubCache;
use crate::sweep::{Random, encodings};

const MXCSR_OE: u32 = 1 << 3;
const MXCSR_PE: u32 = 1 << 5;

/// No MXCSR looks like this.
const NONE: u32 = u32::MAX;

/// MXCSR when the exception came.
static CAUGHT: AtomicU32 = AtomicU32::new(NONE);

/// Notes MXCSR, and lets the instruction run again with every exception masked.
extern "C" fn on_fpe(_: c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t` whose floating-point state is there.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        let state = (*context).uc_mcontext.fpregs;
        CAUGHT.store((*state).mxcsr, Ordering::Relaxed);
        (*state).mxcsr = (*state).mxcsr & !MXCSR_FLAGS | MXCSR_MASKS;
    }
}

fn install() {
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and only touches its
    // arguments and an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fpe as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()), 0);
    }
}

/// Numbers that meet in exceptions: near the limits, denormal, exact and inexact.
fn f64_bits(random: &mut Random) -> u64 {
    let choice = random.next();
    let significand = match choice & 3 {
        0 => 0,
        1 => 1 << (choice >> 8 & 51),
        2 => random.next() >> 12 & !0xfff_ffff,
        _ => random.next() >> 12,
    };
    const EXPONENTS: [u64; 12] =
        [0, 0, 1, 2, 0x1ff, 0x3c9, 0x3fe, 0x3ff, 0x5ff, 0x7fd, 0x7fe, 0x7ff];
    let exponent = EXPONENTS[(choice >> 16) as usize % EXPONENTS.len()];
    (choice >> 4 & 1) << 63 | exponent << 52 | significand
}

fn f32_bits(random: &mut Random) -> u32 {
    let choice = random.next();
    let significand = match choice & 3 {
        0 => 0,
        1 => 1 << (choice >> 8 & 15),
        2 => (random.next() >> 41) as u32 & !0xfff,
        _ => (random.next() >> 41) as u32,
    };
    const EXPONENTS: [u32; 12] = [0, 0, 1, 2, 0x3f, 0x68, 0x7e, 0x7f, 0xbf, 0xfd, 0xfe, 0xff];
    let exponent = EXPONENTS[(choice >> 32) as usize % EXPONENTS.len()];
    ((choice >> 4 & 1) as u32) << 31 | exponent << 23 | significand
}

fn vector(random: &mut Random, double: bool) -> u128 {
    let one = random.next() & 3 == 0;
    let low = |random: &mut Random| {
        if double {
            f64_bits(random)
        } else {
            u64::from(f32_bits(random)) << 32 | u64::from(f32_bits(random))
        }
    };
    // Often equal lanes, so that few exceptions mix.
    let first = low(random);
    u128::from(if one { low(random) } else { first }) << 64 | u128::from(first)
}

fn check(random: &mut Random, cache: &StubCache, insn: &Instruction) -> bool {
    let Ok(stub) = cache.compile(insn) else { return false };
    if stub.0.kind != Kind::SimdFp {
        return false;
    }
    let Home::Resident { entry, .. } = stub.0.home else { return false };
    let mut fpu = FpuState::init();
    let double = random.next() & 1 != 0;
    for n in 0..16 {
        fpu.set_xmm(n, vector(random, double));
        fpu.set_ymm_hi(n, vector(random, double));
    }
    let mut operand = Operand::new();
    operand.0[..16].copy_from_slice(&vector(random, double).to_le_bytes());
    operand.0[16..32].copy_from_slice(&vector(random, double).to_le_bytes());
    let mut gpr: [u64; 16] = std::array::from_fn(|_| f64_bits(random));
    let mxcsr = random.next() as u32 & 0xffff & !MXCSR_FLAGS;
    fpu.set_u32(xsave::MXCSR, mxcsr);

    // The host's answer.
    let mut native = (fpu.clone(), gpr, 2u64, operand.clone());
    let mut control = SimdControl { wanted: mxcsr, result: 0, unmasked: 0, host: 0x1f80 };
    CAUGHT.store(NONE, Ordering::Relaxed);
    // SAFETY: as in `Stub::call`; the exceptions that may come are handled above.
    unsafe {
        entry(
            native.0.area.as_mut_ptr(),
            native.1.as_mut_ptr(),
            native.3.0.as_mut_ptr(),
            &mut native.2,
            &mut control,
        );
    }
    let caught = CAUGHT.load(Ordering::Relaxed);
    let expected = if caught == NONE {
        (Outcome::Done, control.result)
    } else {
        (Outcome::SimdException, caught)
    };

    let mut flags = 2;
    let before = fpu.clone();
    let outcome = stub.run(&mut fpu, &mut gpr, &mut flags, &mut operand);
    let what = (insn.code(), format!("{mxcsr:x}"), before.xmm(1), before.xmm(2), &before);
    // Whether the result would be inexact with an unbounded exponent is not known here.
    let beyond_limits = fpu.mxcsr() & !(mxcsr >> 7) & (MXCSR_UE | MXCSR_OE) != 0;
    // DPPS and DPPD stop between their operations, and VCVTPS2PH does not report all elements.
    let stages = matches!(
        insn.mnemonic(),
        Mnemonic::Dppd | Mnemonic::Dpps | Mnemonic::Vdppd | Mnemonic::Vdpps | Mnemonic::Vcvtps2ph
    );
    let compared = match (outcome, stages, beyond_limits) {
        (Outcome::SimdException, true, _) => !MXCSR_FLAGS,
        (Outcome::SimdException, _, true) => !MXCSR_PE,
        _ => u32::MAX,
    };
    assert_eq!((outcome, fpu.mxcsr() & compared), (expected.0, expected.1 & compared), "{what:x?}");
    if outcome == Outcome::Done {
        native.0.set_u32(xsave::MXCSR, fpu.mxcsr());
        assert!(native.0 == fpu && native.1 == gpr && native.3.0 == operand.0, "{what:x?}");
    }
    caught != NONE
}

#[test]
fn as_the_host_raises_them() {
    install();
    let cache = StubCache::new().unwrap();
    let mut random = Random(0x0123_4567_89ab_cdef);
    let mut raised = 0;
    encodings(|bitness, bytes| {
        let insn = Decoder::new(bitness, bytes, DecoderOptions::NONE).decode();
        if bitness == 64 {
            raised += u32::from(check(&mut random, &cache, &insn));
        }
    });
    assert!(raised > 1000, "{raised}");
}
