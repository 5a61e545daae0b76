//! Instructions that on a bare processor would tell of the host, or change it.

use crate::{
    access::plain_gprs,
    guest::{self, CODE, CODE_GPA, GDT, IDT, PAGE, STACK, Space, TABLES_GPA},
    modes::{FS_BASE, GS_BASE},
};
use engine::{
    Cause, CpuView, Engine, Exit, Flow, GeneralProtection, Intercepts, Pending, Trap, VcpuHost, Vm,
};
use vcpu_state::{Regs, SegReg, VcpuState};
use x86_defs::{cr::cr4, rflags};

/// What the guest's own TSC and TSC_AUX read.
const TSC: u64 = 0x0012_3456_789a_bcde;
const AUX: u64 = 0x5eed;
/// Where instructions find room for results: a page that everybody may write.
const ROOM: u64 = 0x50_0100;

struct Host(Option<(u8, u32, u64, Regs)>);

impl VcpuHost for Host {
    fn pio_in(&mut self, _: u16, _: usize, data: &mut [u8]) -> Flow {
        data.fill(0x5a);
        Flow::Continue
    }
    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        Flow::Continue
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn rdmsr(&mut self, _: u32, _: &mut u64) -> Result<Flow, GeneralProtection> {
        Err(GeneralProtection)
    }
    fn pending(&self) -> Option<Pending> {
        None
    }
    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }
    fn tsc(&mut self) -> u64 {
        TSC
    }
    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        let Cause::Exception(e) = trap.cause else { panic!("{trap:?}") };
        self.0 = Some((e.vector, e.error.unwrap_or(0), e.payload, *cpu.regs()));
        Flow::Stop
    }
}

/// A guest that has just executed a few instructions.
struct After<'a> {
    vm: &'a dyn Vm,
    regs: Regs,
    state: VcpuState,
    /// Of the instruction, and behind it.
    rip: u64,
    end: u64,
}

impl After<'_> {
    fn room<const N: usize>(&self, at: u64) -> [u8; N] {
        let space = Space::new();
        let bytes = space.bytes(ROOM + at, N).unwrap();
        let mut out = [0; N];
        for (gpa, byte) in bytes.iter().zip(&mut out) {
            self.vm.memory().read(*gpa, std::slice::from_mut(byte)).unwrap();
        }
        out
    }

    fn word(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.room(at))
    }

    fn quad(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.room(at))
    }

    fn top(&self) -> u64 {
        let space = Space::new();
        let bytes = space.bytes(self.regs.gpr[4], 8).unwrap();
        let mut out = [0; 8];
        self.vm.memory().read(bytes[0], &mut out).unwrap();
        u64::from_le_bytes(out)
    }
}

