//! Far JMP, CALL and RET, call gates included (SDM volume 2, CALL, JMP, RET; volume 3, 5.8).

use crate::{
    Ctx, Insn, Stop,
    seg::{Found, index, is_null, null_stack, rpl},
    sys_iret::{return_code, return_stack, set_stack_pointer},
    task::Switch,
};
use iced_x86::OpKind;
use vcpu_state::SegReg;
use x86_defs::{
    exception::{GP, NP, SS},
    gpr::RSP,
    is_canonical_48,
    segment::{ATTR_DB, ATTR_L, system_type as ty},
};

/// Selector and offset of the operand, with `size` bytes of offset.
fn operand(ctx: &mut Ctx<'_>, insn: &Insn, size: u8) -> Result<(u16, u64), Stop> {
    let iced = insn.iced();
    match iced.op0_kind() {
        OpKind::FarBranch16 => Ok((iced.far_branch_selector(), iced.far_branch16().into())),
        OpKind::FarBranch32 => Ok((iced.far_branch_selector(), iced.far_branch32().into())),
        _ => {
            let ea = ctx.ea(insn);
            let offset = ctx.load_sized(insn.seg, ea, size)?;
            let next = ea.wrapping_add(size.into()) & insn.address_mask();
            Ok((ctx.load_sized(insn.seg, next, 2)? as u16, offset))
        }
    }
}

/// JMP far, with `SIZE` bytes of offset.
pub fn jmp<const SIZE: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (selector, offset) = operand(ctx, insn, SIZE)?;
    transfer(ctx, selector, offset, None)
}

/// CALL far, with `SIZE` bytes of offset.
pub fn call<const SIZE: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (selector, offset) = operand(ctx, insn, SIZE)?;
    transfer(ctx, selector, offset, Some(SIZE))
}

/// Jumps, or calls with this operand size.
fn transfer(ctx: &mut Ctx<'_>, selector: u16, offset: u64, call: Option<u8>) -> Result<(), Stop> {
    if ctx.cpu.mode.real_like() {
        return transfer_real(ctx, selector, offset, call);
    }
    let found = ctx.need_descriptor(selector, GP)?;
    if found.desc.is_system() {
        return through_system(ctx, selector, &found, call);
    }
    let cpl = ctx.cpu.mode.cpl;
    let dpl = found.desc.dpl();
    let allowed = match found.conforming() {
        true => dpl <= cpl,
        false => rpl(selector) <= cpl && dpl == cpl,
    };
    if !found.code() || !allowed {
        return Err(ctx.gp(index(selector)));
    }
    enter(ctx, found, selector, offset, call)
}

fn transfer_real(
    ctx: &mut Ctx<'_>,
    selector: u16,
    offset: u64,
    call: Option<u8>,
) -> Result<(), Stop> {
    let limit = if ctx.cpu.mode.v86 { 0xffff } else { ctx.cpu.segment(SegReg::Cs).limit };
    if offset > limit.into() {
        return Err(ctx.gp(0));
    }
    if let Some(size) = call {
        let words = [ctx.cpu.segment(SegReg::Cs).selector.into(), ctx.cpu.rip];
        push_all(ctx, &words, size)?;
    }
    ctx.load_paragraph(SegReg::Cs, selector);
    ctx.cpu.rip = offset;
    ctx.cpu.leave = true;
    Ok(())
}

/// Pushes on the present stack, all or nothing.
fn push_all(ctx: &mut Ctx<'_>, words: &[u64], size: u8) -> Result<(), Stop> {
    let sp = ctx.cpu.gpr[RSP];
    let len = u64::from(size) * words.len() as u64;
    let mask = ctx.cpu.mode.stack_mask();
    for n in 1..=words.len() as u64 {
        let at = sp.wrapping_sub(u64::from(size) * n) & mask;
        ctx.probe(SegReg::Ss, at, size.into(), true)?;
    }
    for word in words {
        ctx.push(*word, size)?;
    }
    debug_assert_eq!(ctx.cpu.gpr[RSP] & mask, sp.wrapping_sub(len) & mask);
    Ok(())
}

