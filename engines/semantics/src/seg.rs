//! Segment registers: descriptors, their checks, and the instructions that load and look at
//! them (SDM volume 3, chapter 5; volume 2, MOV, LAR, LSL, VERR, LLDT, LTR).

use crate::{Cpu, Ctx, Insn, Stop, insn::segment};
use vcpu_state::{SegReg, Segment, Shadow};
use x86_defs::{
    exception::{GP, NP, SS, UD},
    is_canonical_48, rflags,
    segment::{
        ATTR_ACCESSED, ATTR_CODE, ATTR_DB, ATTR_DPL_SHIFT, ATTR_EC, ATTR_G, ATTR_P, ATTR_RW,
        Descriptor, SELECTOR_RPL, SELECTOR_TI, system_type as ty,
    },
};

/// A descriptor and the linear address it was read from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub desc: Descriptor,
    pub at: u64,
}

impl Found {
    pub fn code(&self) -> bool {
        !self.desc.is_system() && self.desc.attr() & ATTR_CODE != 0
    }

    pub fn conforming(&self) -> bool {
        self.code() && self.desc.attr() & ATTR_EC != 0
    }

    pub fn writable_data(&self) -> bool {
        let attr = self.desc.attr();
        !self.desc.is_system() && attr & ATTR_CODE == 0 && attr & ATTR_RW != 0
    }

    /// A data or readable code segment.
    pub fn readable(&self) -> bool {
        let attr = self.desc.attr();
        !self.desc.is_system() && (attr & ATTR_CODE == 0 || attr & ATTR_RW != 0)
    }

    /// The register's contents after a load.
    pub fn segment(&self, selector: u16) -> Segment {
        let d = self.desc;
        Segment { selector, base: d.base(), limit: d.limit(), attr: d.attr() }
    }
}

/// A selector without its RPL, as error codes have it.
pub(crate) const fn index(selector: u16) -> u32 {
    (selector & !SELECTOR_RPL) as u32
}

pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !SELECTOR_RPL == 0
}

pub(crate) const fn rpl(selector: u16) -> u8 {
    (selector & SELECTOR_RPL) as u8
}