enum Must {
    /// Completes, and this holds.
    Hold(fn(&After<'_>)),
    /// This exception with this error code.
    Raise(u8, u32),
}
use Must::{Hold, Raise};

/// Where it is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ring {
    Zero,
    Three,
    Both,
}
use Ring::{Both, Three, Zero};

type Change = fn(&mut VcpuState);

struct Case {
    name: &'static str,
    ring: Ring,
    code: &'static [u8],
    change: Change,
    must: Must,
}

const fn case(name: &'static str, ring: Ring, code: &'static [u8], must: Must) -> Case {
    Case { name, ring, code, change: |_| {}, must }
}

const fn changed(
    name: &'static str,
    ring: Ring,
    code: &'static [u8],
    change: Change,
    must: Must,
) -> Case {
    Case { name, ring, code, change, must }
}

fn umip(state: &mut VcpuState) {
    state.control.cr4 |= cr4::UMIP;
}

fn selector(after: &After<'_>, which: SegReg) -> u64 {
    u64::from(after.state.segment(which).selector)
}

fn table(after: &After<'_>, base: u64, limit: u16) {
    assert_eq!((after.word(0), after.quad(2)), (limit, base));
}

fn tsc(after: &After<'_>) {
    let value = after.regs.gpr[2] << 32 | after.regs.gpr[0];
    assert_eq!(value, TSC);
}

const VISIBLE: u64 = rflags::IF | rflags::IOPL | rflags::AC | rflags::ID | rflags::FIXED;

/// RCX is [`ROOM`]; RAX, RDX and the others are recognisable.
const CASES: &[Case] = &[
    case("sgdt", Both, &[0x0f, 0x01, 0x01], Hold(|a| table(a, GDT, 0x37))),
    case("sidt", Both, &[0x0f, 0x01, 0x09], Hold(|a| table(a, IDT, 0xfff))),
    changed("sgdt under UMIP", Three, &[0x0f, 0x01, 0x01], umip, Raise(13, 0)),
    changed("sidt under UMIP", Three, &[0x0f, 0x01, 0x09], umip, Raise(13, 0)),
    changed("sldt under UMIP", Three, &[0x48, 0x0f, 0x00, 0xc0], umip, Raise(13, 0)),
    changed("str under UMIP", Three, &[0x48, 0x0f, 0x00, 0xc8], umip, Raise(13, 0)),
    changed("smsw under UMIP", Three, &[0x48, 0x0f, 0x01, 0xe0], umip, Raise(13, 0)),
    changed("sgdt under UMIP", Zero, &[0x0f, 0x01, 0x01], umip, Hold(|a| table(a, GDT, 0x37))),
    case("sldt", Both, &[0x48, 0x0f, 0x00, 0xc0], Hold(|a| assert_eq!(a.regs.gpr[0], 0))),
    case(
        "str",
        Both,
        &[0x48, 0x0f, 0x00, 0xc8],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], selector(a, SegReg::Tr));
        }),
    ),
    case(
        "smsw",
        Both,
        &[0x48, 0x0f, 0x01, 0xe0],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], a.state.control.cr0);
        }),
    ),
    case("rdtsc", Both, &[0x0f, 0x31], Hold(tsc)),
    case(
        "rdtscp",
        Both,
        &[0x0f, 0x01, 0xf9],
        Hold(|a| {
            tsc(a);
            assert_eq!(a.regs.gpr[1], AUX);
        }),
    ),
    changed("rdtsc under TSD", Three, &[0x0f, 0x31], |s| s.control.cr4 |= cr4::TSD, Raise(13, 0)),
    changed(
        "rdtscp under TSD",
        Three,
        &[0x0f, 0x01, 0xf9],
        |s| s.control.cr4 |= cr4::TSD,
        Raise(13, 0),
    ),
    case("rdpmc", Three, &[0x0f, 0x33], Raise(13, 0)),
    case(
        "xgetbv",
        Both,
        &[0x31, 0xc9, 0x0f, 0x01, 0xd0],
        Hold(|a| {
            assert_eq!((a.regs.gpr[0], a.regs.gpr[2]), (a.state.control.xcr0, 0));
        }),
    ),
    case("xgetbv of a register that is not", Both, &[0xb1, 5, 0x0f, 0x01, 0xd0], Raise(13, 0)),
    changed(
        "xgetbv without OSXSAVE",
        Both,
        &[0x0f, 0x01, 0xd0],
        |s| s.control.cr4 &= !cr4::OSXSAVE,
        Raise(6, 0),
    ),
    case("pushfq", Both, &[0x9c], Hold(|a| assert_eq!(a.top() & VISIBLE, rflags::FIXED))),
    changed(
        "pushfq with AC, ID and IF",
        Both,
        &[0x9c],
        |s| s.regs.rflags |= rflags::AC | rflags::ID | rflags::IF,
        Hold(|a| assert_eq!(a.top() & VISIBLE, VISIBLE & !rflags::IOPL)),
    ),
    // POPFQ of all but TF, then PUSHFQ.
    case(
        "popfq in ring 3",
        Three,
        &[0x68, 0xff, 0x7e, 0x26, 0x00, 0x9d, 0x9c],
        Hold(|a| {
            assert_eq!(a.top() & VISIBLE, rflags::FIXED | rflags::AC | rflags::ID);
        }),
    ),
    case(
        "popfq in ring 0",
        Zero,
        &[0x68, 0xff, 0x7e, 0x26, 0x00, 0x9d, 0x9c],
        Hold(|a| {
            assert_eq!(a.top() & VISIBLE, VISIBLE);
        }),
    ),
    case(
        "popfq of zeros",
        Both,
        &[0x6a, 0, 0x9d, 0x9c],
        Hold(|a| {
            assert_eq!(a.top(), rflags::FIXED);
        }),
    ),
    case(
        "popfw",
        Both,
        &[0x66, 0x6a, 0, 0x66, 0x9d, 0x9c],
        Hold(|a| {
            assert_eq!(a.top(), rflags::FIXED);
        }),
    ),
    case("cli in ring 3", Three, &[0xfa], Raise(13, 0)),
    case("sti in ring 3", Three, &[0xfb], Raise(13, 0)),
    // FNINIT; FLD DWORD [RCX]; FNSTENV [RCX+0x40]
    case(
        "fnstenv",
        Both,
        &[0xdb, 0xe3, 0xd9, 0x01, 0xd9, 0x71, 0x40],
        Hold(|a| {
            pointers(u64::from(a.quad(0x40 + 12) as u32), u64::from(a.quad(0x40 + 20) as u32), a);
        }),
    ),
    case(
        "fnsave",
        Both,
        &[0xdb, 0xe3, 0xd9, 0x01, 0xdd, 0x71, 0x40],
        Hold(|a| {
            pointers(u64::from(a.quad(0x40 + 12) as u32), u64::from(a.quad(0x40 + 20) as u32), a);
        }),
    ),
    case(
        "fxsave64",
        Both,
        &[0xdb, 0xe3, 0xd9, 0x01, 0x48, 0x0f, 0xae, 0x41, 0x40],
        Hold(|a| {
            pointers(a.quad(0x40 + 8), a.quad(0x40 + 16), a);
        }),
    ),
    case(
        "fxsave64 after fninit",
        Both,
        &[0xdb, 0xe3, 0x48, 0x0f, 0xae, 0x41, 0x40],
        Hold(|a| {
            assert_eq!((a.quad(0x40 + 8), a.quad(0x40 + 16)), (0, 0));
            assert_eq!(u64::from(a.quad(0x40 + 24) as u32), 0x1f80);
        }),
    ),
    // All components are asked for, of which the guest has three.
    case(
        "xsave",
        Both,
        &[0x31, 0xc0, 0x48, 0xf7, 0xd0, 0x48, 0x89, 0xc2, 0xdb, 0xe3, 0x0f, 0xae, 0x61, 0x40],
        Hold(|a| {
            let start = 0x40 + 512;
            // Of XSTATE_BV the bits of other components stay as they were, and so do XCOMP_BV and
            // what is reserved.
            let before = guest::patterned();
            let space = Space::new();
            let old = |at: u64| {
                let gpa = space.bytes(ROOM + at, 1).unwrap()[0];
                before[(gpa - guest::DATA_GPA) as usize]
            };
            assert!(a.room::<1>(start)[0] & !7 == old(start) & !7);
            for at in start + 1..start + 64 {
                let byte = a.room::<1>(at)[0];
                assert!(byte == old(at) || byte == 0, "{at}");
            }
            for at in 0x40 + 832..0x40 + 832 + 2048 {
                assert_eq!(a.room::<1>(at)[0], old(at), "{at}");
            }
        }),
    ),
    case("fnstcw", Both, &[0xd9, 0x39], Hold(|a| assert_eq!(a.word(0), 0x40))),
    case(
        "stmxcsr",
        Both,
        &[0x0f, 0xae, 0x19],
        Hold(|a| {
            assert_eq!(a.quad(0) as u32, 0x1f80);
        }),
    ),
    case(
        "lea of rip",
        Both,
        &[0x48, 0x8d, 0x05, 0, 0, 0, 0],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], a.end);
        }),
    ),
    case("call", Both, &[0xe8, 0, 0, 0, 0], Hold(|a| assert_eq!(a.top(), a.end))),
    case(
        "call of a register",
        Both,
        &[0x48, 0x8d, 0x05, 2, 0, 0, 0, 0xff, 0xd0],
        Hold(|a| {
            assert_eq!(a.top(), a.end);
        }),
    ),
    case(
        "rdsspq",
        Both,
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], plain_gprs()[0]);
        }),
    ),
    case("rdfsbase without FSGSBASE", Both, &[0xf3, 0x48, 0x0f, 0xae, 0xc0], Raise(6, 0)),
    changed(
        "rdfsbase",
        Both,
        &[0xf3, 0x48, 0x0f, 0xae, 0xc0],
        fsgsbase,
        Hold(|a| assert_eq!(a.regs.gpr[0], FS_BASE)),
    ),
    changed(
        "rdgsbase",
        Both,
        &[0xf3, 0x48, 0x0f, 0xae, 0xc8],
        fsgsbase,
        Hold(|a| assert_eq!(a.regs.gpr[0], GS_BASE)),
    ),
    changed(
        "wrfsbase",
        Both,
        &[0xf3, 0x48, 0x0f, 0xae, 0xd1],
        fsgsbase,
        Hold(|a| assert_eq!(a.state.segment(SegReg::Fs).base, ROOM)),
    ),
    changed(
        "wrgsbase, and back",
        Both,
        &[0xf3, 0x48, 0x0f, 0xae, 0xd9, 0xf3, 0x48, 0x0f, 0xae, 0xc8],
        fsgsbase,
        Hold(|a| assert_eq!(a.regs.gpr[0], ROOM)),
    ),
    // An address that is not canonical.
    changed(
        "wrfsbase beyond",
        Both,
        &[0x31, 0xc0, 0xf9, 0x48, 0xd1, 0xd8, 0xf3, 0x48, 0x0f, 0xae, 0xd0],
        fsgsbase,
        Raise(13, 0),
    ),
    case(
        "mov from ds",
        Both,
        &[0x48, 0x8c, 0xd8],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], selector(a, SegReg::Ds));
        }),
    ),
    case(
        "mov from ss",
        Both,
        &[0x48, 0x8c, 0xd0],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], selector(a, SegReg::Ss));
        }),
    ),
    case(
        "mov from cs",
        Both,
        &[0x48, 0x8c, 0xc8],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], selector(a, SegReg::Cs));
        }),
    ),
    case("push fs", Both, &[0x0f, 0xa0], Hold(|a| assert_eq!(a.top(), selector(a, SegReg::Fs)))),
    case(
        "mov from cr0",
        Zero,
        &[0x0f, 0x20, 0xc0],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], a.state.control.cr0);
        }),
    ),
    case(
        "mov from cr3",
        Zero,
        &[0x0f, 0x20, 0xd8],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], a.state.control.cr3);
        }),
    ),
    case(
        "mov from cr4",
        Zero,
        &[0x0f, 0x20, 0xe0],
        Hold(|a| {
            assert_eq!(a.regs.gpr[0], a.state.control.cr4);
        }),
    ),
    case("mov from cr0 in ring 3", Three, &[0x0f, 0x20, 0xc0], Raise(13, 0)),
    case("mov from dr7", Zero, &[0x0f, 0x21, 0xf8], Hold(|a| assert_eq!(a.regs.gpr[0], 0x400))),
    case("mov from dr7 in ring 3", Three, &[0x0f, 0x21, 0xf8], Raise(13, 0)),
    // RDMSR of IA32_FS_BASE, and of one that is not.
    case(
        "rdmsr of fs",
        Zero,
        &[0xb9, 0, 1, 0, 0xc0, 0x0f, 0x32],
        Hold(|a| {
            assert_eq!(a.regs.gpr[2] << 32 | a.regs.gpr[0], FS_BASE);
        }),
    ),
    case("rdmsr of none", Zero, &[0xb9, 0, 0xff, 0, 0xc0, 0x0f, 0x32], Raise(13, 0)),
    case("rdmsr in ring 3", Three, &[0xb9, 0, 1, 0, 0xc0, 0x0f, 0x32], Raise(13, 0)),
    // LAR and LSL of the guest's own data segment; of none, ZF and the register stay.
    case(
        "lsl",
        Both,
        &[0xb8, 0x2b, 0, 0, 0, 0x0f, 0x03, 0xc0],
        Hold(|a| {
            assert_eq!((a.regs.gpr[0], a.regs.rflags & 0x40), (0xffff_ffff, 0x40));
        }),
    ),
    case(
        "lar",
        Both,
        &[0xb8, 0x2b, 0, 0, 0, 0x0f, 0x02, 0xc0],
        Hold(|a| {
            assert_eq!((a.regs.gpr[0] & 0xf0_ff00, a.regs.rflags & 0x40), (0xc0_f300, 0x40));
        }),
    ),
    case(
        "lar of a host's selector",
        Both,
        &[0xb8, 0x7b, 0, 0, 0, 0x0f, 0x02, 0xc0],
        Hold(|a| {
            assert_eq!((a.regs.gpr[0], a.regs.rflags & 0x40), (0x7b, 0));
        }),
    ),
    case(
        "verr of a host's selector",
        Both,
        &[0xb8, 0x7b, 0, 0, 0, 0x0f, 0x00, 0xe0],
        Hold(|a| {
            assert_eq!(a.regs.rflags & 0x40, 0);
        }),
    ),
    case("loading a host's selector", Both, &[0xb8, 0x7b, 0, 0, 0, 0x8e, 0xd8], Raise(13, 0x78)),
    case("hlt in ring 3", Three, &[0xf4], Raise(13, 0)),
    case("in in ring 3", Three, &[0xe4, 0x80], Raise(13, 0)),
    case("out in ring 3", Three, &[0xe6, 0x80], Raise(13, 0)),
    case("invd in ring 3", Three, &[0x0f, 0x08], Raise(13, 0)),
    case("wbinvd in ring 3", Three, &[0x0f, 0x09], Raise(13, 0)),
    case("lgdt in ring 3", Three, &[0x0f, 0x01, 0x11], Raise(13, 0)),
    case("lidt in ring 3", Three, &[0x0f, 0x01, 0x19], Raise(13, 0)),
    case("ltr in ring 3", Three, &[0x0f, 0x00, 0xd8], Raise(13, 0)),
    case("swapgs in ring 3", Three, &[0x0f, 0x01, 0xf8], Raise(13, 0)),
    case("sysretq in ring 3", Three, &[0x48, 0x0f, 0x07], Raise(13, 0)),
    case("int 0x80 in ring 3", Three, &[0xcd, 0x80], Raise(13, 0x80 * 8 + 2)),
    case("vmcall", Both, &[0x0f, 0x01, 0xc1], Raise(6, 0)),
    case("vmxon", Both, &[0xf3, 0x0f, 0xc7, 0x31], Raise(6, 0)),
    case("vmrun", Both, &[0x0f, 0x01, 0xd8], Raise(6, 0)),
    case("xbegin", Both, &[0xc7, 0xf8, 0, 0, 0, 0], Raise(6, 0)),
    case("encls", Both, &[0x0f, 0x01, 0xcf], Raise(6, 0)),
    case("rdpkru", Both, &[0x31, 0xc9, 0x0f, 0x01, 0xee], Raise(6, 0)),
    case("tpause", Both, &[0x66, 0x0f, 0xae, 0xf0], Raise(6, 0)),
    case("an AVX-512 load", Both, &[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x01], Raise(6, 0)),
    case("kmovq", Both, &[0xc4, 0xe1, 0xf8, 0x90, 0x01], Raise(6, 0)),
];

