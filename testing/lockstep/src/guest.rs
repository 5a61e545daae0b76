//! An engine as an executor of cases: a guest with the same linear addresses, whose exceptions
//! arrive at handlers that halt.

use crate::{
    case::{Background, Case, ENGINE, Mode, Outcome, TIMED_OUT},
    layout::{AREAS, Area, CODE, FILL, MEMORY, PAGE, WORDS},
    segments::{self, USER_CS, USER_DS, USER32_CS},
    warm,
};
use engine::{Engine, Exit, Flow, Pending, Vcpu, VcpuHost, Vm, VmConfig};
use guest_mem::{Change, Memfd, Slot};
use std::sync::Arc;
use vcpu_state::{SegReg, Segment, Segments, Table, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer},
    exception, paging,
    segment::{ATTR_DB, ATTR_G, ATTR_L, Descriptor},
    xsave,
};

/// Where the guest's memory is mapped for the supervisor, all of it.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const LEN: u64 = CODE_AT + CODE_PLACES * CODE.len() as u64;
// Guest-physical addresses.
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
/// One HLT per vector, 16 bytes apart.
const HANDLERS: u64 = 0x4000;
const HANDLER_STACK: u64 = 0x7000;
const AREAS_AT: u64 = 0x10_000;
const WARM_AT: u64 = 0x18_000;
const TABLES: u64 = 0x20_000;
/// Each case has its code elsewhere: an engine may treat pages otherwise in which code is
/// replaced again and again.
const CODE_AT: u64 = 0x40_000;
const CODE_PLACES: u64 = 128;

const KERNEL_CS: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x40;

/// Instructions that a case may take: the longest has a few thousand iterations of a REP.
const BUDGET: u64 = 20_000;

/// Runs cases under an engine.
pub struct Guest {
    mode: Mode,
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    start: VcpuState,
    /// What memory holds now, as the last case left it and put back.
    background: Box<Background>,
    seen: Vec<u8>,
    warm: bool,
    /// Cases so far.
    number: u64,
    /// Where the page tables name the first page of code.
    code_entry: u64,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Guest {
    pub fn new(engine: &dyn Engine, mode: Mode) -> Result<Self, engine::Error> {
        let config = VmConfig {
            counted: true,
            cpuid: engine.caps().cpuid.clone(),
            memory: LEN,
            ..VmConfig::default()
        };
        let vm = engine.create_vm(&config)?;
        let mem =
            Memfd::new(LEN).map_err(|source| engine::Error::Os { call: "memfd_create", source })?;
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: LEN, writable: true };
        vm.set_layout(&[Change::Map(slot)])?;
        let code_entry = furnish(&vm)?;
        let vcpu = vm.create_vcpu(0)?;
        Ok(Self {
            mode,
            vm,
            vcpu,
            start: start(mode),
            background: Box::new([0; WORDS]),
            seen: vec![0; MEMORY],
            warm: false,
            number: 0,
            code_entry,
        })
    }

    /// Cases begin with their memory known, see [`warm`]. In 64-bit mode.
    #[must_use]
    pub fn warm(mut self) -> Self {
        self.warm = self.mode == Mode::Long;
        self
    }

    pub fn stats(&self) -> engine::Stats {
        self.vcpu.stats()
    }

    /// Runs each case from `background`.
    pub fn run(
        &mut self,
        background: &Background,
        cases: &[Case],
    ) -> Result<Vec<Outcome>, engine::Error> {
        let bytes: Vec<u8> = background.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.vm.memory().write(AREAS_AT, &bytes)?;
        self.background.copy_from_slice(background);
        cases.iter().map(|case| self.one(case)).collect()
    }

