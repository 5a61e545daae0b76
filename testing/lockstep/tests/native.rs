//! The native executor: what a known instruction does, and how cases that go wrong end.

use lockstep::{Case, DIED, Mode, Native, Outcome, TIMED_OUT, Written, layout};
use x86_defs::{exception, gpr, xsave};

fn run(mode: Mode, cases: &[Case]) -> Vec<Outcome> {
    let background = Box::new([0x5555; layout::WORDS]);
    Native::new(mode).unwrap().run(&background, cases).unwrap()
}

#[test]
fn an_addition_to_memory() {
    // add [rbx+8], rax
    let mut case = Case::new(&[0x48, 0x01, 0x43, 0x08], 100);
    case.gpr[gpr::RAX] = u64::MAX;
    case.gpr[gpr::RBX] = layout::DATA.linear;
    let out = &run(Mode::Long, &[case])[0];
    assert_eq!((out.vector, out.rip), (3, case.rip(Mode::Long) + 5));
    assert_eq!(out.written(), [Written { word: 1, value: 0x5554 }]);
    assert_eq!(out.rflags & 1, 1);
}

#[test]
fn every_register_goes_in_and_comes_out() {
    for mode in Mode::ALL {
        let mut case = Case::new(&[0x90], 0);
        for (n, byte) in case.fpu[xsave::ST..xsave::XMM + 256].iter_mut().enumerate() {
            *byte = n as u8;
        }
        for st in 0..8 {
            case.fpu[xsave::ST + 16 * st + 10..][..6].fill(0);
        }
        case.fpu[xsave::YMM_HI..].fill(0x77);
        case.fpu[xsave::FTW] = 0xf0;
        for n in 0..mode.registers() {
            case.gpr[n] = 0x1234_5678 + n as u64;
        }
        let out = &run(mode, &[case])[0];
        assert_eq!((out.vector, out.rip), (3, case.rip(mode) + 2), "{mode:?}");
        let mut registers = out.gpr;
        if mode.segmented() {
            // Not defined: see `compare`.
            registers[gpr::RSP] &= 0xffff_ffff;
        }
        assert_eq!(registers[..mode.registers()], case.gpr[..mode.registers()]);
        assert_eq!(out.fpu[xsave::ST..416], case.fpu[xsave::ST..416]);
        assert_eq!(out.fpu[xsave::YMM_HI..], case.fpu[xsave::YMM_HI..]);
        assert_eq!(out.fpu[xsave::FTW], 0xf0);
    }
}

#[test]
fn faults_tell_vector_error_code_and_address() {
    let at = layout::READ_ONLY.linear;
    // mov [rbx], al
    let mut write = Case::new(&[0x88, 0x03], 0);
    write.gpr[gpr::RBX] = at;
    let mut absent = write;
    absent.gpr[gpr::RBX] = layout::STACK.end();
    // div bl; ud2; jmp rbx
    let divide = Case::new(&[0xf6, 0xf3], 0);
    let undefined = Case::new(&[0x0f, 0x0b], 0);
    let mut jump = Case::new(&[0xff, 0xe3], 0);
    jump.gpr[gpr::RBX] = at;
    let mut high = write;
    high.gpr[gpr::RBX] = 1 << 63;
    let out = run(Mode::Long, &[write, absent, divide, undefined, jump, high]);
    let seen: Vec<_> = out.iter().map(|o| (o.vector as u8, o.error, o.cr2)).collect();
    let end = layout::STACK.end();
    use exception::*;
    let expected = [(PF, 7, at), (PF, 6, end), (DE, 0, 0), (UD, 0, 0), (PF, 0x15, at), (GP, 0, 0)];
    assert_eq!(seen, expected);
}

#[test]
fn bases_of_fs_and_gs() {
    // mov rax, fs:[rbx]
    let mut case = Case::new(&[0x64, 0x48, 0x8b, 0x03], 0);
    case.fs_base = layout::DATA.linear;
    case.gs_base = 0x1234;
    if Native::new(Mode::Long).unwrap().has_bases() {
        let out = &run(Mode::Long, &[case])[0];
        assert_eq!((out.vector, out.gpr[gpr::RAX]), (3, 0x5555));
        assert_eq!((out.fs_base, out.gs_base), (case.fs_base, case.gs_base));
    }
}

#[test]
fn hangs_and_deaths_cost_one_case_each() {
    let fine = Case::new(&[0x90], 0);
    // jmp $
    let hang = Case::new(&[0xeb, 0xfe], 0);
    // syscall, with RAX of getpid
    let mut call = Case::new(&[0x0f, 0x05], 0);
    call.gpr[gpr::RAX] = 39;
    for mode in Mode::ALL {
        let out = run(mode, &[fine, hang, fine, call, fine]);
        let seen: Vec<_> = out.iter().map(|o| o.vector).collect();
        let fourth = if mode == Mode::Long { DIED } else { seen[3] };
        assert_eq!(seen, [3, TIMED_OUT, 3, fourth, 3], "{mode:?}");
    }
}