/// To a code segment without a change of level, after the checks of privilege.
fn enter(
    ctx: &mut Ctx<'_>,
    mut found: Found,
    selector: u16,
    offset: u64,
    call: Option<u8>,
) -> Result<(), Stop> {
    if !found.desc.present() {
        return Err(ctx.cpu.fault_code(NP, index(selector)));
    }
    check_target(ctx, &found, selector, offset)?;
    ctx.mark_accessed(&mut found)?;
    if let Some(size) = call {
        let words = [ctx.cpu.segment(SegReg::Cs).selector.into(), ctx.cpu.rip];
        push_all(ctx, &words, size)?;
    }
    let cpu = &mut *ctx.cpu;
    let selector = selector & !3 | u16::from(cpu.mode.cpl);
    *cpu.segment_mut(SegReg::Cs) = found.segment(selector);
    cpu.rip = offset;
    cpu.leave = true;
    cpu.update_mode();
    Ok(())
}

/// The code segment suits the mode, and the offset suits it.
fn check_target(ctx: &mut Ctx<'_>, found: &Found, selector: u16, offset: u64) -> Result<(), Stop> {
    let bits = found.desc.attr() & (ATTR_L | ATTR_DB);
    let long = ctx.cpu.mode.long;
    if long && bits == ATTR_L | ATTR_DB {
        return Err(ctx.gp(index(selector)));
    }
    let fine = match long && bits == ATTR_L {
        true => is_canonical_48(offset),
        false => offset <= found.desc.limit().into(),
    };
    if fine { Ok(()) } else { Err(ctx.gp(0)) }
}

/// Through a call gate, a task gate or a TSS.
fn through_system(
    ctx: &mut Ctx<'_>,
    selector: u16,
    found: &Found,
    call: Option<u8>,
) -> Result<(), Stop> {
    let long = ctx.cpu.mode.long;
    let kind = found.desc.kind();
    let known = match kind {
        ty::CALL_GATE => true,
        ty::CALL_GATE16 | ty::TASK_GATE | ty::TSS_AVAILABLE | ty::TSS16_AVAILABLE => !long,
        _ => false,
    };
    let dpl = found.desc.dpl();
    if !known || dpl < ctx.cpu.mode.cpl || rpl(selector) > dpl {
        return Err(ctx.gp(index(selector)));
    }
    if !found.desc.present() {
        return Err(ctx.cpu.fault_code(NP, index(selector)));
    }
    let how = if call.is_some() { Switch::Call } else { Switch::Jump };
    match kind {
        ty::TSS_AVAILABLE | ty::TSS16_AVAILABLE => return ctx.switch_task(selector, how),
        ty::TASK_GATE => return ctx.switch_task((found.desc.0 >> 16) as u16, how),
        _ => {}
    }
    let raw = found.desc.0;
    let wide = kind == ty::CALL_GATE;
    let mut offset = raw & 0xffff | if wide { raw >> 32 & 0xffff_0000 } else { 0 };
    if long {
        offset |= ctx.upper_half(selector, found)? << 32;
    }
    let size = match (long, wide) {
        (true, _) => 8,
        (_, true) => 4,
        _ => 2,
    };
    let gate = Gate {
        selector: (raw >> 16) as u16,
        offset,
        size,
        params: if long { 0 } else { (raw >> 32 & 31) as u8 },
    };
    through_gate(ctx, &gate, call.is_some())
}

/// A call gate.
struct Gate {
    selector: u16,
    offset: u64,
    size: u8,
    /// Words to copy to an inner stack.
    params: u8,
}

fn through_gate(ctx: &mut Ctx<'_>, gate: &Gate, call: bool) -> Result<(), Stop> {
    let cpl = ctx.cpu.mode.cpl;
    let found = ctx.need_descriptor(gate.selector, GP)?;
    let dpl = found.desc.dpl();
    let both = ATTR_L | ATTR_DB;
    let suits = !ctx.cpu.mode.long || found.desc.attr() & both == ATTR_L;
    let level = match found.conforming() || call {
        true => dpl <= cpl,
        false => dpl == cpl,
    };
    if !found.code() || !level || !suits {
        return Err(ctx.gp(index(gate.selector)));
    }
    if !found.conforming() && dpl < cpl {
        return call_inner(ctx, gate, found);
    }
    let size = call.then_some(gate.size);
    enter(ctx, found, gate.selector, gate.offset, size)
}

