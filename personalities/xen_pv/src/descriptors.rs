//! Segment descriptors of the domain: GDT, LDT, and what they may be.

use crate::{
    Domain, Layout,
    bounce::flat,
    frames::{Forget, Use},
    guest,
    memory::Memory,
    vcpus::Vcpu,
};
use engine::CpuView;
use guest_mem::PAGE;
use vcpu_state::{SegReg, Segment};
use x86_defs::{
    paging::{A, ADDRESS, D, NX, P, RW},
    segment::{
        ATTR_CODE, ATTR_DB, ATTR_DPL, ATTR_EC, ATTR_L, ATTR_P, ATTR_RW, ATTR_S, Descriptor,
        SELECTOR_TI, system_type,
    },
};
use xen_abi::{
    errno::Errno,
    trap::{FIRST_RESERVED_GDT_ENTRY, selector},
};

/// Entries of a page.
const PER_PAGE: u64 = PAGE / 8;
/// Pages of descriptors that are the domain's.
const PAGES: u64 = FIRST_RESERVED_GDT_ENTRY as u64 / PER_PAGE;

/// Of an LDT: 8192 entries.
const LDT_PAGES: u64 = 16;

/// Whether a domain may have a descriptor: code and data of ring 3, or nothing.
fn is_allowed(descriptor: Descriptor) -> bool {
    if !descriptor.present() {
        return true;
    }
    // Gates and system segments lead into rings that the domain has not.
    if descriptor.is_system() {
        return false;
    }
    let attr = descriptor.attr();
    let conforming = attr & ATTR_CODE != 0 && attr & ATTR_EC != 0;
    descriptor.dpl() != 0 || conforming
}

/// As it is put into the table: never of the kernel's ring.
fn adjusted(descriptor: Descriptor) -> Descriptor {
    if !descriptor.present() || descriptor.is_system() {
        return descriptor;
    }
    Descriptor(descriptor.0 | u64::from(ATTR_DPL) << 40)
}

impl Domain {
    /// Uses a frame for descriptors, which are looked through.
    fn start_descriptors(&mut self, frame: u64, forget: Forget<'_>) -> Result<(), Errno> {
        self.tables.frames.hold(frame)?;
        let started = self.tables.frames.start(frame, Use::Descriptors, forget);
        let result = match started {
            Ok(true) => self.look_through_descriptors(frame).inspect_err(|_| {
                self.tables.frames.end(frame);
            }),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.tables.frames.let_go(frame);
        }
        result
    }

    fn look_through_descriptors(&mut self, frame: u64) -> Result<(), Errno> {
        self.tables.work += PER_PAGE;
        let memory = self.tables.memory.clone();
        let all = (0..PER_PAGE).map(|index| frame * PAGE + index * 8);
        if all.clone().any(|at| !is_allowed_once_adjusted(Descriptor(memory.load(at)))) {
            return Err(Errno::Inval);
        }
        for at in all {
            let old = Descriptor(memory.load(at));
            let new = adjusted(old);
            if new != old {
                memory.store(at, new.0);
            }
        }
        Ok(())
    }

    fn end_descriptors(&mut self, frame: u64) {
        self.tables.frames.end(frame);
        self.tables.frames.let_go(frame);
    }

    /// `set_gdt`: these frames are the vCPU's descriptors.
    pub fn set_gdt(
        &mut self,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        list: u64,
        entries: u64,
    ) -> Result<u64, Errno> {
        if entries > u64::from(FIRST_RESERVED_GDT_ENTRY) {
            return Err(Errno::Inval);
        }
        let count = entries.div_ceil(PER_PAGE);
        let mut frames = Vec::new();
        for index in 0..count {
            frames.push(guest::read::<u64>(cpu, guest::element::<u64>(list, index)?)?);
        }
        self.use_gdt(vcpu, cpu, frames)?;
        Ok(0)
    }

    pub fn use_gdt(
        &mut self,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        frames: Vec<u64>,
    ) -> Result<(), Errno> {
        self.start_all(cpu, &frames)?;
        for page in 0..PAGES {
            self.map(self.layout.gdt_entry(vcpu.id, page), frames.get(page as usize));
            Self::forget(vcpu, cpu, Layout::gdt_linear(vcpu.id) + page * PAGE);
        }
        for old in std::mem::replace(&mut vcpu.gdt_frames, frames) {
            self.end_descriptors(old);
        }
        Ok(())
    }