impl Ctx<'_> {
    /// The descriptor that a selector names, null ones included; `None` beyond its table.
    pub(crate) fn descriptor(&mut self, selector: u16) -> Result<Option<Found>, Stop> {
        let (base, limit) = if selector & SELECTOR_TI != 0 {
            let ldtr = self.cpu.segment(SegReg::Ldtr);
            if !ldtr.usable() {
                return Ok(None);
            }
            (ldtr.base, ldtr.limit)
        } else {
            (self.cpu.gdtr.base, u32::from(self.cpu.gdtr.limit))
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(offset.into());
        let desc = Descriptor(self.load_linear(at)?);
        Ok(Some(Found { desc, at }))
    }

    /// The descriptor of a selector that must not be null: `vector` with the selector as error
    /// code if it is, or lies beyond the table.
    pub(crate) fn need_descriptor(&mut self, selector: u16, vector: u8) -> Result<Found, Stop> {
        if is_null(selector) {
            return Err(self.cpu.fault_code(vector, 0));
        }
        match self.descriptor(selector)? {
            Some(found) => Ok(found),
            None => Err(self.cpu.fault_code(vector, index(selector))),
        }
    }

    /// The upper half of a 16-byte system descriptor: the base's upper 32 bits. #GP if it is
    /// beyond the table, or its type is not zero.
    pub(crate) fn upper_half(&mut self, selector: u16, found: &Found) -> Result<u64, Stop> {
        let bad = index(selector);
        let limit = if selector & SELECTOR_TI != 0 {
            self.cpu.segment(SegReg::Ldtr).limit
        } else {
            self.cpu.gdtr.limit.into()
        };
        if u32::from(selector & !7) + 15 > limit {
            return Err(self.cpu.fault_code(GP, bad));
        }
        let upper: u64 = self.load_linear(found.at.wrapping_add(8))?;
        if upper >> 40 & 0x1f != 0 {
            return Err(self.cpu.fault_code(GP, bad));
        }
        Ok(upper & 0xffff_ffff)
    }

    /// Sets the accessed bit in the table, if it is clear.
    pub(crate) fn mark_accessed(&mut self, found: &mut Found) -> Result<(), Stop> {
        if found.desc.attr() & ATTR_ACCESSED == 0 {
            found.desc.0 |= 1 << 40;
            let byte = (found.desc.0 >> 40) as u8;
            self.store_linear(found.at.wrapping_add(5), byte)?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS.
    pub(crate) fn load_segment(&mut self, which: SegReg, selector: u16) -> Result<(), Stop> {
        if self.cpu.mode.real_like() {
            self.load_paragraph(which, selector);
            return Ok(());
        }
        let loaded = match which {
            SegReg::Ss => self.checked_stack(selector)?,
            _ => self.checked_data(selector)?,
        };
        *self.cpu.segment_mut(which) = loaded;
        if which == SegReg::Ss {
            self.cpu.update_mode();
        }
        Ok(())
    }

    /// Loads a segment register, CS included, in real or virtual-8086 mode.
    pub(crate) fn load_paragraph(&mut self, which: SegReg, selector: u16) {
        self.cpu.load_paragraph(which, selector);
    }

    fn checked_stack(&mut self, selector: u16) -> Result<Segment, Stop> {
        let cpl = self.cpu.mode.cpl;
        if is_null(selector) {
            if self.cpu.mode.is64() && cpl != 3 && rpl(selector) == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return Err(self.cpu.fault_code(GP, 0));
        }
        let mut found = self.need_descriptor(selector, GP)?;
        if rpl(selector) != cpl || !found.writable_data() || found.desc.dpl() != cpl {
            return Err(self.cpu.fault_code(GP, index(selector)));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(SS, index(selector)));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment(selector))
    }

    fn checked_data(&mut self, selector: u16) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let mut found = self.need_descriptor(selector, GP)?;
        let dpl = found.desc.dpl();
        let denied = rpl(selector) > dpl || self.cpu.mode.cpl > dpl;
        if !found.readable() || !found.conforming() && denied {
            return Err(self.cpu.fault_code(GP, index(selector)));
        }
        if !found.desc.present() {
            return Err(self.cpu.fault_code(NP, index(selector)));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment(selector))
    }

    /// After a return to an outer level: data segments that it must not use become null.
    pub(crate) fn drop_inner_segments(&mut self) {
        let cpl = self.cpu.mode.cpl;
        for which in [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            let s = self.cpu.segment_mut(which);
            let conforming = s.attr & (ATTR_CODE | ATTR_EC) == ATTR_CODE | ATTR_EC;
            if s.usable() && !conforming && s.dpl() < cpl {
                *s = Segment::default();
            }
        }
    }

    /// A segment check that only sets ZF: `None` if the selector is not valid for it.
    fn visible(&mut self, selector: u16) -> Result<Option<Found>, Stop> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(found) = self.descriptor(selector)? else { return Ok(None) };
        let dpl = found.desc.dpl();
        let allowed = found.conforming() || self.cpu.mode.cpl <= dpl && rpl(selector) <= dpl;
        Ok(allowed.then_some(found))
    }

    fn set_zf(&mut self, zf: bool) {
        let bits = self.cpu.flags.bits() & !rflags::ZF;
        self.cpu.flags.set_bits(bits | if zf { rflags::ZF } else { 0 });
    }

    /// #UD in real and virtual-8086 mode.
    fn need_protected(&mut self) -> Result<(), Stop> {
        if self.cpu.mode.real_like() { Err(self.cpu.fault(UD)) } else { Ok(()) }
    }

    pub(crate) fn need_cpl0(&mut self) -> Result<(), Stop> {
        if self.cpu.mode.cpl != 0 { Err(self.cpu.fault_code(GP, 0)) } else { Ok(()) }
    }
}