/// CALL through a gate to an inner level.
fn call_inner(ctx: &mut Ctx<'_>, gate: &Gate, mut found: Found) -> Result<(), Stop> {
    if !found.desc.present() {
        return Err(ctx.cpu.fault_code(NP, index(gate.selector)));
    }
    check_target(ctx, &found, gate.selector, gate.offset)?;
    let new_cpl = found.desc.dpl();
    let old_ss = ctx.cpu.segment(SegReg::Ss).selector;
    let old_sp = ctx.cpu.gpr[RSP];
    let cs = ctx.cpu.segment(SegReg::Cs).selector;
    let rip = ctx.cpu.rip;
    let (stack, sp) = if ctx.cpu.mode.long {
        let top = ctx.tss_long(4 + 8 * u32::from(new_cpl))?;
        let words = [rip, cs.into(), old_sp, old_ss.into()];
        let mut bytes = [0; 32];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        let sp = top.wrapping_sub(32);
        if !is_canonical_48(top) || !is_canonical_48(sp) {
            return Err(ctx.cpu.fault_code(SS, 0));
        }
        ctx.mark_accessed(&mut found)?;
        ctx.store_frame(sp, &bytes, new_cpl)?;
        (null_stack(new_cpl.into(), new_cpl), sp)
    } else {
        let (mut stack, top) = ctx.inner_stack(new_cpl)?;
        let params = usize::from(gate.params);
        let mut words = [0; 35];
        (words[0], words[1]) = (old_ss.into(), old_sp);
        for n in 0..params {
            // The first in memory is the last to be pushed.
            let offset = u64::from(gate.size) * (params - 1 - n) as u64;
            words[2 + n] = ctx.peek(offset, gate.size)?;
        }
        (words[2 + params], words[3 + params]) = (cs.into(), rip);
        ctx.mark_stack_accessed(&mut stack)?;
        ctx.mark_accessed(&mut found)?;
        let used = &words[..4 + params];
        let error = index(stack.selector);
        let sp = ctx.push_frame(&stack, false, top, used, gate.size, new_cpl, error)?;
        (stack, sp)
    };
    let cpu = &mut *ctx.cpu;
    let selector = gate.selector & !3 | u16::from(new_cpl);
    *cpu.segment_mut(SegReg::Cs) = found.segment(selector);
    *cpu.segment_mut(SegReg::Ss) = stack;
    (cpu.rip, cpu.gpr[RSP]) = (gate.offset, sp);
    cpu.leave = true;
    cpu.update_mode();
    Ok(())
}

/// RET far with operands of `SIZE` bytes, releasing as many bytes of parameters as the
/// immediate says.
pub fn ret<const SIZE: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let iced = insn.iced();
    let release = if iced.op_count() > 0 { u64::from(iced.immediate16()) } else { 0 };
    let size = u64::from(SIZE);
    let rip = ctx.peek(0, SIZE)?;
    let cs = ctx.peek(size, SIZE)? as u16;
    if ctx.cpu.mode.real_like() {
        let limit = if ctx.cpu.mode.v86 { 0xffff } else { ctx.cpu.segment(SegReg::Cs).limit };
        if rip > limit.into() {
            return Err(ctx.gp(0));
        }
        ctx.pop_bytes(2 * size + release);
        ctx.load_paragraph(SegReg::Cs, cs);
        ctx.cpu.rip = rip;
        ctx.cpu.leave = true;
        return Ok(());
    }
    if is_null(cs) {
        return Err(ctx.gp(0));
    }
    let mut found = return_code(ctx, cs)?;
    check_target(ctx, &found, cs, rip)?;
    if rpl(cs) == ctx.cpu.mode.cpl {
        ctx.mark_accessed(&mut found)?;
        ctx.pop_bytes(2 * size + release);
        let cpu = &mut *ctx.cpu;
        *cpu.segment_mut(SegReg::Cs) = found.segment(cs);
        cpu.rip = rip;
        cpu.leave = true;
        cpu.update_mode();
        return Ok(());
    }
    let sp = ctx.peek(2 * size + release, SIZE)?;
    let ss = ctx.peek(3 * size + release, SIZE)? as u16;
    let long_target = ctx.cpu.mode.long && found.desc.attr() & ATTR_L != 0;
    let stack = return_stack(ctx, ss, rpl(cs), long_target)?;
    ctx.mark_accessed(&mut found)?;
    let cpu = &mut *ctx.cpu;
    *cpu.segment_mut(SegReg::Cs) = found.segment(cs);
    *cpu.segment_mut(SegReg::Ss) = stack;
    cpu.rip = rip;
    cpu.leave = true;
    cpu.update_mode();
    set_stack_pointer(ctx, sp);
    ctx.pop_bytes(release);
    ctx.drop_inner_segments();
    Ok(())
}
