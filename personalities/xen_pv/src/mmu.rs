//! Hypercalls that change page tables.

use crate::{Domain, frames::Use, guest, layout::INVALID_M2P_ENTRY, tables::Level, vcpus::Vcpu};
use engine::CpuView;
use guest_mem::PAGE;
use xen_abi::{
    errno::Errno,
    mmu::{ExtOp, UPDATE_PREEMPTED, Update, command, ext, flush},
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Entries that one call looks at before it lets the vCPU see to other things: it goes on after that.
const WORK: u64 = 1 << 20;
/// Frames that TLBs are made to forget one by one.
const LINGERING: u64 = 1 << 10;
/// Elements that one call takes at once.
const ELEMENTS: u64 = 1 << 12;
/// What it costs to wait until all vCPUs have flushed their TLBs, in entries looked at.
const FLUSH: u64 = 1 << 9;

/// How far a call with a list of elements came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// The address of the first element that is not done.
    pub list: u64,
    /// How many there are, with [`UPDATE_PREEMPTED`].
    pub count: u64,
}

/// A result, or what is to be called again.
pub type Partly = Result<Result<u64, Rest>, Errno>;

/// The level of the table that a frame is, while it is one.
fn level_of(domain: &Domain, frame: u64) -> Option<Level> {
    match domain.tables.frames.get(frame)? {
        found if found.uses == 0 => None,
        found => match found.used_as {
            Use::Table(level) => Some(level),
            _ => None,
        },
    }
}

fn forget(cpu: &mut dyn CpuView, frame: u64) {
    cpu.forget_writes(frame * PAGE);
}

impl Domain {
    /// `mmu_update`.
    pub fn mmu_update(
        &mut self,
        cpu: &mut dyn CpuView,
        list: u64,
        count: u64,
        done: u64,
    ) -> Partly {
        self.each(cpu, list, count, done, |this, cpu, update: Update| this.one_update(cpu, update))
    }

    /// Calls for each element of a list, until one is refused or it has been long enough; the domain
    /// is told at `done` how many were done.
    fn each<T: FromBytes + FromZeros + IntoBytes>(
        &mut self,
        cpu: &mut dyn CpuView,
        list: u64,
        count: u64,
        done: u64,
        mut one: impl FnMut(&mut Self, &mut dyn CpuView, T) -> Result<u64, Errno>,
    ) -> Partly {
        let resumed = count & UPDATE_PREEMPTED != 0;
        let count = count & !UPDATE_PREEMPTED & 0xffff_ffff;
        // What was done before this call is where it was put.
        let mut complete = match (resumed, done) {
            (true, 1..) => guest::read::<u32>(cpu, done)?,
            _ => 0,
        };
        let begun = self.tables.work;
        let mut result = Ok(Ok(0));
        for index in 0..count {
            let at = guest::element::<T>(list, index)?;
            if index == ELEMENTS || self.tables.work.wrapping_sub(begun) > WORK {
                result = Ok(Err(Rest { list: at, count: (count - index) | UPDATE_PREEMPTED }));
                break;
            }
            self.tables.work += 1;
            self.limit_lingering(cpu);
            if let Err(error) = guest::read(cpu, at).and_then(|element| one(self, cpu, element)) {
                result = Err(error);
                break;
            }
            complete = complete.wrapping_add(1);
        }
        if done != 0 {
            guest::write(cpu, done, &complete)?;
        }
        result
    }

    fn one_update(&mut self, cpu: &mut dyn CpuView, update: Update) -> Result<u64, Errno> {
        let at = update.target & !command::MASK;
        let frame = at / PAGE;
        match update.target & command::MASK {
            kind @ (command::NORMAL_PT_UPDATE | command::PT_UPDATE_PRESERVE_AD) => {
                let keep = kind == command::PT_UPDATE_PRESERVE_AD;
                if !at.is_multiple_of(8) {
                    return Err(Errno::Inval);
                }
                match level_of(self, frame) {
                    Some(level) => {
                        self.update(cpu, at, level, update.value, keep)?;
                    }
                    // A page of the domain's that is no table.
                    None => {
                        self.tables.write_word(at, update.value, &mut |frame| forget(cpu, frame))?
                    }
                }
            }
            command::MACHPHYS_UPDATE => {
                if !self.is_own_ram(frame) {
                    return Err(Errno::Inval);
                }
                self.tables.memory.store(self.layout.m2p() + frame * 8, update.value);
            }
            _ => return Err(Errno::NoSys),
        }
        Ok(0)
    }