    fn one(&mut self, case: &Case) -> Result<Outcome, engine::Error> {
        let mem = self.vm.memory();
        let code = case.mapped_bytes();
        let place = CODE_AT + self.number % CODE_PLACES * CODE.len() as u64;
        self.number += 1;
        for page in 0..CODE.pages as u64 {
            let entry = (place + page * PAGE as u64) | CODE_RIGHTS;
            mem.write(self.code_entry + 8 * page, &entry.to_le_bytes())?;
        }
        let code_at = place + u64::from(case.at);
        mem.write(code_at, code)?;
        let state = &mut self.start;
        state.regs.gpr = case.gpr;
        (state.regs.rip, state.regs.rflags) = (case.rip(self.mode), case.rflags);
        state.fpu.area = case.fpu;
        state.fpu.set_u32(xsave::MXCSR_MASK, xsave::MXCSR_MASK_VALUE);
        state.fpu.set_u64(xsave::XSTATE_BV, 7);
        if self.mode == Mode::Long {
            state.segment_mut(SegReg::Fs).base = case.fs_base;
            state.segment_mut(SegReg::Gs).base = case.gs_base;
        }
        if self.warm {
            mem.write(WARM_AT + PAGE as u64, &warm::values(&state.regs.gpr, state.regs.rip))?;
            state.regs.rip = warm::LINEAR;
        }
        self.vcpu.set_state(&self.start)?;
        let exit = self.vcpu.run_for(BUDGET, &mut Nothing)?;
        let after = self.vcpu.state()?;
        let mut out = self.outcome(&after, exit)?;
        self.written(&mut out)?;
        self.vm.memory().write(code_at, &vec![FILL; code.len()])?;
        Ok(out)
    }

