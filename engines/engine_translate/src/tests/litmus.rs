//! Memory order between vCPUs: what x86 forbids never happens (SDM volume 3, 8.2.3).
//!
//! Each test is two to four threads of a few accesses, which run over arrays of locations, an
//! iteration for each. What they read is kept for the host to look at.

use super::support::*;
use engine::{Exit, Vm, VmConfig};
use iced_x86::{
    IcedError,
    code_asm::{registers::*, *},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const X: u64 = 0x10_0000;
const Y: u64 = 0x14_0000;
const RESULTS: u64 = 0x18_0000;
const ITERATIONS: u64 = 2048;
/// Between locations of one array: a cache line of its own for each, in 64 pages.
const STRIDE: u64 = 128;
/// Threads wait for each other after so many iterations.
const TOGETHER: u32 = 32;
/// Rounds of all iterations, as long as there is time.
const ROUNDS: usize = 8;
const TIME: Duration = Duration::from_millis(250);

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What one iteration left: the registers of each thread, and both locations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    regs: [[u32; 2]; 4],
    x: u32,
    y: u32,
}

/// A thread: RBX and RSI are the locations, EAX and EDX its registers.
fn thread(number: u64, threads: u32, at: u64, body: Body) -> Vec<u8> {
    assemble(64, at, |a| {
        let (mut wait, mut again, mut on) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rbx, X)?;
        a.mov(rsi, Y)?;
        a.mov(rdi, RESULTS + 8 * number)?;
        a.mov(r12d, ITERATIONS as u32)?;
        a.xor(r15d, r15d)?;
        a.set_label(&mut again)?;
        a.test(r12d, TOGETHER - 1)?;
        a.jne(on)?;
        a.add(r15d, threads)?;
        a.mov(rcx, DATA)?;
        a.lock().inc(dword_ptr(rcx))?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rcx), r15d)?;
        a.jb(wait)?;
        a.set_label(&mut on)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        body(a)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(dword_ptr(rdi + 4), edx)?;
        a.add(rbx, STRIDE as i32)?;
        a.add(rsi, STRIDE as i32)?;
        a.add(rdi, 32)?;
        a.dec(r12d)?;
        a.jnz(again)?;
        a.hlt()
    })
}

fn run(vm: &Arc<dyn Vm>, id: u32, at: u64) -> std::thread::JoinHandle<Exit> {
    let mut state = long_mode();
    state.regs.rip = at;
    state.regs.gpr[4] = STACK - 0x1000 * u64::from(id);
    let mut vcpu = running(vm, id, &state);
    std::thread::spawn(move || vcpu.run(&mut Host::default()).unwrap())
}

/// Everything that some rounds saw.
fn observe(bodies: &[Body]) -> Vec<Seen> {
    let mut all = Vec::new();
    let end = Instant::now() + TIME;
    let rounds = if bodies.len() > 2 { 2 } else { ROUNDS };
    for round in 0..rounds {
        if round > 0 && Instant::now() > end {
            break;
        }
        let vm = vm_as(&translating(), VmConfig::default());
        let places: Vec<u64> = (0..bodies.len() as u64).map(|n| CODE + 0x1000 * n).collect();
        for (n, (body, at)) in bodies.iter().zip(&places).enumerate() {
            let code = thread(n as u64, bodies.len() as u32, *at, *body);
            vm.memory().write(*at, &code).unwrap();
        }
        let threads: Vec<_> =
            places.iter().enumerate().map(|(n, at)| run(&vm, n as u32, *at)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Exit::Idle);
        }
        let word = |at: u64| {
            let mut bytes = [0; 4];
            vm.memory().read(at, &mut bytes).unwrap();
            u32::from_le_bytes(bytes)
        };
        all.extend((0..ITERATIONS).map(|n| {
            let reg = |t: u64, r: u64| word(RESULTS + 32 * n + 8 * t + 4 * r);
            let regs = [0, 1, 2, 3].map(|t| [reg(t, 0), reg(t, 1)]);
            Seen { regs, x: word(X + STRIDE * n), y: word(Y + STRIDE * n) }
        }));
    }
    all
}

fn never(name: &str, bodies: &[Body], forbidden: fn(&Seen) -> bool) {
    let seen = observe(bodies);
    let first = seen.iter().find(|s| forbidden(s));
    assert_eq!(first, None, "{name}");
}

const WRITE_X: Body = |a| a.mov(dword_ptr(rbx), 1);
const WRITE_Y: Body = |a| a.mov(dword_ptr(rsi), 1);
const WRITE_X_Y: Body = |a| {
    a.mov(dword_ptr(rbx), 1)?;
    a.mov(dword_ptr(rsi), 1)
};
const READ_X_Y: Body = |a| {
    a.mov(eax, dword_ptr(rbx))?;
    a.mov(edx, dword_ptr(rsi))
};
const READ_Y_X: Body = |a| {
    a.mov(eax, dword_ptr(rsi))?;
    a.mov(edx, dword_ptr(rbx))
};