    /// Changes an entry; vCPUs hear of that before anything is flushed.
    fn update(
        &mut self,
        cpu: &mut dyn CpuView,
        at: u64,
        level: Level,
        value: u64,
        keep: bool,
    ) -> Result<(), Errno> {
        self.tables.update(at, level, value, keep, &mut |frame| forget(cpu, frame))?;
        cpu.tables_changed(self.tables.changes);
        Ok(())
    }

    /// See [`CpuView::set_roots`].
    pub fn load_roots(&self, vcpu: &Vcpu, cpu: &mut dyn CpuView, lasting: bool) {
        cpu.tables_changed(self.tables.changes);
        cpu.set_roots(vcpu.roots(), lasting);
    }

    pub fn is_own_ram(&self, frame: u64) -> bool {
        let frames = &self.tables.frames;
        frame < frames.ram()
            && frames.get(frame).is_some_and(|found| found.owner == crate::frames::Owner::Domain)
    }

    /// `update_va_mapping`.
    pub fn update_va_mapping(
        &mut self,
        vcpu: &Vcpu,
        cpu: &mut dyn CpuView,
        linear: u64,
        value: u64,
        flags: u64,
    ) -> Result<u64, Errno> {
        if !guest::is_the_domains(linear, 1) {
            return Err(Errno::Inval);
        }
        let at = self.tables.l1_entry(cpu.root(), linear).ok_or(Errno::Inval)?;
        if level_of(self, at / PAGE) != Some(Level::L1) {
            return Err(Errno::Inval);
        }
        self.update(cpu, at, Level::L1, value, false)?;
        let which = match flags & !(flush::TYPE) {
            0 => Self::bit(vcpu.id),
            flush::ALL => !0,
            mask => guest::read::<u64>(cpu, mask & !flush::ALL & !flush::TYPE)?,
        };
        self.tables.work += if flags & flush::TYPE == 0 { 0 } else { FLUSH };
        match flags & flush::TYPE {
            flush::TLB_FLUSH => self.flush_some(cpu, which),
            flush::INVLPG => cpu.flush_tlb(which, Some(linear)),
            _ => {}
        }
        Ok(0)
    }

    fn bit(vcpu: u32) -> u64 {
        1u64.checked_shl(vcpu).unwrap_or(0)
    }

    /// `mmuext_op`.
    pub fn mmuext_op(
        &mut self,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        list: u64,
        count: u64,
        done: u64,
    ) -> Partly {
        self.each(cpu, list, count, done, |this, cpu, op: ExtOp| this.one_ext(vcpu, cpu, op))
    }

