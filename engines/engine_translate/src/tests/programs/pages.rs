//! Entries of page tables change under a program that has the pages at hand (SDM volume 3,
//! 4.10.4).

use super::*;
use x86_defs::gpr::{RBX, RDI, RSI};

const ROUNDS: u32 = 40;
/// Accesses between two changes.
const TURNS: u32 = 30;

/// How the kernel says that an entry has changed.
#[derive(Clone, Copy, Debug)]
enum How {
    Invalidate,
    Root,
    /// CR4.PGE off and on, which concerns global pages, too.
    Global,
    /// INVPCID of one address, and of everything.
    One,
    Everything,
}

impl How {
    const ALL: [Self; 5] =
        [Self::Invalidate, Self::Root, Self::Global, Self::One, Self::Everything];

    /// RSI becomes the entry at RDI, which is that of the page at RBX.
    fn change(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.mov(qword_ptr(rdi), rsi)?;
        a.mov(qword_ptr(DATA), 0)?;
        a.mov(qword_ptr(DATA + 8), rbx)?;
        match self {
            Self::Invalidate => a.invlpg(byte_ptr(rbx)),
            Self::Root => {
                a.mov(r10, cr3)?;
                a.mov(cr3, r10)
            }
            Self::Global => {
                for _ in 0..2 {
                    a.mov(r10, cr4)?;
                    a.xor(r10, cr4::PGE as i32)?;
                    a.mov(cr4, r10)?;
                }
                Ok(())
            }
            Self::One | Self::Everything => {
                a.mov(r10d, if matches!(self, Self::One) { 0 } else { 2 })?;
                a.invpcid(r10, xmmword_ptr(DATA))
            }
        }
    }

    /// What a page may be beside its rights so that this is enough for it.
    fn kinds(self) -> &'static [u64] {
        match self {
            // INVPCID of one address leaves global pages alone.
            Self::Root | Self::One => &[0],
            _ => &[0, paging::G],
        }
    }
}

/// RBX and RDI are a page and its entry, which maps the first frame with all rights; RSI is the
/// entry.
fn one_page(linear: u64, flags: u64) -> impl Fn(&Arc<dyn Vm>, &mut VcpuState) {
    move |vm, state| {
        let entry = frame(0) | ALL | flags;
        state.regs.gpr[RDI] = map(vm, ROOT, linear, entry);
        (state.regs.gpr[RBX], state.regs.gpr[RSI]) = (linear, entry);
    }
}

/// The page becomes another frame in each round: what is read is that frame's number, and
/// nothing is written to the frames of other rounds.
#[test]
fn a_page_that_moved_is_found_where_it_is() {
    let user = |a: &mut CodeAssembler, trap: Trap| {
        let (mut again, mut turn) = (a.create_label(), a.create_label());
        a.mov(ebp, ROUNDS)?;
        a.set_label(&mut again)?;
        a.mov(edx, TURNS)?;
        a.set_label(&mut turn)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.add(r8, rax)?;
        a.add(dword_ptr(rbx + 8), ebp)?;
        a.dec(edx)?;
        a.jnz(turn)?;
        a.add(rsi, PAGE as i32)?;
        trap.call(a)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        done(a)
    };
    for (trap, how) in traps().into_iter().flat_map(|trap| How::ALL.map(|how| (trap, how))) {
        for (linear, kind) in
            [HEAP, NEAR].into_iter().flat_map(|l| how.kinds().iter().map(move |k| (l, *k)))
        {
            let kernel = |a: &mut CodeAssembler| how.change(a);
            let prepare = one_page(linear, kind);
            let left = Program { user: &user, kernel: &kernel, fault: &skip, prepare: &prepare };
            let left = left.run(trap);
            let case = format!("{trap:?} {how:?} {linear:x} {kind:x}");
            let (rounds, turns) = (u64::from(ROUNDS), u64::from(TURNS));
            assert_eq!(left.gpr[8], turns * rounds * (rounds - 1) / 2, "{case}");
            for frame in 0..rounds {
                let written = TURNS * (ROUNDS - frame as u32);
                assert_eq!(left.word(frame, 8), written, "{case}: frame {frame}");
            }
            assert_eq!(left.word(rounds, 8), 0, "{case}");
        }
    }
}