#[test]
fn stores_are_seen_in_their_order() {
    never("MP", &[WRITE_X_Y, READ_Y_X], |s| s.regs[1] == [1, 0]);
    // By instructions that are executed in other ways: strings, vectors, locked ones, calls.
    let others: [Body; 3] = [
        |a| {
            a.mov(r13, rdi)?;
            a.mov(eax, 1)?;
            a.mov(rdi, rbx)?;
            a.mov(ecx, 1)?;
            a.rep().stosd()?;
            a.mov(dword_ptr(rsi), eax)?;
            a.mov(rdi, r13)
        },
        |a| {
            a.pcmpeqd(xmm0, xmm0)?;
            a.psrld(xmm0, 31)?;
            a.movups(xmmword_ptr(rbx), xmm0)?;
            a.movd(dword_ptr(rsi), xmm0)
        },
        |a| {
            a.lock().inc(dword_ptr(rbx))?;
            a.mov(dword_ptr(rsi), 1)
        },
    ];
    for body in others {
        never("MP by another store", &[body, READ_Y_X], |s| s.regs[1] == [1, 0]);
    }
}

#[test]
fn loads_are_not_delayed_past_stores() {
    const LB: [Body; 2] = [
        |a| {
            a.mov(eax, dword_ptr(rbx))?;
            a.mov(dword_ptr(rsi), 1)
        },
        |a| {
            a.mov(eax, dword_ptr(rsi))?;
            a.mov(dword_ptr(rbx), 1)
        },
    ];
    never("LB", &LB, |s| s.regs[0][0] == 1 && s.regs[1][0] == 1);
    const S: [Body; 2] = [
        |a| {
            a.mov(dword_ptr(rbx), 2)?;
            a.mov(dword_ptr(rsi), 1)
        },
        |a| {
            a.mov(eax, dword_ptr(rsi))?;
            a.mov(dword_ptr(rbx), 1)
        },
    ];
    never("S", &S, |s| s.regs[1][0] == 1 && s.x == 2);
}

#[test]
fn stores_of_two_have_one_order() {
    const TWO: [Body; 2] = [
        |a| {
            a.mov(dword_ptr(rbx), 1)?;
            a.mov(dword_ptr(rsi), 2)
        },
        |a| {
            a.mov(dword_ptr(rsi), 1)?;
            a.mov(dword_ptr(rbx), 2)
        },
    ];
    never("2+2W", &TWO, |s| s.x == 1 && s.y == 1);
    const AGAIN: [Body; 2] = [WRITE_X, |a| {
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(edx, dword_ptr(rbx))
    }];
    never("CoRR", &AGAIN, |s| s.regs[1] == [1, 0]);
}

/// A load may pass an older store to another location, but not a fence or a locked one.
#[test]
fn fences_order_stores_and_loads() {
    const PLAIN: [Body; 2] = [
        |a| {
            a.mov(dword_ptr(rbx), 1)?;
            a.mov(eax, dword_ptr(rsi))
        },
        |a| {
            a.mov(dword_ptr(rsi), 1)?;
            a.mov(eax, dword_ptr(rbx))
        },
    ];
    let both_zero = |s: &Seen| s.regs[0][0] == 0 && s.regs[1][0] == 0;
    let count = observe(&PLAIN).iter().filter(|s| both_zero(s)).count();
    println!("SB without fences: {count} times what is allowed");
    let fenced: [[Body; 2]; 3] = [
        [
            |a| {
                a.mov(dword_ptr(rbx), 1)?;
                a.mfence()?;
                a.mov(eax, dword_ptr(rsi))
            },
            |a| {
                a.mov(dword_ptr(rsi), 1)?;
                a.mfence()?;
                a.mov(eax, dword_ptr(rbx))
            },
        ],
        [
            |a| {
                a.mov(edx, 1)?;
                a.xchg(dword_ptr(rbx), edx)?;
                a.mov(eax, dword_ptr(rsi))
            },
            |a| {
                a.mov(edx, 1)?;
                a.xchg(dword_ptr(rsi), edx)?;
                a.mov(eax, dword_ptr(rbx))
            },
        ],
        [
            |a| {
                a.mov(dword_ptr(rbx), 1)?;
                a.lock().or(dword_ptr(rsp), 0)?;
                a.mov(eax, dword_ptr(rsi))
            },
            |a| {
                a.mov(dword_ptr(rsi), 1)?;
                a.lock().or(dword_ptr(rsp), 0)?;
                a.mov(eax, dword_ptr(rbx))
            },
        ],
    ];
    for bodies in &fenced {
        never("SB", bodies, both_zero);
    }
    const R: [Body; 2] = [WRITE_X_Y, |a| {
        a.mov(dword_ptr(rsi), 2)?;
        a.mfence()?;
        a.mov(eax, dword_ptr(rbx))
    }];
    never("R", &R, |s| s.y == 2 && s.regs[1][0] == 0);
}