    /// Those of a vCPU that is restored, which has none yet.
    pub fn descriptors_again(&mut self, id: u32, gdt: &[u64], ldt: &[u64]) -> Result<(), Errno> {
        if gdt.len() as u64 > PAGES || ldt.len() as u64 > LDT_PAGES {
            return Err(Errno::Inval);
        }
        let at = |page: usize| page as u64;
        for (page, frame) in gdt.iter().enumerate() {
            self.start_descriptors(*frame, &mut |_| {})?;
            self.map(self.layout.gdt_entry(id, at(page)), Some(frame));
        }
        for (page, frame) in ldt.iter().enumerate() {
            self.start_descriptors(*frame, &mut |_| {})?;
            self.map(self.layout.ldt_entry(id, at(page)), Some(frame));
        }
        Ok(())
    }

    /// All of them, or none.
    fn start_all(&mut self, cpu: &mut dyn CpuView, frames: &[u64]) -> Result<(), Errno> {
        for (index, frame) in frames.iter().enumerate() {
            if let Err(error) =
                self.start_descriptors(*frame, &mut |frame| cpu.forget_writes(frame * PAGE))
            {
                for frame in frames.iter().take(index) {
                    self.end_descriptors(*frame);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The processor sees this frame, or none, by an entry of the hypervisor's.
    fn map(&self, entry: u64, frame: Option<&u64>) {
        let value = frame.map_or(0, |frame| (frame * PAGE) | P | RW | A | D | NX);
        self.tables.memory.store(entry, value);
    }

    fn forget(vcpu: &Vcpu, cpu: &mut dyn CpuView, linear: u64) {
        cpu.flush_tlb(1u64.checked_shl(vcpu.id).unwrap_or(0), Some(linear));
    }

    /// `MMUEXT_SET_LDT`: by the addresses where the domain has it.
    pub fn set_ldt(
        &mut self,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        base: u64,
        entries: u64,
    ) -> Result<(), Errno> {
        const ENTRIES_MAX: u64 = 8192;
        if entries > ENTRIES_MAX || !base.is_multiple_of(PAGE) {
            return Err(Errno::Inval);
        }
        let mut frames = Vec::new();
        for page in 0..entries.div_ceil(PER_PAGE) {
            let linear = base.checked_add(page * PAGE).ok_or(Errno::Inval)?;
            if !guest::is_the_domains(linear, PAGE as usize) {
                return Err(Errno::Inval);
            }
            let at = self.tables.l1_entry(cpu.root(), linear).ok_or(Errno::Inval)?;
            let entry = self.tables.memory.load(at);
            if entry & P == 0 {
                return Err(Errno::Inval);
            }
            frames.push((entry & ADDRESS) / PAGE);
        }
        self.start_all(cpu, &frames)?;
        let pages = frames.len().max(vcpu.ldt_frames.len()) as u64;
        for page in 0..pages {
            self.map(self.layout.ldt_entry(vcpu.id, page), frames.get(page as usize));
            Self::forget(vcpu, cpu, Layout::ldt_linear(vcpu.id) + page * PAGE);
        }
        for old in std::mem::replace(&mut vcpu.ldt_frames, frames) {
            self.end_descriptors(old);
        }
        *cpu.segment(SegReg::Ldtr) = match entries {
            0 => Segment::default(),
            _ => Segment {
                selector: 0,
                base: Layout::ldt_linear(vcpu.id),
                limit: entries as u32 * 8 - 1,
                attr: ATTR_P | system_type::LDT,
            },
        };
        Ok(())
    }

    /// `update_descriptor`: by machine address.
    pub fn update_descriptor(
        &mut self,
        cpu: &mut dyn CpuView,
        at: u64,
        value: u64,
    ) -> Result<u64, Errno> {
        let (frame, descriptor) = (at / PAGE, Descriptor(value));
        if !at.is_multiple_of(8) || !is_allowed_once_adjusted(descriptor) {
            return Err(Errno::Inval);
        }
        // Of a page that is written anyway, there is nothing to keep.
        if !self.tables.frames.is(frame, Use::Descriptors) {
            let forget: Forget<'_> = &mut |frame| cpu.forget_writes(frame * PAGE);
            return self.tables.write_word(at, adjusted(descriptor).0, forget).map(|()| 0);
        }
        self.tables.memory.store(at, adjusted(descriptor).0);
        Ok(0)
    }
}

/// Where a vCPU's descriptors are.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors<'a> {
    pub memory: &'a Memory,
    /// Frames of its GDT that are the domain's.
    pub gdt: &'a [u64],
}

impl Descriptors<'_> {
    /// The descriptor that a selector names.
    fn descriptor(&self, cpu: &mut dyn CpuView, selector: u16) -> Option<Descriptor> {
        let index = u64::from(selector / 8);
        let table = if selector & SELECTOR_TI != 0 {
            let ldt = *cpu.segment(SegReg::Ldtr);
            (index * 8 + 7 <= u64::from(ldt.limit) && ldt.usable()).then_some(())?;
            ldt.base
        } else if let Some(frame) = self.gdt.get((index / PER_PAGE) as usize) {
            let at = frame * PAGE + index % PER_PAGE * 8;
            return Some(Descriptor(self.memory.load(at)));
        } else {
            cpu.gdt_base()
        };
        let linear = table.wrapping_add(index * 8) & !7;
        self.memory.word(cpu.root(), linear).map(Descriptor)
    }

    /// What CS is with this selector.
    pub fn code_segment(&self, cpu: &mut dyn CpuView, selector: u16) -> Result<Segment, Errno> {
        if matches!(selector, selector::CS64 | selector::CS32) {
            return Ok(flat(selector));
        }
        let descriptor = self.descriptor(cpu, selector).ok_or(Errno::Inval)?;
        let attr = descriptor.attr();
        let good = descriptor.present()
            && !descriptor.is_system()
            && attr & ATTR_CODE != 0
            && descriptor.dpl() == 3
            // Code of 64 bits with operands of 32: nothing that there is (SDM volume 3, 3.4.5).
            && attr & (ATTR_L | ATTR_DB) != ATTR_L | ATTR_DB;
        if !good {
            return Err(Errno::Inval);
        }
        let base = if attr & ATTR_L != 0 { 0 } else { descriptor.base() };
        Ok(Segment { selector, base, limit: descriptor.limit(), attr })
    }

    /// What SS is with this selector.
    pub fn stack_segment(&self, cpu: &mut dyn CpuView, selector: u16) -> Result<Segment, Errno> {
        if selector == selector::SS || selector & !3 == 0 {
            return Ok(Segment { selector, ..flat(selector::SS) });
        }
        let descriptor = self.descriptor(cpu, selector).ok_or(Errno::Inval)?;
        let attr = descriptor.attr();
        // Of data that can be written (SDM volume 3, 3.4.5.1).
        let good = descriptor.present()
            && attr & (ATTR_S | ATTR_CODE | ATTR_RW) == ATTR_S | ATTR_RW
            && descriptor.dpl() == 3;
        if !good {
            return Err(Errno::Inval);
        }
        let (base, limit) = (descriptor.base(), descriptor.limit());
        Ok(Segment { selector, base, limit, attr })
    }

    /// What a data segment register is with this selector: one that cannot be loaded is as none.
    pub fn data_segment(&self, cpu: &mut dyn CpuView, selector: u16) -> Segment {
        let none = Segment { selector: 0, base: 0, limit: 0, attr: 0 };
        if selector & !3 == 0 {
            return Segment { selector, ..none };
        }
        match self.descriptor(cpu, selector) {
            Some(found)
                if found.present()
                    && !found.is_system()
                    && found.dpl() == 3
                    // Code that can only be executed is no data.
                    && found.attr() & (ATTR_CODE | ATTR_RW) != ATTR_CODE =>
            {
                let (base, limit) = (found.base(), found.limit());
                Segment { selector: selector | 3, base, limit, attr: found.attr() }
            }
            _ => none,
        }
    }
}

fn is_allowed_once_adjusted(descriptor: Descriptor) -> bool {
    is_allowed(adjusted(descriptor))
}