fn fsgsbase(state: &mut VcpuState) {
    state.control.cr4 |= cr4::FSGSBASE;
}

/// The last x87 instruction's address and its operand's are the guest's, or nothing.
fn pointers(code: u64, data: u64, after: &After<'_>) {
    assert!(code == after.rip + 2 || code == 0, "FIP {code:#x}");
    assert!(data == ROOM || data == 0, "FDP {data:#x}");
}

pub fn attempt_all() {
    let space = Space::new();
    let intercepts = Intercepts { exceptions: !0, ..Intercepts::default() };
    for (how, engine) in guest::engines() {
        let vm = guest::vm(&engine, &space, intercepts);
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut slot = 0;
        for case in CASES {
            for user in [false, true] {
                if case.ring == if user { Zero } else { Three } {
                    continue;
                }
                let what = format!("{how}, ring {}: {}", if user { 3 } else { 0 }, case.name);
                vm.memory().write(guest::DATA_GPA, &guest::patterned()).unwrap();
                let rip = CODE + slot + 16;
                let code = [&[0x90; 16], case.code, &[0x0f, 0x0b]].concat();
                vm.memory().write(CODE_GPA + slot, &code).unwrap();
                slot += 64;
                let mut state = guest::state(user);
                state.regs.gpr = plain_gprs();
                (state.regs.gpr[1], state.regs.rip) = (ROOM, CODE + slot - 64);
                state.msrs.set(x86_defs::msr::TSC_AUX, AUX);
                (case.change)(&mut state);
                // Twice: the second time, everything is known.
                for _ in 0..2 {
                    vcpu.set_state(&state).unwrap();
                    let mut host = Host(None);
                    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped, "{what}");
                    let (vector, error, _, regs) = host.0.unwrap();
                    let end = rip + case.code.len() as u64;
                    let ended = vector == 6 && regs.rip == end;
                    match case.must {
                        Raise(v, e) => assert_eq!((vector, error), (v, e), "{what}"),
                        Hold(_) => assert!(ended, "{what}: {vector} {regs:x?}"),
                    }
                    if let Hold(holds) = case.must {
                        println!("{what}");
                        let state = vcpu.state().unwrap();
                        holds(&After { vm: &*vm, regs, state, rip, end });
                    }
                }
            }
        }
        cpuid(&engine, &*vm);
        gates(&*vm);
        println!("{how}: {} cases", CASES.len());
    }
}

