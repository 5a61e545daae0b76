//! Task switches (SDM volume 3, chapter 8).
//!
//! Up to the point where the new task's registers are loaded, a fault is the old task's and
//! nothing has happened. What faults after that is the new task's, and is delivered at once.

use crate::{
    Ctx, Stop, event,
    seg::{index, is_null, rpl},
};
use vcpu_state::{SegReg, Segment};
use x86_defs::{
    cr::cr0,
    dr,
    exception::{GP, NP, SS, TS},
    rflags,
    segment::{ATTR_DPL_SHIFT, SELECTOR_TI, system_type as ty},
};

/// What switches tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Jump,
    Call,
    /// IRET with NT set.
    Return,
    /// An exception or interrupt, with the image of RFLAGS to save.
    Event {
        flags: u64,
    },
}

impl Switch {
    /// The new task returns to the old one.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }
}

/// The segment registers in the order of the TSS.
const ORDER: [SegReg; 6] = [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs];

/// What a TSS holds of a task.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    cr3: Option<u32>,
    eip: u32,
    eflags: u32,
    gpr: [u32; 8],
    /// In [`ORDER`].
    selectors: [u16; 6],
    ldt: u16,
    /// The debug trap flag.
    trap: bool,
}

impl Task {
    /// From the bytes of a TSS.
    fn read(bytes: &[u8; 0x68], wide: bool) -> Self {
        let word = |at: usize| match bytes.get(at..at + 2) {
            Some(b) => u16::from_le_bytes([b[0], b[1]]),
            None => 0,
        };
        let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        if wide {
            Self {
                cr3: Some(long(0x1c)),
                eip: long(0x20),
                eflags: long(0x24),
                gpr: std::array::from_fn(|n| long(0x28 + 4 * n)),
                selectors: std::array::from_fn(|n| word(0x48 + 4 * n)),
                ldt: word(0x60),
                trap: word(0x64) & 1 != 0,
            }
        } else {
            // FS and GS have no place there: they become null.
            let selector = |n: usize| if n < 4 { word(0x22 + 2 * n) } else { 0 };
            Self {
                cr3: None,
                eip: word(0x0e).into(),
                eflags: word(0x10).into(),
                gpr: std::array::from_fn(|n| word(0x12 + 2 * n).into()),
                selectors: std::array::from_fn(selector),
                ldt: word(0x2a),
                trap: false,
            }
        }
    }

    /// The part of the TSS that a switch writes, and where in the TSS it begins.
    fn image(&self, wide: bool) -> (u64, [u8; 64], usize) {
        let mut bytes = [0; 64];
        let selectors = self.selectors.iter().map(|s| u32::from(*s));
        let words = [self.eip, self.eflags].into_iter().chain(self.gpr).chain(selectors);
        if wide {
            for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
            (0x20, bytes, 64)
        } else {
            // Two words, eight registers, four selectors.
            for (to, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(words.take(14)) {
                *to = (word as u16).to_le_bytes();
            }
            (0x0e, bytes, 28)
        }
    }
}

fn is_wide(tr: &Segment) -> bool {
    tr.attr & 8 != 0
}

impl Ctx<'_> {
    pub(crate) fn switch_task(&mut self, selector: u16, how: Switch) -> Result<(), Stop> {
        let new_tr = self.new_task_register(selector, how)?;
        let wide = is_wide(&new_tr);
        let mut bytes = [0; 0x68];
        let len = if wide { 0x68 } else { 0x2c };
        self.load_linear_bytes(new_tr.base, &mut bytes[..len])?;
        let task = Task::read(&bytes, wide);
        let descriptor = self.cpu.gdtr.base.wrapping_add(index(selector).into());
        self.save_task(how, &new_tr, descriptor)?;

        let old = self.cpu.segment(SegReg::Tr).selector;
        if how.nests() {
            self.store_linear(new_tr.base, old)?;
        }
        let cpu = &mut *self.cpu;
        *cpu.segment_mut(SegReg::Tr) = new_tr;
        cpu.cr0 |= cr0::TS;
        // The local enables go (SDM volume 3, 18.2.4).
        cpu.dr7 &= !0x155;
        cpu.debug_changed();
        cpu.leave = true;
        match self.load_task(&task, how.nests()) {
            Err(Stop::Fault) => event::raise(self),
            Err(stop) => Err(stop),
            Ok(()) => {
                if task.trap {
                    self.cpu.dr_hits |= dr::DR6_BT;
                }
                Ok(())
            }
        }
    }