    fn one_ext(&mut self, vcpu: &mut Vcpu, cpu: &mut dyn CpuView, op: ExtOp) -> Result<u64, Errno> {
        match op.command {
            ext::PIN_L1_TABLE => self.pin(cpu, op.arg1, Level::L1)?,
            ext::PIN_L2_TABLE => self.pin(cpu, op.arg1, Level::L2)?,
            ext::PIN_L3_TABLE => self.pin(cpu, op.arg1, Level::L3)?,
            ext::PIN_L4_TABLE => self.pin(cpu, op.arg1, Level::L4)?,
            ext::UNPIN_TABLE => self.unpin(op.arg1)?,
            ext::NEW_BASEPTR => {
                Self::root(op.arg1)?;
                self.tables.start_table(op.arg1, Level::L4, &mut |frame| forget(cpu, frame))?;
                let old = std::mem::replace(&mut vcpu.kernel_root, op.arg1 * PAGE);
                // The program's follows.
                self.load_roots(vcpu, cpu, false);
                self.tables.end_table(old / PAGE, Level::L4);
            }
            ext::NEW_USER_BASEPTR => {
                if op.arg1 != 0 {
                    self.tables.start_table(op.arg1, Level::L4, &mut |frame| forget(cpu, frame))?;
                }
                let old = std::mem::replace(&mut vcpu.user_root, op.arg1.wrapping_mul(PAGE));
                self.load_roots(vcpu, cpu, true);
                if old != 0 {
                    self.tables.end_table(old / PAGE, Level::L4);
                }
            }
            ext::TLB_FLUSH_LOCAL => {
                cpu.tables_changed(self.tables.changes);
                cpu.forget_own();
            }
            ext::INVLPG_LOCAL => {
                if guest::is_the_domains(op.arg1, 1) {
                    cpu.flush_tlb(Self::bit(vcpu.id), Some(op.arg1));
                }
            }
            ext::TLB_FLUSH_MULTI => {
                self.tables.work += FLUSH;
                let which = guest::read(cpu, op.arg2)?;
                self.flush_some(cpu, which);
            }
            ext::INVLPG_MULTI => {
                self.tables.work += FLUSH;
                let which = guest::read(cpu, op.arg2)?;
                cpu.flush_tlb(which, Some(op.arg1));
            }
            ext::TLB_FLUSH_ALL => {
                self.tables.work += FLUSH;
                self.flush_some(cpu, !0);
            }
            ext::INVLPG_ALL => {
                self.tables.work += FLUSH;
                cpu.flush_tlb(!0, Some(op.arg1));
            }
            ext::FLUSH_CACHE => {}
            ext::SET_LDT => self.set_ldt(vcpu, cpu, op.arg1, op.arg2)?,
            ext::CLEAR_PAGE | ext::COPY_PAGE => return Err(Errno::NoSys),
            _ => return Err(Errno::NoSys),
        }
        Ok(0)
    }

    /// A frame that may be a root: 0 stands for none where roots are kept.
    pub fn root(frame: u64) -> Result<u64, Errno> {
        if frame == 0 { Err(Errno::Inval) } else { Ok(frame) }
    }

    fn pin(&mut self, cpu: &mut dyn CpuView, frame: u64, level: Level) -> Result<(), Errno> {
        if !self.is_own_ram(frame) {
            return Err(Errno::Inval);
        }
        self.tables.start_table(frame, level, &mut |frame| forget(cpu, frame))?;
        if self.tables.frames.get(frame).is_some_and(|found| found.pinned) {
            self.tables.end_table(frame, level);
            return Err(Errno::Inval);
        }
        self.tables.frames.set_pinned(frame, true);
        Ok(())
    }

    fn unpin(&mut self, frame: u64) -> Result<(), Errno> {
        let pinned = self.tables.frames.get(frame).is_some_and(|found| found.pinned);
        let level = level_of(self, frame).filter(|_| pinned).ok_or(Errno::Inval)?;
        self.tables.frames.set_pinned(frame, false);
        self.tables.end_table(frame, level);
        Ok(())
    }

    /// All pages, of some vCPUs.
    fn flush_some(&mut self, cpu: &mut dyn CpuView, which: u64) {
        // Every TLB of the domain's forgets; it asks for no more than its own.
        if which != 0 {
            // Tables that are none any more, too.
            cpu.tables_changed(self.tables.changes);
            cpu.flush_tlb(!0, None);
            self.tables.frames.flushed();
        }
    }

    /// One call may use any number of frames as something else. If there are many that each TLB would
    /// have to forget by itself, all forget all, once.
    pub(crate) fn limit_lingering(&mut self, cpu: &mut dyn CpuView) {
        if self.tables.frames.lingering() > LINGERING {
            self.tables.work += FLUSH;
            self.flush_some(cpu, !0);
        }
    }

    /// A frame has left the domain: nothing of the list names it.
    pub fn forget_m2p(&mut self, frame: u64) {
        self.tables.memory.store(self.layout.m2p() + frame * 8, INVALID_M2P_ENTRY);
    }
}