impl Cpu {
    /// Loads a segment register, CS included, in real or virtual-8086 mode.
    pub fn load_paragraph(&mut self, which: SegReg, selector: u16) {
        let v86 = self.mode.v86;
        let s = self.segment_mut(which);
        (s.selector, s.base) = (selector, u64::from(selector) << 4);
        if v86 {
            (s.limit, s.attr) = (0xffff, 0xf3);
        } else if !(which == SegReg::Cs && s.attr & ATTR_CODE != 0) {
            // The limit and the default size stay as protected mode left them.
            s.attr = 0x93 | s.attr & (ATTR_DB | ATTR_G);
        }
        if matches!(which, SegReg::Cs | SegReg::Ss) {
            self.update_mode();
        }
    }
}

/// SS when it is null in 64-bit mode at level `cpl`.
pub(crate) const fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0, attr: (cpl as u16) << ATTR_DPL_SHIFT }
}

/// MOV to a segment register.
pub fn mov_to_sreg(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let which = segment(insn.iced().op0_register().number() as u8);
    if which == SegReg::Cs {
        return Err(ctx.cpu.fault(UD));
    }
    let selector = ctx.read_op(insn, 1, 2)? as u16;
    ctx.load_segment(which, selector)?;
    if which == SegReg::Ss {
        shadow_after_ss(ctx);
    }
    Ok(())
}

/// MOV from a segment register: zero-extended to a register, two bytes to memory.
pub fn mov_from_sreg(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let which = segment(insn.iced().op1_register().number() as u8);
    let selector = ctx.cpu.segment(which).selector;
    write_16(ctx, insn, selector)
}

/// Writes operand 0: a register of the operand's size, zero-extended, or two bytes of memory.
fn write_16(ctx: &mut Ctx<'_>, insn: &Insn, value: u16) -> Result<(), Stop> {
    let iced = insn.iced();
    let size = match iced.op0_kind() {
        iced_x86::OpKind::Register => iced.op0_register().size() as u8,
        _ => 2,
    };
    ctx.write_op(insn, 0, size, value.into())
}

/// POP of a segment register with an operand size of `SIZE` bytes.
pub fn pop_sreg<const SIZE: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let which = segment(insn.iced().op0_register().number() as u8);
    let selector = ctx.peek(0, SIZE)? as u16;
    // The stack pointer's width is that of the stack before.
    let mask = ctx.cpu.mode.stack_mask();
    ctx.load_segment(which, selector)?;
    let sp = ctx.cpu.gpr[4];
    ctx.cpu.gpr[4] = sp & !mask | sp.wrapping_add(SIZE.into()) & mask;
    if which == SegReg::Ss {
        shadow_after_ss(ctx);
    }
    Ok(())
}

fn shadow_after_ss(ctx: &mut Ctx<'_>) {
    ctx.cpu.events.shadow = Shadow::MovSs;
    ctx.cpu.leave = true;
}

/// LES, LSS, LDS, LFS, LGS.
pub fn load_far_pointer<const SEG: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let ea = ctx.ea(insn);
    let size = insn.iced().op0_register().size() as u8;
    let offset = ctx.load_sized(insn.seg, ea, size)?;
    let next = ea.wrapping_add(size.into()) & insn.address_mask();
    let selector = ctx.load_sized(insn.seg, next, 2)? as u16;
    ctx.load_segment(segment(SEG), selector)?;
    ctx.write_op(insn, 0, size, offset)
}

pub fn lldt(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_protected()?;
    ctx.need_cpl0()?;
    let selector = ctx.read_op(insn, 0, 2)? as u16;
    if is_null(selector) {
        let ldtr = ctx.cpu.segment_mut(SegReg::Ldtr);
        ldtr.selector = selector;
        ldtr.attr &= !ATTR_P;
        return Ok(());
    }
    let found = system_descriptor(ctx, selector, &[ty::LDT])?;
    *ctx.cpu.segment_mut(SegReg::Ldtr) = system_segment(ctx, selector, &found)?;
    ctx.cpu.serialize();
    Ok(())
}

