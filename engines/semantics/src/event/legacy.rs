//! Delivery in protected mode outside long mode, and from virtual-8086 mode (SDM volume 3,
//! 6.12 and 20.3).

use super::{Event, Kind};
use crate::{
    Ctx, Stop,
    mem::segmented::allowed,
    seg::{index, is_null, rpl},
    task::Switch,
};
use soft_mmu::Access;
use vcpu_state::{SegReg, Segment};
use x86_defs::{
    exception::{GP, NP, SS, TS},
    gpr::RSP,
    rflags,
    segment::{ATTR_ACCESSED, ATTR_DB, system_type as ty},
};

/// A gate of the IDT, but task gates.
struct Gate {
    selector: u16,
    offset: u64,
    /// Bytes of each word it pushes.
    size: u8,
    /// Leaves IF as it is.
    trap: bool,
}

impl Ctx<'_> {
    pub(super) fn deliver_legacy(&mut self, event: Event) -> Result<(), Stop> {
        let offset = u64::from(event.vector) * 8;
        if offset + 7 > self.cpu.idtr.limit.into() {
            return Err(self.gp(event.gate_error()));
        }
        let raw: u64 = self.load_linear(self.cpu.idtr.base.wrapping_add(offset))?;
        let kind = (raw >> 40 & 0x1f) as u16;
        let known = matches!(
            kind,
            ty::TASK_GATE
                | ty::INTERRUPT_GATE16
                | ty::TRAP_GATE16
                | ty::INTERRUPT_GATE
                | ty::TRAP_GATE
        );
        let dpl = (raw >> 45 & 3) as u8;
        let usable = event.kind != Kind::Software || dpl >= self.cpu.mode.cpl;
        if !known || !usable {
            return Err(self.gp(event.gate_error()));
        }
        if raw >> 47 & 1 == 0 {
            return Err(self.cpu.fault_code(NP, event.gate_error()));
        }
        let selector = (raw >> 16) as u16;
        if kind == ty::TASK_GATE {
            return self.task_gate(event, selector);
        }
        let wide = kind & 8 != 0;
        let high = if wide { raw >> 32 & 0xffff_0000 } else { 0 };
        let gate = Gate {
            selector,
            offset: raw & 0xffff | high,
            size: if wide { 4 } else { 2 },
            trap: kind & 1 != 0,
        };
        self.through_gate(event, &gate)
    }

    fn task_gate(&mut self, event: Event, selector: u16) -> Result<(), Stop> {
        self.switch_task(selector, Switch::Event { flags: event.pushed_flags(self.cpu.rflags()) })?;
        let Some(code) = event.error else { return Ok(()) };
        // The new task's TSS says how wide its stack's words are.
        let wide = self.cpu.segment(SegReg::Tr).attr & 8 != 0;
        match self.push(code.into(), if wide { 4 } else { 2 }) {
            // The switch has happened: the fault is the new task's.
            Err(Stop::Fault) => super::raise(self),
            other => other,
        }
    }

    fn through_gate(&mut self, event: Event, gate: &Gate) -> Result<(), Stop> {
        let (cpl, v86) = (self.cpu.mode.cpl, self.cpu.mode.v86);
        let bad = index(gate.selector);
        if is_null(gate.selector) {
            return Err(self.gp(0));
        }
        let mut found = self.need_descriptor(gate.selector, GP)?;
        let dpl = found.desc.dpl();
        if !found.code() || dpl > cpl {
            return Err(self.gp(bad));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(NP, bad));
        }
        let new_cpl = if found.conforming() { cpl } else { dpl };
        if v86 && new_cpl != 0 {
            return Err(self.gp(bad));
        }
        let inner = new_cpl < cpl;
        let flags = self.cpu.rflags();
        let ss = *self.cpu.segment(SegReg::Ss);
        let sp = self.cpu.gpr[RSP];
        let mut frame = Frame::default();
        let (mut stack, top) = match inner {
            true => self.inner_stack(new_cpl)?,
            false => (ss, sp),
        };
        if v86 {
            for which in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
                frame.add(self.cpu.segment(which).selector.into());
            }
        }
        if inner {
            frame.add(ss.selector.into());
            frame.add(sp);
        }
        frame.add(event.pushed_flags(flags));
        frame.add(self.cpu.segment(SegReg::Cs).selector.into());
        frame.add(self.cpu.rip);
        if let Some(code) = event.error {
            frame.add(code.into());
        }
        if gate.offset > found.desc.limit().into() {
            return Err(self.gp(0));
        }
        let stack_error = if inner { index(stack.selector) } else { 0 };
        self.mark_accessed(&mut found)?;
        if inner {
            self.mark_stack_accessed(&mut stack)?;
        }
        let new_sp =
            self.push_frame(&stack, false, top, frame.words(), gate.size, new_cpl, stack_error)?;

        let cpu = &mut *self.cpu;
        cpu.gpr[RSP] = new_sp;
        cpu.rip = gate.offset;
        let selector = gate.selector & !3 | u16::from(new_cpl);
        *cpu.segment_mut(SegReg::Cs) = found.segment(selector);
        *cpu.segment_mut(SegReg::Ss) = stack;
        if v86 {
            for which in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
                *cpu.segment_mut(which) = Segment::default();
            }
        }
        let cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        cpu.rflags &= !(cleared | if gate.trap { 0 } else { rflags::IF });
        cpu.update_mode();
        Ok(())
    }

    /// Sets the accessed bit of a checked stack segment that is about to be loaded.
    pub(crate) fn mark_stack_accessed(&mut self, stack: &mut Segment) -> Result<(), Stop> {
        if stack.attr & ATTR_ACCESSED == 0 {
            let mut found = self.need_descriptor(stack.selector, TS)?;
            self.mark_accessed(&mut found)?;
            stack.attr |= ATTR_ACCESSED;
        }
        Ok(())
    }

    /// The stack of an inner level from the TSS, checked.
    pub(crate) fn inner_stack(&mut self, cpl: u8) -> Result<(Segment, u64), Stop> {
        let tr = *self.cpu.segment(SegReg::Tr);
        let wide = tr.attr & 8 != 0;
        let offset = if wide { 4 + 8 * u32::from(cpl) } else { 2 + 4 * u32::from(cpl) };
        let last = offset + if wide { 5 } else { 3 };
        if last > tr.limit {
            return Err(self.cpu.fault_code(TS, index(tr.selector)));
        }
        let at = tr.base.wrapping_add(offset.into());
        let (sp, selector) = if wide {
            (u64::from(self.load_linear::<u32>(at)?), self.load_linear::<u16>(at.wrapping_add(4))?)
        } else {
            (u64::from(self.load_linear::<u16>(at)?), self.load_linear::<u16>(at.wrapping_add(2))?)
        };
        if is_null(selector) {
            return Err(self.cpu.fault_code(TS, 0));
        }
        let bad = index(selector);
        let found = self.need_descriptor(selector, TS)?;
        if rpl(selector) != cpl || found.desc.dpl() != cpl || !found.writable_data() {
            return Err(self.cpu.fault_code(TS, bad));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(SS, bad));
        }
        Ok((found.segment(selector), sp))
    }

    /// Pushes words of `size` bytes on a stack that is not loaded yet, all or nothing; returns
    /// the stack pointer after. Limit violations are #SS with this error code.
    #[expect(clippy::too_many_arguments, reason = "a stack is all of these")]
    pub(crate) fn push_frame(
        &mut self,
        ss: &Segment,
        real: bool,
        sp: u64,
        words: &[u64],
        size: u8,
        cpl: u8,
        error: u32,
    ) -> Result<u64, Stop> {
        let mask = if ss.attr & ATTR_DB != 0 { 0xffff_ffff } else { 0xffff };
        let len = u64::from(size);
        let offset = |n: usize| sp.wrapping_sub(len * (n as u64 + 1)) & mask;
        for n in 0..words.len() {
            let Some(linear) = allowed(ss, real, offset(n), len, Access::Write) else {
                return Err(self.cpu.fault_code(SS, error));
            };
            self.probe_frame(linear, len as usize, cpl)?;
        }
        for (n, word) in words.iter().enumerate() {
            let linear = ss.base.wrapping_add(offset(n)) & 0xffff_ffff;
            self.store_frame(linear, &word.to_le_bytes()[..len as usize], cpl)?;
        }
        Ok(sp & !mask | sp.wrapping_sub(len * words.len() as u64) & mask)
    }
}

/// Words in the order in which they are pushed.
#[derive(Default)]
struct Frame {
    words: [u64; 10],
    len: usize,
}

impl Frame {
    fn add(&mut self, word: u64) {
        if let Some(at) = self.words.get_mut(self.len) {
            *at = word;
            self.len += 1;
        }
    }

    fn words(&self) -> &[u64] {
        &self.words[..self.len]
    }
}