/// The rights of a page become others, and what they were again, by turns: accesses that they
/// forbid fault, all others are done.
#[test]
fn rights_are_those_of_the_present_entry() {
    let user = |a: &mut CodeAssembler, trap: Trap| {
        let (mut again, mut turn) = (a.create_label(), a.create_label());
        let (mut skipped, mut skipped_too) = (a.create_label(), a.create_label());
        a.mov(ebp, ROUNDS)?;
        a.set_label(&mut again)?;
        a.mov(edx, 4)?;
        a.set_label(&mut turn)?;
        a.lea(r14, ptr(skipped))?;
        a.mov(eax, dword_ptr(rbx + 8))?;
        a.set_label(&mut skipped)?;
        a.add(r8, r12)?;
        a.xor(r12d, r12d)?;
        a.lea(r14, ptr(skipped_too))?;
        a.inc(dword_ptr(rbx + 16))?;
        a.set_label(&mut skipped_too)?;
        a.shl(r8, 1)?;
        a.add(r8, r12)?;
        a.xor(r12d, r12d)?;
        a.dec(edx)?;
        a.jnz(turn)?;
        a.xchg(rsi, r9)?;
        trap.call(a)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        done(a)
    };
    // What a page is by turns, and the error codes of reads and of writes then.
    let cases = [
        (paging::P | paging::US, 0, 7),
        (paging::P | paging::RW, 5, 7),
        (paging::P, 5, 7),
        (0, 4, 6),
        (paging::P | paging::US | paging::G, 0, 7),
        (paging::RW | paging::US, 4, 6),
    ];
    for (trap, how) in traps().into_iter().flat_map(|trap| How::ALL.map(|how| (trap, how))) {
        for (flags, read, write) in cases {
            if flags & paging::G != 0 && how.kinds().len() == 1 {
                continue;
            }
            let kernel = |a: &mut CodeAssembler| how.change(a);
            let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
                one_page(HEAP, 0)(vm, state);
                state.regs.gpr[9] = frame(0) | flags;
            };
            let left = Program { user: &user, kernel: &kernel, fault: &skip, prepare: &prepare };
            let left = left.run(trap);
            let case = format!("{trap:?} {how:?} {flags:x}");
            let mut sum = 0u64;
            for round in 0..ROUNDS {
                let now = |error: u64| if round % 2 == 0 { 0 } else { error };
                (0..4).for_each(|_| {
                    sum = (sum.wrapping_add(now(read)) << 1).wrapping_add(now(write))
                });
            }
            assert_eq!(left.gpr[8], sum, "{case}");
            let faults = if read != 0 { 2 } else { 1 } * 4 * ROUNDS / 2;
            assert_eq!(left.gpr[15], u64::from(faults), "{case}");
            assert_eq!(left.word(0, 16), 4 * ROUNDS / 2, "{case}");
        }
    }
}