pub fn ltr(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_protected()?;
    ctx.need_cpl0()?;
    let selector = ctx.read_op(insn, 0, 2)? as u16;
    let kinds: &[u16] = match ctx.cpu.mode.long {
        true => &[ty::TSS_AVAILABLE],
        false => &[ty::TSS_AVAILABLE, ty::TSS16_AVAILABLE],
    };
    let mut found = system_descriptor(ctx, selector, kinds)?;
    // Available becomes busy.
    found.desc.0 |= 2 << 40;
    let loaded = system_segment(ctx, selector, &found)?;
    ctx.store_linear(found.at.wrapping_add(5), (found.desc.0 >> 40) as u8)?;
    *ctx.cpu.segment_mut(SegReg::Tr) = loaded;
    ctx.cpu.serialize();
    Ok(())
}

/// The descriptor for LLDT or LTR: in the GDT, of one of these types, present.
fn system_descriptor(ctx: &mut Ctx<'_>, selector: u16, kinds: &[u16]) -> Result<Found, Stop> {
    if selector & SELECTOR_TI != 0 {
        return Err(ctx.cpu.fault_code(GP, index(selector)));
    }
    let found = ctx.need_descriptor(selector, GP)?;
    if !found.desc.is_system() || !kinds.contains(&found.desc.kind()) {
        return Err(ctx.cpu.fault_code(GP, index(selector)));
    }
    if !found.desc.present() {
        return Err(ctx.cpu.fault_code(NP, index(selector)));
    }
    Ok(found)
}

fn system_segment(ctx: &mut Ctx<'_>, selector: u16, found: &Found) -> Result<Segment, Stop> {
    let mut loaded = found.segment(selector);
    if ctx.cpu.mode.long {
        loaded.base |= ctx.upper_half(selector, found)? << 32;
        if !is_canonical_48(loaded.base) {
            return Err(ctx.cpu.fault_code(GP, index(selector)));
        }
    }
    Ok(loaded)
}

/// SLDT (LDTR) and STR (TR).
pub fn store_selector<const SEG: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_protected()?;
    ctx.need_umip()?;
    let selector = ctx.cpu.segment(segment(SEG)).selector;
    write_16(ctx, insn, selector)
}

/// VERR, and VERW with `WRITE`.
pub fn verify<const WRITE: bool>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_protected()?;
    let selector = ctx.read_op(insn, 0, 2)? as u16;
    let found = ctx.visible(selector)?;
    let ok = found.is_some_and(|f| if WRITE { f.writable_data() } else { f.readable() });
    ctx.set_zf(ok);
    Ok(())
}

/// LAR, and LSL with `LIMIT`.
pub fn look_up<const LIMIT: bool>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_protected()?;
    let selector = ctx.read_op(insn, 1, 2)? as u16;
    let found = ctx.visible(selector)?.filter(|f| {
        let long = ctx.cpu.mode.long;
        let gates = [ty::CALL_GATE16, ty::TASK_GATE];
        let legacy = [ty::TSS16_AVAILABLE, ty::TSS16_BUSY];
        match f.desc.kind() {
            _ if !f.desc.is_system() => true,
            ty::LDT | ty::TSS_AVAILABLE | ty::TSS_BUSY => true,
            ty::CALL_GATE => !LIMIT,
            kind if gates.contains(&kind) => !LIMIT && !long,
            kind => legacy.contains(&kind) && !long,
        }
    });
    ctx.set_zf(found.is_some());
    let Some(found) = found else { return Ok(()) };
    let value = match LIMIT {
        true => found.desc.limit(),
        false => (found.desc.0 >> 32) as u32 & 0x00ff_ff00,
    };
    let size = insn.iced().op0_register().size() as u8;
    ctx.write_op(insn, 0, size, value.into())
}

/// ARPL: raises the RPL of operand 0 to that of operand 1.
pub fn arpl(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_protected()?;
    let selector = ctx.read_op(insn, 0, 2)?;
    let wanted = ctx.read_op(insn, 1, 2)? & 3;
    if selector & 3 < wanted {
        ctx.write_op(insn, 0, 2, selector & !3 | wanted)?;
        ctx.set_zf(true);
    } else {
        ctx.set_zf(false);
    }
    Ok(())
}
