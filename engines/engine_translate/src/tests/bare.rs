//! Blocks whose translations outlive their decoded instructions.

use super::support::*;
use crate::{Translate, Translation};
use engine::{Exit, GuestDebug, Intercepts, stats::Value};
use iced_x86::code_asm::*;

/// A function that is called often.
const HOT: u64 = 0x10_0000;
/// Functions that are called once each: more than there is room for.
const COLD: u64 = 0x11_0000;
const STRIDE: u64 = 16;
const COUNT: u64 = 6000;

/// A guest with little room for code, in which blocks are translated when they have run twice.
fn guest() -> Guest {
    let how = Translation { code_memory: 1 << 20, hot: 2, ..Translation::default() };
    let engine = Translate::new().unwrap().with_translation(how);
    let vm = vm_of(&engine, Intercepts::default());
    let main = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(rsi)?;
        a.add(rsi, rdi)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    vm.memory().write(CODE, &main).unwrap();
    // add rax, imm32; two stores; ret
    let hot = assemble(64, HOT, |a| {
        a.add(rax, 0x1234)?;
        a.mov(dword_ptr(DATA), eax)?;
        a.mov(dword_ptr(DATA + 8), eax)?;
        a.ret()
    });
    vm.memory().write(HOT, &hot).unwrap();
    for n in 0..COUNT {
        let cold = assemble(64, COLD + n * STRIDE, |a| {
            a.add(rax, n as i32)?;
            a.xchg(rbx, rbx)?;
            a.ret()
        });
        vm.memory().write(COLD + n * STRIDE, &cold).unwrap();
    }
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut guest = Guest { vm, vcpu, host: Host::default() };
    call(&mut guest, HOT, 0, 50);
    call(&mut guest, COLD, STRIDE, COUNT);
    guest
}

fn set(guest: &mut Guest, first: u64, stride: u64, times: u64) {
    let mut state = long_mode();
    let gpr = &mut state.regs.gpr;
    (gpr[0], gpr[1], gpr[6], gpr[7]) = (0, times, first, stride);
    guest.vcpu.set_state(&state).unwrap();
}

/// The sum of what these functions add.
fn call(guest: &mut Guest, first: u64, stride: u64, times: u64) -> u64 {
    set(guest, first, stride, times);
    assert_eq!(guest.run(), Exit::Idle);
    guest.gpr()[0]
}

/// Blocks that were decoded, and that were translated.
fn made(guest: &Guest) -> [u64; 2] {
    let stats = guest.vcpu.stats();
    [("run loop", "blocks decoded"), ("translation", "blocks translated")].map(|(group, name)| {
        match stats.get(group, name) {
            Some(Value::Count(count)) => count,
            other => panic!("{group}, {name}: {other:?}"),
        }
    })
}

/// The function's operand is written: it has this lowest byte now.
fn patch(guest: &Guest, byte: u8) {
    guest.vm.memory().write(HOT + 2, &[byte]).unwrap();
}

#[test]
fn a_block_that_is_bare_runs_as_it_was_translated() {
    let mut guest = guest();
    let before = made(&guest);
    assert!(before[0] > COUNT, "{before:?}");
    assert_eq!(call(&mut guest, HOT, 0, 3), 3 * 0x1234);
    // At most what ends the loop was decoded anew.
    let after = made(&guest);
    assert!(after[0] <= before[0] + 1 && after[1] == before[1], "{before:?} {after:?}");
}

#[test]
fn a_bare_block_that_was_written_is_compared() {
    let mut guest = guest();
    let before = made(&guest);
    // With what it was.
    patch(&guest, 0x34);
    assert_eq!(call(&mut guest, HOT, 0, 3), 3 * 0x1234);
    let after = made(&guest);
    assert!(after[0] <= before[0] + 1 && after[1] == before[1], "{before:?} {after:?}");
    patch(&guest, 0x56);
    assert_eq!(call(&mut guest, HOT, 0, 30), 30 * 0x1256);
    assert!(made(&guest)[0] > after[0]);
    call(&mut guest, COLD, STRIDE, COUNT);
    patch(&guest, 0x78);
    assert_eq!(call(&mut guest, HOT, 0, 30), 30 * 0x1278);
}

/// Instructions are executed one by one, which needs them.
#[test]
fn a_bare_block_is_decoded_once_more_to_be_interpreted() {
    let mut guest = guest();
    set(&mut guest, HOT, 0, 1);
    guest.vcpu.set_debug(&GuestDebug { single_step: true, breakpoints: vec![] }).unwrap();
    let mut places = Vec::new();
    for _ in 0..6 {
        assert!(matches!(guest.run(), Exit::Debug(_)));
        places.push(guest.vcpu.state().unwrap().regs.rip);
    }
    assert_eq!(places, [HOT, HOT + 6, HOT + 15, HOT + 24, CODE + 2, CODE + 5]);
    assert_eq!(guest.gpr()[0], 0x1234);
    guest.vcpu.set_debug(&GuestDebug::default()).unwrap();
    assert_eq!(call(&mut guest, HOT, 0, 3), 3 * 0x1234);
    // A budget that ends inside of the block.
    call(&mut guest, COLD, STRIDE, COUNT);
    set(&mut guest, HOT, 0, 1);
    assert_eq!(guest.run_for(3), Exit::Retired);
    let regs = guest.vcpu.state().unwrap().regs;
    assert_eq!((regs.gpr[0], regs.rip), (0x1234, HOT + 15));
}

/// Instructions that are executed by their handlers are known by numbers, which others have
/// after an eviction. Few enough have one that those of before are still known then.
#[test]
fn handlers_execute_what_is_there_now() {
    let how = Translation { code_memory: 1 << 20, hot: 0, ..Translation::default() };
    let engine = Translate::new().unwrap().with_translation(how);
    let code = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(rsi)?;
        a.add(rsi, STRIDE as i32)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    let mut guest = Guest::of(&engine, &long_mode(), &code);
    let port = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as u16;
    let mut wanted = Vec::new();
    for n in 0..COUNT {
        let function = assemble(64, COLD + n * STRIDE, |a| {
            a.mov(eax, n as i32)?;
            match port(n) {
                port @ 0..256 => a.out(i32::from(port), eax)?,
                _ => a.nop()?,
            }
            a.ret()
        });
        guest.vm.memory().write(COLD + n * STRIDE, &function).unwrap();
        wanted.extend((port(n) < 256).then_some((port(n), n as u32)));
    }
    for _ in 0..4 {
        call(&mut guest, COLD, STRIDE, COUNT);
        assert!(std::mem::take(&mut guest.host.out) == wanted);
    }
    let evicted = guest.vcpu.stats().get("code cache", "blocks evicted");
    assert!(matches!(evicted, Some(Value::Count(n)) if n > COUNT), "{evicted:?}");
}
