//! Loops inside what is decoded and translated as one block, which was entered above them.

use conformance::{CODE, Guest, Mode, UnderTest, translated};
use engine::{Exit, VmConfig};
use x86_defs::gpr;

/// Loops become hot after so many turns.
const HOT: [u32; 3] = [0, 5, 32];

fn guest(engine: &UnderTest, code: &[u8]) -> Guest {
    Guest::with(engine, Mode::Long, code, VmConfig { counted: true, ..VmConfig::default() })
}

/// Wherever the budget ends, as many instructions are retired as it says.
#[test]
fn budgets_end_inside_loops() {
    // mov ecx, 45; l: add eax, ecx; inc ebx; dec ecx; jnz l; mov edx, eax
    let code = [0xb9, 45, 0, 0, 0, 0x01, 0xc8, 0xff, 0xc3, 0xff, 0xc9, 0x75, 0xf8, 0x89, 0xc2];
    for hot in HOT {
        let engine = translated(hot).unwrap();
        for step in [1, 2, 3, 5, 7, 17, 50, 61, 182] {
            let mut g = guest(&engine, &code);
            for n in (0..182).step_by(step) {
                let done = (step as u64).min(182 - n);
                assert_eq!(g.cpu.run_for(done, &mut g.bus).unwrap(), Exit::Retired);
                let regs = g.state().regs;
                let at = n + done;
                let (turns, rest) = ((at - 1) / 4, (at - 1) % 4);
                if at == 182 {
                    assert_eq!((regs.rip, regs.gpr[gpr::RDX]), (CODE + 15, 45 * 46 / 2));
                    continue;
                }
                let sum = |to: u64| (0..to).map(|turn| 45 - turn).sum::<u64>();
                let rip = CODE + [5, 7, 9, 11][rest as usize] + if at == 181 { 8 } else { 0 };
                assert_eq!(
                    (regs.rip, regs.gpr[gpr::RAX], regs.gpr[gpr::RBX]),
                    (rip, sum(turns + u64::from(rest > 0)), turns + u64::from(rest > 1)),
                    "after {at} in steps of {step}, hot after {hot}"
                );
            }
        }
    }
}

/// What a turn has written is what the next one executes.
#[test]
fn loops_that_write_themselves() {
    // mov ecx, 50; l: mov eax, 0; add ebx, eax; inc byte [the 0]; dec ecx; jnz l
    let code = [
        0xb9, 50, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0x01, 0xc3, 0xfe, 0x05, 0xf4, 0xff, 0xff, 0xff, 0xff,
        0xc9, 0x75, 0xef,
    ];
    for hot in HOT {
        let engine = translated(hot).unwrap();
        let mut g = guest(&engine, &code);
        assert_eq!(g.cpu.run_for(1 + 50 * 5, &mut g.bus).unwrap(), Exit::Retired);
        let regs = g.state().regs;
        assert_eq!(
            (regs.rip, regs.gpr[gpr::RCX], regs.gpr[gpr::RBX]),
            (CODE + 22, 0, 49 * 50 / 2),
            "{hot}"
        );
    }
}
