//! IRET (SDM volume 2, IRET/IRETD/IRETQ) and its kin: INT n, INT3, INTO, INT1.

use crate::{
    Ctx, Insn, Stop,
    event::Kind,
    seg::{Found, index, is_null, null_stack, rpl},
    task::Switch,
};
use vcpu_state::{SegReg, Segment};
use x86_defs::{
    exception::{BP, DB, GP, NP, OF, SS},
    gpr::RSP,
    is_canonical_48, rflags,
    segment::{ATTR_DB, ATTR_L},
};

/// INT n.
pub fn int(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let vector = insn.iced().immediate8();
    if ctx.vme() && ctx.redirects(vector)? {
        return ctx.int_v86(vector);
    }
    if ctx.cpu.mode.v86 && ctx.iopl() < 3 {
        return Err(ctx.gp(0));
    }
    ctx.software_interrupt(vector, Kind::Software)
}

pub fn int3(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.software_interrupt(BP, Kind::Software)
}

pub fn into(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    match ctx.cpu.flags.of() {
        true => ctx.software_interrupt(OF, Kind::Software),
        false => Ok(()),
    }
}

pub fn int1(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.software_interrupt(DB, Kind::Privileged)
}

/// IRET with an operand size of `SIZE` bytes.
pub fn iret<const SIZE: u8>(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    // NMIs are unmasked even if the instruction faults (SDM volume 3, 6.7.1).
    ctx.cpu.events.nmi_masked = false;
    ctx.cpu.look = true;
    ctx.cpu.leave = true;
    let mode = ctx.cpu.mode;
    if !mode.protected {
        return real(ctx, SIZE);
    }
    if mode.v86 {
        return from_v86(ctx, SIZE);
    }
    if ctx.cpu.rflags & rflags::NT != 0 {
        if mode.long {
            return Err(ctx.gp(0));
        }
        return return_to_task(ctx);
    }
    let size = u64::from(SIZE);
    let rip = ctx.peek(0, SIZE)?;
    let cs = ctx.peek(size, SIZE)? as u16;
    let flags = ctx.peek(2 * size, SIZE)?;
    if flags & rflags::VM != 0 && SIZE == 4 && mode.cpl == 0 && !mode.long {
        return to_v86(ctx, rip, cs, flags);
    }
    let code = return_code(ctx, cs)?;
    let target = Target { rip, cs, code, flags, size: SIZE };
    let cs_long = mode.long && code.desc.attr() & ATTR_L != 0;
    let fine = if cs_long { is_canonical_48(rip) } else { rip <= code.desc.limit().into() };
    if mode.is64() || rpl(cs) > mode.cpl {
        with_stack(ctx, target, fine)
    } else {
        if !fine {
            return Err(ctx.gp(0));
        }
        same_level(ctx, target)
    }
}

/// Where a protected-mode IRET goes.
#[derive(Clone, Copy)]
struct Target {
    rip: u64,
    cs: u16,
    code: Found,
    flags: u64,
    size: u8,
}

/// The descriptor of a CS to return to (also of a far RET), checked.
pub(crate) fn return_code(ctx: &mut Ctx<'_>, cs: u16) -> Result<Found, Stop> {
    let bad = index(cs);
    let cpl = ctx.cpu.mode.cpl;
    let found = ctx.need_descriptor(cs, GP)?;
    let dpl = found.desc.dpl();
    let level = if found.conforming() { dpl <= rpl(cs) } else { dpl == rpl(cs) };
    let both = ATTR_L | ATTR_DB;
    let mixed = ctx.cpu.mode.long && found.desc.attr() & both == both;
    if !found.code() || rpl(cs) < cpl || !level || mixed {
        return Err(ctx.gp(bad));
    }
    if !found.desc.present() {
        return Err(ctx.cpu.fault_code(NP, bad));
    }
    Ok(found)
}

fn same_level(ctx: &mut Ctx<'_>, mut to: Target) -> Result<(), Stop> {
    ctx.mark_accessed(&mut to.code)?;
    let flags = merged_flags(ctx, to.flags, to.size);
    ctx.pop_bytes(3 * u64::from(to.size));
    *ctx.cpu.segment_mut(SegReg::Cs) = to.code.segment(to.cs);
    ctx.cpu.rip = to.rip;
    ctx.cpu.set_rflags(flags);
    Ok(())
}

/// The stack pointer is popped too: to an outer level, and always from 64-bit mode.
fn with_stack(ctx: &mut Ctx<'_>, mut to: Target, fine: bool) -> Result<(), Stop> {
    let size = u64::from(to.size);
    let sp = ctx.peek(3 * size, to.size)?;
    let ss = ctx.peek(4 * size, to.size)? as u16;
    let long_target = ctx.cpu.mode.long && to.code.desc.attr() & ATTR_L != 0;
    let stack = return_stack(ctx, ss, rpl(to.cs), long_target)?;
    if !fine {
        return Err(ctx.gp(0));
    }
    ctx.mark_accessed(&mut to.code)?;
    let flags = merged_flags(ctx, to.flags, to.size);
    let outer = rpl(to.cs) > ctx.cpu.mode.cpl;
    let cpu = &mut *ctx.cpu;
    *cpu.segment_mut(SegReg::Cs) = to.code.segment(to.cs);
    *cpu.segment_mut(SegReg::Ss) = stack;
    cpu.rip = to.rip;
    cpu.set_rflags(flags);
    set_stack_pointer(ctx, sp);
    if outer {
        ctx.drop_inner_segments();
    }
    Ok(())
}

