//! Programs in ring 3 under a kernel that changes what they see: pages, rights and code, with
//! and without windows.

mod code;
mod edges;
mod pages;
mod shootdown;
mod spaces;

use super::support::*;
use crate::{Translate, Translation, Windowing};
use engine::{Engine, Exit, Vm, VmConfig, stats::Value};
use iced_x86::{IcedError, code_asm::*};
use std::sync::Arc;
use vcpu_state::{SegReg, Segment, VcpuState};
use x86_defs::{cr::cr4, msr, paging, rflags};

/// Where a program's data, what is near its stack, and its stack are: in 4 GiB of their own each,
/// and with places of their own in TLBs.
pub const HEAP: u64 = 0x5555_4000_0000;
pub const NEAR: u64 = 0x7ff1_2010_0000;
const USER_STACK: u64 = 0x7fff_4020_0000;
/// Physical pages that programs have, each of which begins with its number.
pub const FRAMES: u64 = 0x10_0000;
pub const PAGE: u64 = 0x1000;
pub const NUMBER: u64 = 256;
/// The physical address of a frame.
pub const fn frame(number: u64) -> u64 {
    FRAMES + number * PAGE
}

/// The kernel's code.
const KERNEL: u64 = CODE + 0x2000;
const TSS: u64 = GDT + 0x800;
/// The page tables of the first address space, and of another.
pub const ROOT: u64 = 0x8_0000;
pub const OTHER_ROOT: u64 = 0x8_8000;
/// Tables below them.
const LOWER: u64 = 0x9_0000;
/// What a program's pages are with all rights.
pub const ALL: u64 = paging::P | paging::RW | paging::US;

pub type Code<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// How a program calls the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// INT and IRET.
    Interrupt,
    /// SYSCALL and SYSRET, for which RCX and R11 are not kept.
    Call,
}

impl Trap {
    pub fn call(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        match self {
            Self::Interrupt => a.int(0x40),
            Self::Call => a.syscall(),
        }
    }

    fn back(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        match self {
            Self::Interrupt => a.iretq(),
            Self::Call => a.sysretq(),
        }
    }
}

/// Ends a program.
pub fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.int(0x41)
}

/// Counts in R15, leaves the error code in R12 and the address in R13, and goes on at R14.
pub fn skip(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pop(r12)?;
    a.mov(r13, cr2)?;
    a.inc(r15)?;
    a.mov(qword_ptr(rsp), r14)?;
    a.iretq()
}

/// A program and its kernel.
pub struct Program<'a> {
    pub user: &'a dyn Fn(&mut CodeAssembler, Trap) -> Result<(), IcedError>,
    /// What a call does.
    pub kernel: Code<'a>,
    /// The handler of page faults.
    pub fault: Code<'a>,
    /// Maps pages, and sets registers.
    pub prepare: &'a dyn Fn(&Arc<dyn Vm>, &mut VcpuState),
}

/// A machine that executes programs in one of the ways that there are.
pub struct Machine {
    pub name: String,
    pub guest: Guest,
}

/// What a program left: registers, and the frames.
#[derive(PartialEq)]
pub struct Left {
    pub gpr: [u64; 16],
    pub frames: Vec<u8>,
}

impl Left {
    pub fn word(&self, frame: u64, at: u64) -> u32 {
        let at = (frame * PAGE + at) as usize;
        u32::from_le_bytes(self.frames[at..at + 4].try_into().unwrap())
    }
}

/// Interpreted; translated at once; with windows at once, when hot, and without a count of what
/// retires.
fn engines() -> Vec<(&'static str, Translate, bool)> {
    let how = |hot, windows| {
        let all = Translation { code_memory: 1 << 20, hot, windows, ..Translation::default() };
        Translate::new().unwrap().with_translation(all)
    };
    vec![
        ("interpreted", Translate::new().unwrap(), true),
        ("translated", how(0, Windowing::Off), true),
        ("windows", how(0, Windowing::Eager), true),
        ("windows when hot", how(5, Windowing::Eager), false),
        ("windows, not counted", how(0, Windowing::Eager), false),
    ]
}