#[test]
fn all_see_the_stores_of_others_in_one_order() {
    let bodies = [WRITE_X, WRITE_Y, READ_X_Y, READ_Y_X];
    never("IRIW", &bodies, |s| s.regs[2] == [1, 0] && s.regs[3] == [1, 0]);
    // Through a third.
    const THROUGH: [Body; 3] = [
        WRITE_X,
        |a| {
            a.mov(eax, dword_ptr(rbx))?;
            a.mov(dword_ptr(rsi), eax)
        },
        READ_Y_X,
    ];
    never("WRC", &THROUGH, |s| s.regs[2] == [1, 0]);
}

/// Adds one in several ways, at several places, on two vCPUs and a thread of a device.
fn adds(offset: u64, width: u32, how: usize) -> u64 {
    const TIMES: u32 = 4000;
    let code = assemble(64, CODE, |a| {
        let (mut again, mut retry) = (a.create_label(), a.create_label());
        let mut wait = a.create_label();
        a.mov(rbx, X + offset)?;
        a.mov(r12d, TIMES)?;
        a.mov(rcx, DATA)?;
        a.lock().inc(dword_ptr(rcx))?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(rcx), 2)?;
        a.jb(wait)?;
        a.set_label(&mut again)?;
        a.mov(edx, 1)?;
        match (how, width) {
            (0, 1) => a.lock().inc(byte_ptr(rbx))?,
            (0, 2) => a.lock().inc(word_ptr(rbx))?,
            (0, 4) => a.lock().inc(dword_ptr(rbx))?,
            (0, _) => a.lock().inc(qword_ptr(rbx))?,
            (1, 1) => a.lock().xadd(byte_ptr(rbx), dl)?,
            (1, 2) => a.lock().xadd(word_ptr(rbx), dx)?,
            (1, 4) => a.lock().xadd(dword_ptr(rbx), edx)?,
            (1, _) => a.lock().xadd(qword_ptr(rbx), rdx)?,
            (_, _) => {
                a.mov(rax, qword_ptr(rbx))?;
                a.set_label(&mut retry)?;
                a.lea(rcx, qword_ptr(rax + 1))?;
                match width {
                    1 => a.lock().cmpxchg(byte_ptr(rbx), cl)?,
                    2 => a.lock().cmpxchg(word_ptr(rbx), cx)?,
                    4 => a.lock().cmpxchg(dword_ptr(rbx), ecx)?,
                    _ => a.lock().cmpxchg(qword_ptr(rbx), rcx)?,
                }
                a.jne(retry)?;
            }
        }
        a.dec(r12d)?;
        a.jnz(again)?;
        a.hlt()
    });
    let vm = vm_as(&translating(), VmConfig::default());
    vm.memory().write(CODE, &code).unwrap();
    let crosses = offset % 4096 + u64::from(width) > 4096;
    let threads = [run(&vm, 0, CODE), run(&vm, 1, CODE)];
    let mut expected = 2 * u64::from(TIMES);
    if width == 8 && !crosses {
        let memory = vm.memory();
        let layout = memory.layout();
        let (region, at) = layout.find(X + offset).unwrap();
        for _ in 0..TIMES {
            let (arena, at) = (memory.arena(), region.arena_at(at));
            let mut old: u64 = arena.load(at);
            loop {
                let seen = arena.compare_exchange(at, old, old + 1);
                if seen == old {
                    break;
                }
                old = seen;
            }
        }
        expected += u64::from(TIMES);
    }
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Exit::Idle);
    }
    let mut bytes = [0; 8];
    vm.memory().read(X + offset, &mut bytes).unwrap();
    let mask = u64::MAX >> (64 - 8 * width);
    assert_eq!(u64::from_le_bytes(bytes) & mask, expected & mask, "{offset:#x} {width} {how}");
    expected
}

#[test]
fn locked_additions_all_count() {
    for width in [1, 2, 4, 8] {
        for how in 0..3 {
            adds(0x40, width, how);
        }
    }
}

#[test]
fn locked_additions_across_pages_all_count() {
    for width in [2, 4, 8] {
        for how in 0..3 {
            adds(0xfff, width, how);
        }
    }
}