/// Sets RSP as far as the new stack segment uses it.
pub(crate) fn set_stack_pointer(ctx: &mut Ctx<'_>, sp: u64) {
    let old = ctx.cpu.gpr[RSP];
    ctx.cpu.gpr[RSP] = match ctx.cpu.mode.stack {
        2 => old & !0xffff | sp & 0xffff,
        4 => sp & 0xffff_ffff,
        _ => sp,
    };
}

/// SS to return to (also of a far RET), at level `cpl`.
pub(crate) fn return_stack(
    ctx: &mut Ctx<'_>,
    selector: u16,
    cpl: u8,
    long_target: bool,
) -> Result<Segment, Stop> {
    let bad = index(selector);
    if is_null(selector) {
        if long_target && cpl != 3 && rpl(selector) == cpl {
            return Ok(null_stack(selector, cpl));
        }
        return Err(ctx.gp(0));
    }
    let mut found = ctx.need_descriptor(selector, GP)?;
    if rpl(selector) != cpl || !found.writable_data() || found.desc.dpl() != cpl {
        return Err(ctx.gp(bad));
    }
    if !found.desc.present() {
        return Err(ctx.cpu.fault_code(SS, bad));
    }
    ctx.mark_accessed(&mut found)?;
    Ok(found.segment(selector))
}

/// RFLAGS after an IRET of protected mode, by the rights of the level that executes it.
fn merged_flags(ctx: &Ctx<'_>, popped: u64, size: u8) -> u64 {
    let old = ctx.cpu.rflags();
    let cpl = u64::from(ctx.cpu.mode.cpl);
    let mut take = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if size > 2 {
        take |= rflags::RF | rflags::AC | rflags::ID;
    }
    if cpl <= old >> rflags::IOPL_SHIFT & 3 {
        take |= rflags::IF;
    }
    if cpl == 0 {
        take |= rflags::IOPL;
        if size > 2 {
            take |= rflags::VIF | rflags::VIP;
        }
    }
    old & !take | popped & take
}

fn real(ctx: &mut Ctx<'_>, size: u8) -> Result<(), Stop> {
    let step = u64::from(size);
    let rip = ctx.peek(0, size)?;
    let cs = ctx.peek(step, size)? as u16;
    let flags = ctx.peek(2 * step, size)?;
    if rip > ctx.cpu.segment(SegReg::Cs).limit.into() {
        return Err(ctx.gp(0));
    }
    let old = ctx.cpu.rflags();
    let kept = match size {
        2 => !0xffff,
        _ => rflags::VM | rflags::VIF | rflags::VIP,
    };
    ctx.pop_bytes(3 * step);
    ctx.cpu.set_rflags(flags & !kept | old & kept);
    ctx.load_paragraph(SegReg::Cs, cs);
    ctx.cpu.rip = rip;
    Ok(())
}

fn from_v86(ctx: &mut Ctx<'_>, size: u8) -> Result<(), Stop> {
    let trusted = ctx.iopl() == 3;
    if !(trusted || ctx.vme() && size == 2) {
        return Err(ctx.gp(0));
    }
    let step = u64::from(size);
    let rip = ctx.peek(0, size)?;
    let cs = ctx.peek(step, size)? as u16;
    let flags = ctx.peek(2 * step, size)?;
    if rip > 0xffff {
        return Err(ctx.gp(0));
    }
    let old = ctx.cpu.rflags();
    let mut kept = rflags::VM | rflags::IOPL | rflags::VIF | rflags::VIP;
    if size == 2 {
        kept |= !0xffff;
    }
    let new = if trusted { flags & !kept | old & kept } else { ctx.virtual_flags(flags)? };
    ctx.pop_bytes(3 * step);
    ctx.cpu.set_rflags(new);
    ctx.load_paragraph(SegReg::Cs, cs);
    ctx.cpu.rip = rip;
    Ok(())
}

/// From level 0 to virtual-8086 mode, with all segment registers on the stack.
fn to_v86(ctx: &mut Ctx<'_>, rip: u64, cs: u16, flags: u64) -> Result<(), Stop> {
    if rip > 0xffff {
        return Err(ctx.gp(0));
    }
    let sp = ctx.peek(12, 4)?;
    let mut selectors = [0; 5];
    for (n, selector) in selectors.iter_mut().enumerate() {
        *selector = ctx.peek(16 + 4 * n as u64, 4)? as u16;
    }
    ctx.cpu.set_rflags(flags);
    let order = [SegReg::Ss, SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs];
    for (which, selector) in order.into_iter().zip(selectors) {
        ctx.load_paragraph(which, selector);
    }
    ctx.load_paragraph(SegReg::Cs, cs);
    ctx.cpu.gpr[RSP] = sp;
    ctx.cpu.rip = rip;
    Ok(())
}

/// NT is set: back to the task that the TSS links to.
fn return_to_task(ctx: &mut Ctx<'_>) -> Result<(), Stop> {
    let tr = *ctx.cpu.segment(SegReg::Tr);
    let link: u16 = ctx.load_linear(tr.base)?;
    ctx.switch_task(link, Switch::Return)
}