impl Program<'_> {
    /// Runs it in all ways until it is done, and returns what all of them left.
    pub fn run(&self, trap: Trap) -> Left {
        self.run_with(trap, |machine| {
            assert_eq!(machine.guest.run(), Exit::Idle, "{}", machine.name)
        })
    }

    pub fn run_with(&self, trap: Trap, run: impl Fn(&mut Machine)) -> Left {
        self.compare(trap, |machine| {
            run(machine);
            // Where windows are to be used, they were.
            let shown = machine.guest.vcpu.stats().get("windows", "pages shown");
            let none = matches!(shown, None | Some(Value::Count(0)));
            assert_eq!(none, !machine.name.starts_with("windows"), "{}: {shown:?}", machine.name);
        })
    }

    /// Runs it to its end in all ways, whether any uses windows or not.
    pub fn run_anyhow(&self, trap: Trap) -> Left {
        self.compare(trap, |machine| assert_eq!(machine.guest.run(), Exit::Idle))
    }

    fn compare(&self, trap: Trap, run: impl Fn(&mut Machine)) -> Left {
        let mut first = None;
        for (name, engine, counted) in engines() {
            let mut machine = self.machine(name, &engine, trap, counted);
            run(&mut machine);
            let left = machine.left();
            let first = first.get_or_insert_with(|| machine.left());
            let name = &machine.name;
            assert_eq!(left.gpr, first.gpr, "{name}, {trap:?}");
            assert!(left == *first, "{name}, {trap:?}: memory differs");
        }
        first.unwrap()
    }

    fn machine(&self, name: &str, engine: &Translate, trap: Trap, counted: bool) -> Machine {
        let cpuid = engine.caps().cpuid.clone();
        let vm = vm_as(engine, VmConfig { counted, cpuid, ..VmConfig::default() });
        let mut state = user();
        furnish(&vm);
        (self.prepare)(&vm, &mut state);
        let kernel = assemble(64, KERNEL, |a| {
            (self.kernel)(a)?;
            trap.back(a)
        });
        let fault = assemble(64, KERNEL + 0x800, |a| (self.fault)(a));
        let end = assemble(64, KERNEL + 0xf00, |a| a.hlt());
        assert!(kernel.len() < 0x800 && fault.len() < 0x700);
        let user = assemble(64, CODE, |a| (self.user)(a, trap));
        assert!(user.len() < 0x1000);
        for (at, code) in
            [(KERNEL, kernel), (KERNEL + 0x800, fault), (KERNEL + 0xf00, end), (CODE, user)]
        {
            vm.memory().write(at, &code).unwrap();
        }
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_state(&state).unwrap();
        Machine { name: name.to_owned(), guest: Guest { vm, vcpu, host: Host::default() } }
    }
}

impl Machine {
    fn left(&mut self) -> Left {
        let mut frames = vec![0; (NUMBER * PAGE) as usize];
        self.guest.vm.memory().read(FRAMES, &mut frames).unwrap();
        Left { gpr: self.guest.gpr(), frames }
    }
}

/// What a kernel does that has nothing to do.
pub fn nothing(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}

/// Descriptors, gates and a stack for programs.
pub fn furnish(vm: &Arc<dyn Vm>) {
    let put = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).unwrap();
    put(GDT + 0x28, 0x00cf_f300_0000_ffff);
    put(GDT + 0x30, 0x00af_fb00_0000_ffff);
    put(TSS + 4, STACK);
    // No map of I/O permissions.
    put(TSS + 0x60, 0x68 << 48);
    gate(vm, 14, KERNEL + 0x800, 0);
    gate(vm, 0x40, KERNEL, 3);
    gate(vm, 0x41, KERNEL + 0xf00, 3);
    for n in 0..NUMBER {
        put(frame(n), n);
    }
    // The other address space has all that the first one has now.
    let mut word = [0; 8];
    vm.memory().read(ROOT, &mut word).unwrap();
    vm.memory().write(OTHER_ROOT, &word).unwrap();
    put(LOWER, 0);
    for root in [ROOT, OTHER_ROOT] {
        map(vm, root, USER_STACK, frame(NUMBER - 1) | ALL);
    }
}

/// Maps a page by this entry, and returns where the entry is.
pub fn map(vm: &Arc<dyn Vm>, root: u64, linear: u64, entry: u64) -> u64 {
    map_at(vm, root, linear, 12, entry)
}

/// Like [`map`], on the level at which this shift selects the entry.
pub fn map_at(vm: &Arc<dyn Vm>, root: u64, linear: u64, shift: u32, entry: u64) -> u64 {
    let put = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).unwrap();
    let get = |at: u64| {
        let mut word = [0; 8];
        vm.memory().read(at, &mut word).unwrap();
        u64::from_le_bytes(word)
    };
    let mut table = root;
    for level in [39, 30, 21, 12].into_iter().filter(|level| *level > shift) {
        let at = table + (linear >> level & 511) * 8;
        if get(at) == 0 {
            // The number of tables is in a word of the first page, which no table uses.
            let number = get(LOWER) + 1;
            put(LOWER, number);
            assert!(LOWER + number * PAGE < FRAMES);
            put(at, (LOWER + number * PAGE) | ALL);
        }
        table = get(at) & !(PAGE - 1);
    }
    let at = table + (linear >> shift & 511) * 8;
    put(at, entry);
    at
}

/// At the beginning of a program, in ring 3, which may use ports.
pub fn user() -> VcpuState {
    let mut state = long_mode();
    let flat = Segment { selector: 0x2b, base: 0, limit: !0, attr: 0xc0f3 };
    state.segments.reg[..6].fill(flat);
    *state.segment_mut(SegReg::Cs) = Segment { selector: 0x33, attr: 0xa0fb, ..flat };
    let task = Segment { selector: 0x40, base: TSS, limit: 0x67, attr: 0x8b };
    *state.segment_mut(SegReg::Tr) = task;
    state.segments.gdtr.limit = 0x37;
    state.control.cr4 |= cr4::PGE;
    state.msrs.set(msr::STAR, 0x20 << 48 | 8 << 32);
    state.msrs.set(msr::LSTAR, KERNEL);
    state.msrs.set(msr::SFMASK, 0x4_7700);
    state.regs.rflags |= rflags::IOPL;
    state.regs.gpr[4] = USER_STACK + PAGE;
    state
}

pub fn traps() -> [Trap; 2] {
    [Trap::Interrupt, Trap::Call]
}