    /// The register's contents for the new task, checked and busy.
    fn new_task_register(&mut self, selector: u16, how: Switch) -> Result<Segment, Stop> {
        let vector = if how == Switch::Return { TS } else { GP };
        let bad = index(selector);
        if selector & SELECTOR_TI != 0 || is_null(selector) {
            return Err(self.cpu.fault_code(vector, bad));
        }
        let mut found = self.need_descriptor(selector, vector)?;
        let kind = found.desc.kind();
        let fine = match how {
            Switch::Return => matches!(kind, ty::TSS_BUSY | ty::TSS16_BUSY),
            _ => matches!(kind, ty::TSS_AVAILABLE | ty::TSS16_AVAILABLE),
        };
        if !found.desc.is_system() || !fine {
            return Err(self.cpu.fault_code(vector, bad));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(NP, bad));
        }
        found.desc.0 |= 2 << 40;
        let tr = found.segment(selector);
        let least = if is_wide(&tr) { 0x67 } else { 0x2b };
        if tr.limit < least {
            return Err(self.cpu.fault_code(TS, bad));
        }
        Ok(tr)
    }

    /// Writes the old task's TSS and the busy bits, after everything that may fault.
    fn save_task(&mut self, how: Switch, new_tr: &Segment, descriptor: u64) -> Result<(), Stop> {
        let cpu = &*self.cpu;
        let old_tr = *cpu.segment(SegReg::Tr);
        let mut flags = match how {
            Switch::Event { flags } => flags,
            _ => cpu.rflags(),
        };
        if how == Switch::Return {
            flags &= !rflags::NT;
        }
        let old = Task {
            cr3: None,
            eip: cpu.rip as u32,
            eflags: flags as u32,
            gpr: std::array::from_fn(|n| cpu.gpr[n] as u32),
            selectors: ORDER.map(|which| cpu.segment(which).selector),
            ldt: 0,
            trap: false,
        };
        let (offset, image, len) = old.image(is_wide(&old_tr));
        let image_at = old_tr.base.wrapping_add(offset);
        let gdt = cpu.gdtr.base;
        let old_busy = gdt.wrapping_add(index(old_tr.selector).into()).wrapping_add(5);
        self.probe_frame(image_at, len, 0)?;
        self.probe_frame(new_tr.base, 2, 0)?;
        self.probe_frame(descriptor.wrapping_add(5), 1, 0)?;
        if !how.nests() {
            self.probe_frame(old_busy, 1, 0)?;
            let byte: u8 = self.load_linear(old_busy)?;
            self.store_linear(old_busy, byte & !2)?;
        }
        self.store_linear_bytes(image_at, &image[..len])?;
        if how != Switch::Return {
            let byte: u8 = self.load_linear(descriptor.wrapping_add(5))?;
            self.store_linear(descriptor.wrapping_add(5), byte | 2)?;
        }
        Ok(())
    }

    /// Loads the new task's registers: from here on, it is the one that faults.
    fn load_task(&mut self, task: &Task, nested: bool) -> Result<(), Stop> {
        let cpu = &mut *self.cpu;
        cpu.rip = task.eip.into();
        for (to, value) in cpu.gpr.iter_mut().zip(task.gpr) {
            *to = value.into();
        }
        for (which, selector) in ORDER.into_iter().zip(task.selectors) {
            *cpu.segment_mut(which) = Segment { selector, ..Segment::default() };
        }
        *cpu.segment_mut(SegReg::Ldtr) = Segment { selector: task.ldt, ..Segment::default() };
        let nt = if nested { rflags::NT } else { 0 };
        let v86 = u64::from(task.eflags) & rflags::VM != 0;
        let level = if v86 { 3 } else { rpl(task.selectors[1]) };
        cpu.segment_mut(SegReg::Ss).attr = u16::from(level) << ATTR_DPL_SHIFT;
        cpu.set_rflags(u64::from(task.eflags) | nt);
        if let Some(cr3) = task.cr3.filter(|_| self.cpu.cr0 & cr0::PG != 0) {
            self.set_cr3(cr3.into())?;
        }
        self.load_task_ldt(task.ldt)?;
        if v86 {
            for (which, selector) in ORDER.into_iter().zip(task.selectors) {
                self.load_paragraph(which, selector);
            }
            return Ok(());
        }
        self.load_task_code(task.selectors[1])?;
        self.load_task_stack(task.selectors[2], level)?;
        for n in [0, 3, 4, 5] {
            self.load_task_data(ORDER[n], task.selectors[n], level)?;
        }
        if self.cpu.rip > self.cpu.segment(SegReg::Cs).limit.into() {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16) -> Result<(), Stop> {
        if is_null(selector) {
            return Ok(());
        }
        let bad = index(selector);
        let found = self.need_descriptor(selector, TS)?;
        let ldt = found.desc.is_system() && found.desc.kind() == ty::LDT;
        if selector & SELECTOR_TI != 0 || !ldt || !found.desc.present() {
            return Err(self.cpu.fault_code(TS, bad));
        }
        *self.cpu.segment_mut(SegReg::Ldtr) = found.segment(selector);
        Ok(())
    }

    fn load_task_code(&mut self, selector: u16) -> Result<(), Stop> {
        let mut found = self.need_descriptor(selector, TS)?;
        let dpl = found.desc.dpl();
        let level = match found.conforming() {
            true => dpl <= rpl(selector),
            false => dpl == rpl(selector),
        };
        if !found.code() || !level {
            return Err(self.cpu.fault_code(TS, index(selector)));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(NP, index(selector)));
        }
        self.mark_accessed(&mut found)?;
        *self.cpu.segment_mut(SegReg::Cs) = found.segment(selector);
        self.cpu.update_mode();
        Ok(())
    }

    fn load_task_stack(&mut self, selector: u16, level: u8) -> Result<(), Stop> {
        let mut found = self.need_descriptor(selector, TS)?;
        let fine = rpl(selector) == level && found.desc.dpl() == level && found.writable_data();
        if !fine {
            return Err(self.cpu.fault_code(TS, index(selector)));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(SS, index(selector)));
        }
        self.mark_accessed(&mut found)?;
        *self.cpu.segment_mut(SegReg::Ss) = found.segment(selector);
        self.cpu.update_mode();
        Ok(())
    }

    fn load_task_data(&mut self, which: SegReg, selector: u16, level: u8) -> Result<(), Stop> {
        if is_null(selector) {
            return Ok(());
        }
        let mut found = self.need_descriptor(selector, TS)?;
        let dpl = found.desc.dpl();
        let denied = !found.conforming() && (dpl < level || dpl < rpl(selector));
        if !found.readable() || denied {
            return Err(self.cpu.fault_code(TS, index(selector)));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(NP, index(selector)));
        }
        self.mark_accessed(&mut found)?;
        *self.cpu.segment_mut(which) = found.segment(selector);
        Ok(())
    }
}
