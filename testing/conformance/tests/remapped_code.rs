//! Code at one address that changes with the page tables or the rights: an engine that remembers
//! where jumps went must not go there under others.

use conformance::*;
use x86_defs::{cr::cr4, exception, gpr};

/// A page whose frame differs.
const CALLEE: u64 = 0x1_0000;
const FRAMES: [u64; 2] = [0x2_0000, 0x2_1000];
/// The roots of two trees of tables: the mode's own, and a copy.
const ROOTS: [u64; 2] = [0x8000, 0xc000];
const TABLES: [u64; 2] = [0xb000, 0xf000];
const GLOBAL: u64 = 1 << 8;

/// How the other frame comes into being.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    /// Another tree, `mov cr3, rbx` and back by `mov cr3, rdx`.
    Root,
    /// `mov [r9], rbx; invlpg [0x10000]`, with the new entry in RBX, and back from RDX.
    Invalidate,
    /// The same, but for an invalidation by changes of CR4.PGE, in R10 and R11.
    GlobalEnable,
}

impl How {
    fn code(self, back: bool) -> Vec<u8> {
        let invlpg = [0x0f, 0x01, 0x3c, 0x25, 0, 0, 1, 0];
        let without_global = [0x41, 0x0f, 0x22, 0xe2, 0x41, 0x0f, 0x22, 0xe3];
        let store: &[u8] = if back { &[0x49, 0x89, 0x11] } else { &[0x49, 0x89, 0x19] };
        match (self, back) {
            (How::Root, false) => vec![0x0f, 0x22, 0xdb],
            (How::Root, true) => vec![0x0f, 0x22, 0xda],
            (How::Invalidate, _) => [store, &invlpg].concat(),
            (How::GlobalEnable, _) => [store, &without_global].concat(),
        }
    }
}

fn copy(g: &Guest, from: u64, to: u64) {
    let page: [u8; 4096] = g.read(from);
    g.write(to, &page);
}

/// Both trees, which differ in one page if `differ`.
fn trees(g: &mut Guest, how: How, global_code: bool, callee_flags: u64) {
    if global_code {
        g.write(TABLES[0] + 8, &(CODE | 7 | GLOBAL).to_le_bytes());
    }
    let entry = |n: usize| FRAMES[n] | 7 | callee_flags;
    g.write(TABLES[0] + CALLEE / 4096 * 8, &entry(0).to_le_bytes());
    for level in 0..4 {
        copy(g, ROOTS[0] + level * 0x1000, ROOTS[1] + level * 0x1000);
        if level < 3 {
            let next = ROOTS[1] + (level + 1) * 0x1000;
            g.write(ROOTS[1] + level * 0x1000, &(next | 7).to_le_bytes());
        }
    }
    g.write(TABLES[1] + CALLEE / 4096 * 8, &entry(1).to_le_bytes());
    g.set(|s| {
        s.control.cr4 |= cr4::PGE;
        let (to, back) = match how {
            How::Root => (ROOTS[1], ROOTS[0]),
            How::Invalidate | How::GlobalEnable => (entry(1), entry(0)),
        };
        (s.regs.gpr[gpr::RBX], s.regs.gpr[gpr::RDX]) = (to, back);
        s.regs.gpr[8] = CALLEE;
        s.regs.gpr[9] = TABLES[0] + CALLEE / 4096 * 8;
        s.regs.gpr[10] = s.control.cr4 & !cr4::PGE;
        s.regs.gpr[11] = s.control.cr4;
    });
}

/// Calls the page, and says what it returns, four times: the first find the way.
fn calls(code: &mut Vec<u8>, indirect: bool) {
    code.extend([0xb9, 4, 0, 0, 0]);
    let start = code.len();
    if indirect {
        code.extend([0x41, 0xff, 0xd0]);
    } else {
        code.push(0xe8);
        let next = CODE + code.len() as u64 + 4;
        code.extend(((CALLEE - next) as u32).to_le_bytes());
    }
    // out 1, al; dec ecx; jnz start
    code.extend([0xe6, 1, 0xff, 0xc9, 0x75]);
    code.push((start as i64 - code.len() as i64 - 1) as u8);
}

#[test]
fn calls_go_where_the_present_tables_lead() {
    each_engine(|e| {
        if e.skips(Lacks::Other("global pages")) {
            return;
        }
        let hows = [
            (How::Root, false, 0),
            (How::Root, true, 0),
            (How::Invalidate, false, 0),
            (How::Invalidate, true, 0),
            (How::Invalidate, false, GLOBAL),
            (How::Invalidate, true, GLOBAL),
            (How::GlobalEnable, true, 0),
            (How::GlobalEnable, true, GLOBAL),
        ];
        for (how, global_code, callee_flags) in hows {
            for indirect in [false, true] {
                let mut code = Vec::new();
                calls(&mut code, indirect);
                for back in [false, true, false] {
                    code.extend(how.code(back));
                    calls(&mut code, indirect);
                }
                let mut g = Guest::new(e, Mode::Long, &code);
                trees(&mut g, how, global_code, callee_flags);
                // mov al, 0x11; ret and mov al, 0x22; ret
                g.write(FRAMES[0], &[0xb0, 0x11, 0xc3]);
                g.write(FRAMES[1], &[0xb0, 0x22, 0xc3]);
                g.finish();
                let seen: Vec<_> = g.bus.log.iter().take(16).cloned().collect();
                let runs = [0x11, 0x22, 0x11, 0x22];
                let want: Vec<_> =
                    runs.iter().flat_map(|v| [*v; 4]).map(|v| Event::Out(1, vec![v])).collect();
                let case = format!("{how:?} {global_code} {callee_flags} {indirect}");
                assert_eq!(seen, want, "{case}");
            }
        }
    });
}

