//! REP MOVS and REP STOS run on the host, page by page, and stop where the handlers stop.

mod programs;

use programs::{CODE, DATA, END, Pair, Rng};
use std::sync::atomic::Ordering::SeqCst;
use translator::Left;
use vcpu_state::VcpuState;

fn string(rng: &mut Rng) -> Vec<u8> {
    let prefix = rng.pick(&[0xf3, 0xf3, 0xf2]);
    let size: &[u8] = rng.pick(&[&[][..], &[0x66], &[0x48]]);
    let opcode = rng.pick(&[0xa4, 0xa5, 0xaa, 0xab]);
    let mut bytes = vec![prefix];
    if rng.below(16) == 0 {
        bytes.remove(0);
    }
    match (size, rng.below(32)) {
        ([0x48], 0) => bytes.push(0x64),
        (_, 1) => bytes.push(0x67),
        _ => {}
    }
    bytes.extend(size);
    bytes.push(opcode);
    bytes
}

/// Index registers in the data, often near each other, and a count.
fn operands(rng: &mut Rng, state: &mut VcpuState) {
    let mut place = || match rng.below(8) {
        0 => END - rng.below(0x2000),
        1 => DATA + 0x1000 * rng.below(16) + 0x1000 - rng.below(16),
        _ => DATA + rng.below(0xe000),
    };
    let (from, to) = (place(), place());
    let near = from.wrapping_add(rng.below(64)).wrapping_sub(32);
    state.regs.gpr[6] = from;
    state.regs.gpr[7] = if rng.below(3) == 0 { near } else { to };
    state.regs.gpr[1] = match rng.below(4) {
        0 => rng.below(4),
        1 => rng.below(0x2000),
        _ => rng.below(0x80),
    };
}

fn program(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + rng.below(3) {
        match rng.below(8) {
            0 => bytes.push(0xfd), // std
            1 => bytes.push(0xfc), // cld
            _ => {}
        }
        bytes.extend([0x48, 0x01, 0xd8]); // add rax, rbx
        bytes.extend(string(rng));
        bytes.extend([0xb9, rng.below(256) as u8, rng.below(4) as u8, 0, 0]);
        if rng.below(2) == 0 {
            bytes.extend(rng.pick(&[[0xeb, 0], [0x72, 0]]));
        }
    }
    bytes.extend([0xfc, 0xeb, 0]);
    bytes
}

#[test]
fn strings_end_where_the_handlers_end() {
    let Some(mut pair) = Pair::new() else { return };
    let mut rng = Rng(0x57_0123);
    for _ in 0..4000 {
        let bytes = program(&mut rng);
        pair.run_from(&mut rng, &bytes, 0x1f80, operands);
    }
    assert!(pair.runs[0] > 4 * pair.runs[1], "{:?}", pair.runs);
}

/// A request ends a long REP between two pieces; the registers say what is left.
#[test]
fn a_request_interrupts() {
    const LEN: u64 = 0x10_0000;
    let Some(mut pair) = Pair::new() else { return };
    // mov rdi, DATA; mov ecx, LEN; rep stosb; jmp +0
    let mut bytes = vec![0x48, 0xc7, 0xc7];
    bytes.extend((DATA as u32).to_le_bytes());
    bytes.push(0xb9);
    bytes.extend((LEN as u32).to_le_bytes());
    bytes.extend([0xf3, 0xaa, 0xeb, 0]);
    let code = pair.block(&bytes).unwrap();
    pair.native.cpu.leave = false;
    // Each run makes one more page known to the TLB.
    for _ in 0..LEN / 4096 + 1 {
        pair.native.cpu.rip = CODE;
        let left = pair.translator.run(&mut pair.native.ctx(), code, false);
        assert!(matches!(left, Some(Ok(Left::Exit(_)))), "{left:?}");
    }
    // The same without an end: jmp -16
    *bytes.last_mut().unwrap() = 0xf0;
    let code = pair.block(&bytes).unwrap();
    let slot = pair.native.cpu.slot.clone();
    let mut seen = false;
    for _ in 0..1000 {
        pair.native.cpu.rip = CODE;
        std::thread::scope(|scope| {
            let _thread = scope.spawn(|| slot.flags.store(1, SeqCst));
            let left = pair.translator.run(&mut pair.native.ctx(), code, false);
            assert_eq!(left.unwrap().unwrap(), Left::Boundary);
        });
        slot.flags.store(0, SeqCst);
        pair.native.cpu.leave = false;
        let (rdi, rcx) = (pair.native.cpu.gpr[7], pair.native.cpu.gpr[1]);
        if pair.native.cpu.rip == CODE + 12 {
            assert_eq!(rdi + rcx, DATA + LEN);
            seen |= rcx != 0 && rcx != LEN;
        } else {
            assert_eq!(pair.native.cpu.rip, CODE);
        }
        if seen {
            return;
        }
    }
    panic!("not once in its middle");
}