/// CPUID says what the VM's table says, whatever the host is.
fn cpuid(engine: &engine_translate::Translate, vm: &dyn Vm) {
    let mut vcpu = vm.create_vcpu(1).unwrap();
    // CPUID; UD2
    let at = CODE_GPA + 0x20_0000;
    vm.memory().write(at, &[&[0x90; 16][..], &[0x0f, 0xa2, 0x0f, 0x0b]].concat()).unwrap();
    let leaves = (0..0x20).chain(0x4000_0000..0x4000_0003).chain(0x8000_0000..0x8000_0022);
    for leaf in leaves.chain([0x1234_5678, u32::MAX]) {
        for subleaf in 0..3 {
            let mut state = guest::state(true);
            state.regs.rip = CODE + 0x20_0000;
            (state.regs.gpr[0], state.regs.gpr[1]) = (leaf.into(), subleaf.into());
            vcpu.set_state(&state).unwrap();
            let mut host = Host(None);
            vcpu.run(&mut host).unwrap();
            let regs = host.0.unwrap().3;
            let [a, b, c, d] = engine.caps().cpuid.lookup(leaf, subleaf).map(u64::from);
            let got = [regs.gpr[0], regs.gpr[3], regs.gpr[1], regs.gpr[2]];
            let dynamic = matches!(leaf, 1 | 7 | 0xb | 0xd | 0x1f);
            // CR4.OSXSAVE and the like show there, and the vCPU's number.
            let same = |(got, table): (&u64, u64)| *got == table || dynamic;
            assert!(got.iter().zip([a, b, c, d]).all(same), "{leaf:#x} {got:x?}");
            if leaf == 7 && subleaf == 0 {
                assert_eq!(got[1], b);
            }
        }
    }
}