/// More rights are there without an invalidation: the handler of the fault maps the page, and
/// the access is done again.
#[test]
fn pages_appear_where_they_are_asked_for() {
    const PAGES: u64 = 24;
    let user = |a: &mut CodeAssembler, trap: Trap| {
        let (mut again, mut turn) = (a.create_label(), a.create_label());
        a.mov(ebp, 5)?;
        a.set_label(&mut again)?;
        a.mov(edx, PAGES as u32)?;
        a.mov(rdi, rbx)?;
        a.set_label(&mut turn)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.add(r8, rax)?;
        a.add(dword_ptr(rdi + 8), ebp)?;
        // The second half is in the next page.
        a.add(qword_ptr(rdi + (PAGE - 4) as i32), rax)?;
        a.add(rdi, PAGE as i32)?;
        a.dec(edx)?;
        a.jnz(turn)?;
        trap.call(a)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        done(a)
    };
    // All pages are taken away.
    let kernel = |a: &mut CodeAssembler| {
        let mut next = a.create_label();
        a.mov(edx, PAGES as u32 + 1)?;
        a.mov(rdi, r9)?;
        a.mov(r10, rbx)?;
        a.set_label(&mut next)?;
        a.mov(qword_ptr(rdi), 0)?;
        a.invlpg(byte_ptr(r10))?;
        a.add(rdi, 8)?;
        a.add(r10, PAGE as i32)?;
        a.dec(edx)?;
        a.jnz(next)
    };
    // The next frame becomes the page.
    let fault = |a: &mut CodeAssembler| {
        a.add(rsp, 8)?;
        a.mov(r10, cr2)?;
        a.sub(r10, rbx)?;
        a.shr(r10, 12)?;
        a.mov(qword_ptr(r9 + r10 * 8), rsi)?;
        a.add(rsi, PAGE as i32)?;
        a.inc(r15)?;
        a.iretq()
    };
    let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
        one_page(HEAP, 0)(vm, state);
        // The first table has entries for all.
        state.regs.gpr[9] = state.regs.gpr[RDI];
        vm.memory().write(state.regs.gpr[RDI], &[0; 8]).unwrap();
    };
    for trap in traps() {
        let program = Program { user: &user, kernel: &kernel, fault: &fault, prepare: &prepare };
        let left = program.run(trap);
        let all = 5 * (PAGES + 1);
        assert_eq!(left.gpr[15], all);
        // The last page of a round is only written to.
        let read: u64 = (0..5).map(|r| (0..PAGES).map(|n| r * (PAGES + 1) + n).sum::<u64>()).sum();
        assert_eq!(left.gpr[8] & 0xffff_ffff, read, "{trap:?}");
        for frame in 0..all {
            let last = frame % (PAGES + 1) == PAGES;
            let expected = if last { 0 } else { 5 - (frame / (PAGES + 1)) as u32 };
            assert_eq!(left.word(frame, 8), expected, "{trap:?}: frame {frame}");
        }
    }
}

/// What a kernel has just put where a program wrote by a window is in the window when the program
/// goes on: there is one fault for each page, the guest's own.
#[test]
fn a_page_that_was_asked_for_costs_one_fault() {
    const PAGES: u64 = 24;
    const ROUNDS: u64 = 5;
    let user = |a: &mut CodeAssembler, trap: Trap| {
        let (mut again, mut turn) = (a.create_label(), a.create_label());
        a.mov(ebp, ROUNDS as u32)?;
        a.set_label(&mut again)?;
        a.mov(edx, PAGES as u32)?;
        a.mov(r14, rbx)?;
        a.set_label(&mut turn)?;
        a.mov(dword_ptr(r14 + 8), ebp)?;
        a.add(r14, PAGE as i32)?;
        a.dec(edx)?;
        a.jnz(turn)?;
        trap.call(a)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        done(a)
    };
    // All pages are taken away.
    let kernel = |a: &mut CodeAssembler| {
        for page in 0..PAGES as i32 {
            a.mov(qword_ptr(r9 + 8 * page), 0)?;
            a.invlpg(byte_ptr(rbx + PAGE as i32 * page))?;
        }
        Ok(())
    };
    // The next frame becomes the page, which counts as written already.
    let fault = |a: &mut CodeAssembler| {
        a.add(rsp, 8)?;
        a.mov(r10, cr2)?;
        a.sub(r10, rbx)?;
        a.shr(r10, 12)?;
        a.mov(qword_ptr(r9 + r10 * 8), r13)?;
        a.add(r13, PAGE as i32)?;
        a.inc(r15)?;
        a.iretq()
    };
    let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
        for page in (0..PAGES).rev() {
            state.regs.gpr[9] = map(vm, ROOT, HEAP + page * PAGE, 0);
        }
        state.regs.gpr[RBX] = HEAP;
        state.regs.gpr[13] = frame(0) | ALL | paging::A | paging::D;
    };
    for trap in traps() {
        let program = Program { user: &user, kernel: &kernel, fault: &fault, prepare: &prepare };
        let left = program.run_with(trap, |machine| {
            assert_eq!(machine.guest.run(), Exit::Idle, "{}", machine.name);
            if machine.name == "windows, not counted" {
                let faults = machine.guest.vcpu.stats().get("windows", "faults");
                let Some(Value::Count(faults)) = faults else { panic!("{faults:?}") };
                let most = (ROUNDS + 1) * PAGES;
                assert!((PAGES..=most).contains(&faults), "{faults} faults, {trap:?}");
            }
        });
        assert_eq!(left.gpr[15], ROUNDS * PAGES);
        for frame in 0..ROUNDS * PAGES {
            assert_eq!(u64::from(left.word(frame, 8)), ROUNDS - frame / PAGES, "frame {frame}");
        }
    }
}

