//! Programs near the end of their half of the address space, where branches may lead to what is
//! not canonical (SDM volume 1, 3.3.7.1; volume 2, CALL, JMP).

use super::*;
use x86_defs::{exception, gpr::RBX};

/// The first address that is not canonical.
const END: u64 = 1 << 47;
const GIB: u64 = 1 << 30;
/// How far before the end a page of code is.
const DISTANCES: [u64; 6] = [PAGE, 2 * PAGE, 32 << 20, 80 << 20, GIB, 3 * GIB];
const ROUNDS: u32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Branch {
    Jump,
    Call,
    /// Taken in every other round.
    Conditional,
}

/// What is at `at`: counts in R8, and goes to `target`, which returns; or returns itself.
fn branching(branch: Branch, at: u64, target: u64) -> Vec<u8> {
    assemble(64, at, |a| {
        a.inc(r8)?;
        a.test(ebp, 1)?;
        match branch {
            Branch::Jump => a.jmp(target)?,
            Branch::Call => a.call(target)?,
            Branch::Conditional => a.jnz(target)?,
        }
        a.ret()
    })
}

/// Calls RBX again and again.
fn calls(a: &mut CodeAssembler, _: Trap) -> Result<(), IcedError> {
    let (mut again, mut after) = (a.create_label(), a.create_label());
    a.lea(r14, ptr(after))?;
    a.mov(ebp, ROUNDS)?;
    a.mov(rdx, rsp)?;
    a.set_label(&mut again)?;
    a.call(rbx)?;
    a.set_label(&mut after)?;
    a.mov(rsp, rdx)?;
    a.dec(ebp)?;
    a.jnz(again)?;
    done(a)
}

/// Counts in R15, adds up RIP in R13 and RSP in R12, and goes on at R14.
fn note(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(rsp, 8)?;
    a.add(r13, qword_ptr(rsp))?;
    a.add(r12, qword_ptr(rsp + 24))?;
    a.inc(r15)?;
    a.mov(qword_ptr(rsp), r14)?;
    a.iretq()
}

#[test]
fn branches_to_what_is_not_canonical_fault_before_they_do_anything() {
    let kinds = [Branch::Jump, Branch::Call, Branch::Conditional];
    for (branch, distance) in kinds.into_iter().flat_map(|b| DISTANCES.map(|d| (b, d))) {
        for reach in [GIB as i64 * 2 - 0x1_0000, 1 << 27, 1 << 25, -(GIB as i64), -0x4000] {
            let at = END - distance;
            let target = at.wrapping_add_signed(reach);
            let code = branching(branch, at, target);
            let prepare = |vm: &Arc<dyn Vm>, state: &mut VcpuState| {
                gate(vm, exception::GP.into(), KERNEL + 0x800, 0);
                map(vm, ROOT, at, frame(1) | ALL);
                vm.memory().write(frame(1) + at % PAGE, &code).unwrap();
                if target < END {
                    map(vm, ROOT, target, frame(2) | ALL);
                }
                // INC R9; RET.
                let there = [0x49, 0xff, 0xc1, 0xc3];
                vm.memory().write(frame(2) + target % PAGE, &there).unwrap();
                state.regs.gpr[RBX] = at;
            };
            let program =
                Program { user: &calls, kernel: &nothing, fault: &note, prepare: &prepare };
            let case = format!("{branch:?} at -{distance:x}, by {reach:x}");
            let left = program.run_anyhow(Trap::Interrupt);
            let rounds = u64::from(ROUNDS);
            let taken = if branch == Branch::Conditional { rounds / 2 } else { rounds };
            assert_eq!(left.gpr[8], rounds, "{case}");
            let faults = if target < END { 0 } else { taken };
            assert_eq!((left.gpr[9], left.gpr[15]), (taken - faults, faults), "{case}");
            // Behind INC and TEST; and nothing but the return address was pushed.
            assert_eq!(left.gpr[13], faults.wrapping_mul(at + 9), "{case}");
            assert_eq!(left.gpr[12], faults.wrapping_mul(left.gpr[2] - 8), "{case}");
        }
    }
}

/// As a vDSO is.
#[test]
fn code_near_the_end_of_a_half_is_translated() {
    let at = END - GIB + 0x100;
    let vm = vm_as(&translating(), VmConfig::default());
    let mut vcpu = vm.create_vcpu(0).unwrap();
    furnish(&vm);
    map(&vm, ROOT, at & !(PAGE - 1), frame(1) | ALL);
    vm.memory().write(frame(1) + 0x100, &branching(Branch::Conditional, at, at + 0x200)).unwrap();
    vm.memory().write(frame(1) + 0x300, &[0xc3]).unwrap();
    vm.memory().write(CODE, &assemble(64, CODE, |a| calls(a, Trap::Interrupt))).unwrap();
    vm.memory().write(KERNEL + 0xf00, &[0xf4]).unwrap();
    let mut state = user();
    state.regs.gpr[RBX] = at;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.run(&mut Host::default()).unwrap(), Exit::Idle);
    assert_eq!(vcpu.state().unwrap().regs.gpr[8], u64::from(ROUNDS));
    // Each call would look for what is not there.
    let jumps = vcpu.stats().get("exits by cause", "jump not in the table");
    assert!(matches!(jumps, Some(Value::Count(0..10))), "{jumps:?}");
}