/// The page that is called changes the address space, so that the return leads elsewhere than
/// it did before.
#[test]
fn returns_go_where_the_present_tables_lead() {
    each_engine(|e| {
        if e.skips(Lacks::Other("global pages")) {
            return;
        }
        for global_callee in [false, true] {
            // The page that differs is the caller's: call 0x3000; mov al, n; out 1, al; and again
            let caller = |n: u8| {
                let mut code = Vec::new();
                for _ in 0..6 {
                    code.push(0xe8);
                    let next = CALLEE + code.len() as u64 + 4;
                    code.extend((0x3000u64.wrapping_sub(next) as u32).to_le_bytes());
                    code.extend([0xb0, n, 0xe6, 1]);
                }
                // dec esi; jnz CALLEE
                code.extend([0xff, 0xce, 0x0f, 0x85]);
                code.extend((-(code.len() as i32) - 4).to_le_bytes());
                code.extend(END);
                code
            };
            // jmp r8
            let mut g = Guest::new(e, Mode::Long, &[0x41, 0xff, 0xe0]);
            // cmp esi, 1; jne l; xchg rbx, rdx; mov cr3, rdx; l: push rax; pop rax; ret: in both
            // trees. The return's own access finds the stack known.
            let switch = [0x83, 0xfe, 1, 0x75, 6, 0x48, 0x87, 0xd3, 0x0f, 0x22, 0xda];
            g.write(0x3000, &[&switch[..], &[0x50, 0x58, 0xc3]].concat());
            g.set(|s| s.regs.gpr[gpr::RSI] = 3);
            if global_callee {
                g.write(TABLES[0] + 3 * 8, &(0x3000 | 7 | GLOBAL).to_le_bytes());
            }
            trees(&mut g, How::Root, global_callee, 0);
            g.write(FRAMES[0], &caller(0x11));
            g.write(FRAMES[1], &caller(0x22));
            g.finish();
            let rounds = [[0x11; 6], [0x11; 6], [0x22, 0x11, 0x22, 0x11, 0x22, 0x11]];
            let want: Vec<_> = rounds.iter().flatten().map(|v| Event::Out(1, vec![*v])).collect();
            assert_eq!(g.bus.log[..18], want, "{global_callee}");
        }
    });
}

/// A supervisor has run a user's page, which reads what users may not: at level 3 the same code,
/// reached by the same kinds of jumps, faults.
#[test]
fn a_supervisors_way_is_not_a_users() {
    each_engine(|e| {
        if e.skips(Lacks::Other("supervisor pages")) {
            return;
        }
        for indirect in [false, true] {
            let mut code = Vec::new();
            calls(&mut code, indirect);
            // push USER_DATA; push rsp0; push rflags with IOPL 3; push USER_CODE64; push CODE;
            // iretq: the same code again at level 3
            code.extend([0x6a, Mode::USER_DATA as u8, 0x68, 0, 0x60, 0, 0, 0x68, 2, 0x30, 0, 0]);
            code.extend([0x6a, Mode::USER_CODE64 as u8, 0x68, 0, 0x10, 0, 0, 0x48, 0xcf]);
            let mut g = Guest::new(e, Mode::Long, &code);
            trees(&mut g, How::Root, false, 0);
            // mov al, [0x4000]; ret
            g.write(FRAMES[0], &[0x8a, 0x04, 0x25, 0, 0x40, 0, 0, 0xc3]);
            g.write(TABLES[0] + 4 * 8, &(DATA | 3).to_le_bytes());
            g.write(DATA, &[0x5a]);
            let (vector, error, state) = g.fault();
            assert_eq!(g.bus.log[..4], [0x5a; 4].map(|v| Event::Out(1, vec![v])));
            assert_eq!((vector, error), (exception::PF, Some(5)), "{indirect}");
            assert_eq!((g.return_address(error, &state), state.control.cr2), (CALLEE, DATA));
        }
    });
}

/// What a supervisor does with RFLAGS.AC set is not what it may do without.
#[test]
fn a_way_with_ac_is_not_one_without() {
    each_engine(|e| {
        if !e.cpuid().has_named("smap") {
            println!("skipped: no SMAP on {}", e.name());
            return;
        }
        if e.skips(Lacks::Other("SMAP")) {
            return;
        }
        // stac; calls; clac; and once more; with a global page of code, too
        for indirect in [false, true] {
            for global_code in [false, true] {
                let mut code = vec![0x0f, 0x01, 0xcb];
                calls(&mut code, indirect);
                code.extend([0x0f, 0x01, 0xca]);
                calls(&mut code, indirect);
                let mut g = Guest::new(e, Mode::Long, &code);
                trees(&mut g, How::Root, global_code, if global_code { GLOBAL } else { 0 });
                for page in 0..0x30u64 {
                    let at = TABLES[0] + 8 * page;
                    let user = if page == DATA / 4096 { 4 } else { 0 };
                    g.write(at, &(g.read_u64(at) & !4 | user).to_le_bytes());
                }
                g.set(|s| s.control.cr4 |= cr4::SMAP);
                // mov al, [0x4000]; ret
                g.write(FRAMES[0], &[0x8a, 0x04, 0x25, 0, 0x40, 0, 0, 0xc3]);
                g.write(DATA, &[0x5a]);
                let (vector, error, state) = g.fault();
                let case = format!("{indirect} {global_code}");
                let before = g.bus.log.len() - 1;
                assert_eq!(
                    g.bus.log[..before],
                    [0x5a; 4].map(|v| Event::Out(1, vec![v])),
                    "{case}"
                );
                assert_eq!((vector, error), (exception::PF, Some(1)), "{case}");
                assert_eq!((g.return_address(error, &state), state.control.cr2), (CALLEE, DATA));
            }
        }
    });
}