/// As after a fork: pages that two have are copied when they are written to.
#[test]
fn a_write_to_a_page_that_is_shared_goes_to_a_copy() {
    const PAGES: u64 = 8;
    let user = |a: &mut CodeAssembler, trap: Trap| {
        let (mut again, mut turn) = (a.create_label(), a.create_label());
        a.mov(ebp, 6)?;
        a.set_label(&mut again)?;
        a.mov(edx, PAGES as u32)?;
        a.mov(r14, rbx)?;
        a.set_label(&mut turn)?;
        a.mov(eax, dword_ptr(r14))?;
        a.add(r8, rax)?;
        a.mov(eax, dword_ptr(r14 + 8))?;
        a.inc(dword_ptr(r14 + 8))?;
        a.add(rax, qword_ptr(r14 + 8))?;
        a.add(r8, rax)?;
        a.add(r14, PAGE as i32)?;
        a.dec(edx)?;
        a.jnz(turn)?;
        trap.call(a)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        done(a)
    };
    // All pages lose the right to write.
    let kernel = |a: &mut CodeAssembler| {
        for page in 0..PAGES as i32 {
            a.and(qword_ptr(r9 + 8 * page), !(paging::RW as i32))?;
            a.invlpg(byte_ptr(rbx + PAGE as i32 * page))?;
        }
        Ok(())
    };
    let fault = |a: &mut CodeAssembler| {
        a.add(rsp, 8)?;
        a.mov(r10, cr2)?;
        a.sub(r10, rbx)?;
        a.shr(r10, 12)?;
        // From the page's frame to the next one.
        a.mov(rsi, qword_ptr(r9 + r10 * 8))?;
        a.and(rsi, -(PAGE as i32))?;
        a.mov(rdi, r13)?;
        a.mov(ecx, PAGE as u32 / 8)?;
        a.rep().movsq()?;
        a.lea(rsi, qword_ptr(r13 + ALL as i32))?;
        a.mov(qword_ptr(r9 + r10 * 8), rsi)?;
        a.add(r13, PAGE as i32)?;
        a.mov(r10, cr2)?;
        a.invlpg(byte_ptr(r10))?;
        a.inc(r15)?;
        a.iretq()
    };
    let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
        for page in (0..PAGES).rev() {
            let entry = frame(page) | paging::P | paging::US;
            state.regs.gpr[9] = map(vm, ROOT, HEAP + page * PAGE, entry);
        }
        state.regs.gpr[RBX] = HEAP;
        state.regs.gpr[13] = frame(PAGES);
    };
    for trap in traps() {
        let program = Program { user: &user, kernel: &kernel, fault: &fault, prepare: &prepare };
        let left = program.run(trap);
        assert_eq!(left.gpr[15], 6 * PAGES);
        for frame in 0..7 * PAGES {
            assert_eq!(left.word(frame, 0), (frame % PAGES) as u32, "{trap:?}: frame {frame}");
            assert_eq!(left.word(frame, 8), (frame / PAGES) as u32, "{trap:?}: frame {frame}");
        }
    }
}