    /// From the frame that the exception pushed.
    fn outcome(&self, after: &VcpuState, exit: Exit) -> Result<Outcome, engine::Error> {
        let mut out = Outcome::new();
        out.gpr = after.regs.gpr;
        out.fpu = after.fpu.area;
        out.fs_base = after.segment(SegReg::Fs).base;
        out.gs_base = after.segment(SegReg::Gs).base;
        out.vector = if exit == Exit::Retired { TIMED_OUT } else { ENGINE };
        let handler = after.regs.rip.wrapping_sub(KERNEL + HANDLERS);
        if exit != Exit::Idle || handler >= 256 * 16 {
            (out.rip, out.rflags) = (after.regs.rip, after.regs.rflags);
            return Ok(out);
        }
        out.vector = (handler / 16) as u32;
        let mut frame = [0; 48];
        self.vm.memory().read(HANDLER_STACK - 48, &mut frame)?;
        let word = |n: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&frame[8 * n..8 * n + 8]);
            u64::from_le_bytes(bytes)
        };
        if exception::has_error_code(out.vector as u8) {
            out.error = word(0) as u32;
        }
        (out.rip, out.rflags, out.gpr[4]) = (word(1), word(3), word(4));
        if out.vector == u32::from(exception::PF) {
            out.cr2 = after.control.cr2;
        }
        Ok(out)
    }

    /// Notes which words of memory the case has written, and puts them back.
    fn written(&mut self, out: &mut Outcome) -> Result<(), engine::Error> {
        let mem = self.vm.memory();
        mem.read(AREAS_AT, &mut self.seen)?;
        for (word, (now, before)) in self.seen.chunks_exact(8).zip(&*self.background).enumerate() {
            if now != before.to_le_bytes() {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(now);
                out.push(word, u64::from_le_bytes(bytes));
                mem.write(AREAS_AT + 8 * word as u64, &before.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

const CODE_RIGHTS: u64 = paging::P | paging::US;

/// Writes page tables, descriptor tables and handlers; returns where the entry of the first
/// page of code is.
fn furnish(vm: &Arc<dyn Vm>) -> Result<u64, engine::Error> {
    let mem = vm.memory();
    let mut tables = Tables { next: TABLES + PAGE as u64, entries: Vec::new() };
    for page in (0..LEN).step_by(PAGE) {
        tables.map(KERNEL + page, page, paging::P | paging::RW);
    }
    let user = |area: Area| {
        let write = if area.writable { paging::RW } else { 0 };
        paging::P | paging::US | write
    };
    for page in (0..CODE.len() as u64).step_by(PAGE) {
        tables.map(CODE.linear + page, CODE_AT + page, CODE_RIGHTS);
    }
    let code =
        |(_, entry): &&(u64, u64)| entry & paging::ADDRESS == CODE_AT && entry & paging::US != 0;
    let code_entry = tables.entries.iter().find(code).map_or(0, |(at, _)| *at);
    for page in (0..warm::LEN).step_by(PAGE) {
        tables.map(warm::LINEAR + page, WARM_AT + page, paging::P | paging::US);
    }
    mem.write(WARM_AT, &warm::code())?;
    let mut at = AREAS_AT;
    for area in AREAS {
        for page in (0..area.len() as u64).step_by(PAGE) {
            tables.map(area.linear + page, at, user(area) | paging::NX);
            at += PAGE as u64;
        }
    }
    for (at, entry) in tables.entries {
        mem.write(at, &entry.to_le_bytes())?;
    }
    for (selector, attr) in [
        (KERNEL_CS, 0x9b | ATTR_L | ATTR_G),
        (USER32_CS, 0xfb | ATTR_DB | ATTR_G),
        (USER_DS, 0xf3 | ATTR_DB | ATTR_G),
        (USER_CS, 0xfb | ATTR_L | ATTR_G),
    ] {
        let descriptor = Descriptor::new(0, 0xf_ffff, attr).0;
        mem.write(GDT + u64::from(selector & !7), &descriptor.to_le_bytes())?;
    }
    for vector in 0..256u64 {
        let handler = KERNEL + HANDLERS + 16 * vector;
        // Those of INT3 and INTO are open to users, as under Linux.
        let dpl = if matches!(vector, 3 | 4) { 3 << 45 } else { 0 };
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | 0x8e << 40
            | dpl
            | (handler >> 16 & 0xffff) << 48;
        mem.write(IDT + 16 * vector, &low.to_le_bytes())?;
        mem.write(IDT + 16 * vector + 8, &(handler >> 32).to_le_bytes())?;
        mem.write(HANDLERS + 16 * vector, &[0xf4])?;
    }
    let stack = (KERNEL + HANDLER_STACK).to_le_bytes();
    mem.write(TSS + 4, &stack)?;
    // No bitmap: no port is open.
    mem.write(TSS + 0x66, &0xffff_u16.to_le_bytes())?;
    mem.write(CODE_AT, &vec![FILL; (LEN - CODE_AT) as usize])?;
    Ok(code_entry)
}

/// Four levels of page tables in the making.
struct Tables {
    next: u64,
    entries: Vec<(u64, u64)>,
}

impl Tables {
    fn map(&mut self, linear: u64, gpa: u64, rights: u64) {
        let mut table = TABLES;
        for level in (1..4).rev() {
            let at = table + 8 * (linear >> (12 + 9 * level) & 511);
            table = match self.entries.iter().find(|(a, _)| *a == at) {
                Some((_, entry)) => entry & paging::ADDRESS,
                None => {
                    let new = self.next;
                    self.next += PAGE as u64;
                    let all = paging::P | paging::RW | paging::US;
                    self.entries.push((at, new | all));
                    new
                }
            };
        }
        self.entries.push((table + 8 * (linear >> 12 & 511), gpa | rights));
    }
}

/// Ring 3, in the mode, but for what a case gives.
fn start(mode: Mode) -> VcpuState {
    let mut state = VcpuState::reset(0);
    let none = Segment::default();
    let [es, cs, ss, ds, fs, gs] = segments::of(mode);
    let tss = Segment { selector: TSS_SELECTOR, base: KERNEL + TSS, limit: 0x67, attr: 0x8b };
    state.segments = Segments {
        reg: [es, cs, ss, ds, fs, gs, Segment { attr: 2, ..none }, tss],
        gdtr: Table { base: KERNEL + GDT, limit: 0x4f },
        idtr: Table { base: KERNEL + IDT, limit: 0xfff },
    };
    state.control.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    state.control.cr3 = TABLES;
    state.control.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
    state.control.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.control.xcr0 = 7;
    state
}

/// No devices, no interrupts.
struct Nothing;

impl VcpuHost for Nothing {
    fn pio_in(&mut self, _port: u16, _size: usize, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        Flow::Continue
    }

    fn pio_out(&mut self, _port: u16, _size: usize, _data: &[u8]) -> Flow {
        Flow::Continue
    }

    fn mmio_read(&mut self, _gpa: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        Flow::Continue
    }

    fn mmio_write(&mut self, _gpa: u64, _data: &[u8]) -> Flow {
        Flow::Continue
    }

    fn pending(&self) -> Option<Pending> {
        None
    }

    fn ack(&mut self, _what: Pending) -> Option<u8> {
        None
    }

    fn tsc(&mut self) -> u64 {
        0
    }
}