/// Entries into the guest's kernel save and load the guest's values.
fn gates(vm: &dyn Vm) {
    let mut vcpu = vm.create_vcpu(2).unwrap();
    let kernel = CODE + 0x21_0000;
    // UD2
    vm.memory().write(CODE_GPA + 0x21_0000, &[0x0f, 0x0b]).unwrap();
    let low = kernel & 0xffff | 8 << 16 | 0xee00 << 32 | (kernel >> 16 & 0xffff) << 48;
    let gate = [low.to_le_bytes(), (kernel >> 32).to_le_bytes()].concat();
    vm.memory().write(TABLES_GPA + PAGE + 0x80 * 16, &gate).unwrap();
    // The stack of ring 0: bytes 4 to 11 of the TSS, which is behind the GDT.
    vm.memory().write(TABLES_GPA + 0x800 + 4, &(STACK - 256).to_le_bytes()).unwrap();
    let setups: [(&str, &[u8]); 3] =
        [("int", &[0xcd, 0x80]), ("syscall", &[0x0f, 0x05]), ("sysenter", &[0x0f, 0x34])];
    for (n, (name, code)) in setups.into_iter().enumerate() {
        let at = 0x22_0000 + 64 * n as u64;
        vm.memory().write(CODE_GPA + at, &[&[0x90; 16], code].concat()).unwrap();
        let next = CODE + at + 18;
        let mut state = guest::state(true);
        state.regs.rip = CODE + at;
        state.regs.rflags |= rflags::ID;
        state.msrs.set(x86_defs::msr::LSTAR, kernel);
        state.msrs.set(x86_defs::msr::STAR, 8 << 32 | 0x20 << 48);
        state.msrs.set(x86_defs::msr::IA32_SYSENTER_CS, 8);
        state.msrs.set(x86_defs::msr::IA32_SYSENTER_EIP, kernel);
        state.msrs.set(x86_defs::msr::IA32_SYSENTER_ESP, STACK - 128);
        vcpu.set_state(&state).unwrap();
        let mut host = Host(None);
        vcpu.run(&mut host).unwrap();
        let (vector, _, _, regs) = host.0.unwrap();
        // The guest's is of the host's vendor.
        if name == "sysenter" && cpu_model::is_amd(&cpu_model::host_table()) {
            // It is not there in 64-bit mode (APM volume 3, SYSENTER).
            assert_eq!((vector, regs.rip), (6, next - 2));
            continue;
        }
        assert_eq!((vector, regs.rip), (6, kernel), "{name}");
        match name {
            "syscall" => assert_eq!((regs.gpr[1], regs.gpr[11]), (next, state.regs.rflags)),
            "sysenter" => assert_eq!(regs.gpr[4], STACK - 128),
            _ => {
                let space = Space::new();
                let frame = space.bytes(regs.gpr[4], 40).unwrap();
                let mut bytes = [0; 40];
                vm.memory().read(frame[0], &mut bytes).unwrap();
                let word = |n: usize| u64::from_le_bytes(bytes[8 * n..][..8].try_into().unwrap());
                let pushed = [word(0), word(1), word(2), word(3), word(4)];
                let flags = state.regs.rflags;
                assert_eq!(pushed, [next, 0x33, flags, state.regs.gpr[4], 0x2b]);
            }
        }
    }
}