/// Accessed and dirty bits are set again after a kernel has cleared them.
#[test]
fn accessed_and_dirty_bits_tell_of_each_access() {
    let user = |a: &mut CodeAssembler, trap: Trap| {
        let mut again = a.create_label();
        a.mov(ebp, 5)?;
        a.set_label(&mut again)?;
        let touch = |a: &mut CodeAssembler, write: bool| {
            let mut turn = a.create_label();
            a.mov(edx, TURNS)?;
            a.set_label(&mut turn)?;
            a.mov(eax, dword_ptr(rbx))?;
            if write {
                a.mov(dword_ptr(rbx + 8), edx)?;
            }
            a.dec(edx)?;
            a.jnz(turn)?;
            trap.call(a)
        };
        touch(a, true)?;
        touch(a, false)?;
        trap.call(a)?;
        touch(a, true)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        done(a)
    };
    let kernel = |a: &mut CodeAssembler| {
        a.mov(eax, dword_ptr(rdi))?;
        a.shr(eax, 5)?;
        a.and(eax, 3)?;
        a.shl(r9, 2)?;
        a.or(r9, rax)?;
        a.and(dword_ptr(rdi), !(paging::A | paging::D) as i32)?;
        a.invlpg(byte_ptr(rbx))
    };
    for (trap, linear) in traps().into_iter().flat_map(|trap| [(trap, HEAP), (trap, NEAR)]) {
        let prepare = one_page(linear, 0);
        let left = Program { user: &user, kernel: &kernel, fault: &skip, prepare: &prepare };
        let seen = (0..5).fold(0, |seen, _| seen << 8 | 0b11_01_00_11);
        assert_eq!(left.run(trap).gpr[9], seen, "{trap:?}");
    }
}

/// A large page becomes small ones in another order, and large again.
#[test]
fn a_large_page_is_split() {
    const PAGES: u32 = 60;
    const SPLIT: u64 = 0x8_f000;
    // Where the large page has the frames.
    const FIRST: u64 = HEAP + FRAMES;
    let user = |a: &mut CodeAssembler, trap: Trap| {
        let (mut again, mut turn) = (a.create_label(), a.create_label());
        a.mov(ebp, ROUNDS)?;
        a.set_label(&mut again)?;
        a.mov(edx, PAGES)?;
        a.mov(r14, rbx)?;
        a.set_label(&mut turn)?;
        a.mov(eax, dword_ptr(r14))?;
        a.imul_2(eax, edx)?;
        a.add(r8, rax)?;
        a.add(dword_ptr(r14 + 8), ebp)?;
        a.add(r14, PAGE as i32)?;
        a.dec(edx)?;
        a.jnz(turn)?;
        a.xchg(rsi, r9)?;
        trap.call(a)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        done(a)
    };
    for (trap, how) in traps().into_iter().flat_map(|trap| How::ALL.map(|how| (trap, how))) {
        let kernel = |a: &mut CodeAssembler| {
            let mut small = a.create_label();
            how.change(a)?;
            // Of small pages, an invalidation concerns one.
            a.test(esi, paging::PS as u32)?;
            a.jz(small)?;
            How::Root.change(a)?;
            a.set_label(&mut small)?;
            a.zero_bytes()
        };
        let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
            let large = paging::PS | ALL;
            state.regs.gpr[RDI] = map_at(vm, ROOT, HEAP, 21, large);
            (state.regs.gpr[RBX], state.regs.gpr[RSI]) = (FIRST, large);
            state.regs.gpr[9] = SPLIT | ALL;
            for n in 0..u64::from(PAGES) {
                let at = SPLIT + (FRAMES / PAGE + n) * 8;
                let entry = frame(u64::from(PAGES) - 1 - n) | ALL;
                vm.memory().write(at, &entry.to_le_bytes()).unwrap();
            }
        };
        let left = Program { user: &user, kernel: &kernel, fault: &skip, prepare: &prepare };
        let left = left.run(trap);
        let pages = u64::from(PAGES);
        let large: u64 = (0..pages).map(|n| n * (pages - n)).sum();
        let small: u64 = (0..pages).map(|n| (pages - 1 - n) * (pages - n)).sum();
        let rounds = u64::from(ROUNDS) / 2;
        assert_eq!(left.gpr[8], rounds * (large + small), "{trap:?} {how:?}");
        for frame in 0..pages {
            assert_eq!(left.word(frame, 8), ROUNDS * (ROUNDS + 1) / 2, "{trap:?} {how:?}");
        }
    }
}
