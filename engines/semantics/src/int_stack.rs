//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE.

use crate::{Ctx, Insn, Stop, operand::reg_number};
use iced_x86::OpKind;
use vcpu_state::SegReg;

pub fn push_reg(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.cpu.gpr[usize::from(insn.rm & 15)];
    ctx.push(value, insn.osize)
}

/// PUSH of a register in 64-bit mode.
pub fn push_reg64(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.cpu.gpr[usize::from(insn.rm & 15)];
    ctx.push64(value)
}

/// POP of a register in 64-bit mode.
pub fn pop_reg64(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.pop64()?;
    ctx.set_reg(insn.rm, value);
    Ok(())
}

pub fn push_imm(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.push(insn.imm, insn.osize)
}

pub fn push_mem(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let ea = ctx.ea(insn);
    let value = ctx.load_sized(insn.seg, ea, insn.osize)?;
    ctx.push(value, insn.osize)
}

/// PUSH of a segment register, zero-extended.
pub fn push_segment(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.cpu.segment(crate::insn::segment(insn.reg)).selector;
    ctx.push(value.into(), insn.osize)
}

pub fn pop_reg(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.pop(insn.osize)?;
    match insn.osize {
        2 => ctx.set_reg(insn.rm, value as u16),
        4 => ctx.set_reg(insn.rm, value as u32),
        _ => ctx.set_reg(insn.rm, value),
    }
    Ok(())
}

/// The address is computed after the stack pointer was incremented (SDM volume 2, POP).
pub fn pop_mem(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.with_stack(|ctx| {
        let value = ctx.pop(insn.osize)?;
        let ea = ctx.ea(insn);
        ctx.store_sized(insn.seg, ea, insn.osize, value)
    })
}

pub fn pusha(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.with_stack(|ctx| {
        let saved = ctx.cpu.gpr;
        for value in &saved[..8] {
            ctx.push(*value, insn.osize)?;
        }
        Ok(())
    })
}

pub fn popa(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.with_stack(|ctx| {
        let mut values = [0; 8];
        for value in values.iter_mut().rev() {
            *value = ctx.pop(insn.osize)?;
        }
        for (number, value) in values.iter().enumerate().filter(|(n, _)| *n != 4) {
            match insn.osize {
                2 => ctx.set_reg(number as u8, *value as u16),
                _ => ctx.set_reg(number as u8, *value as u32),
            }
        }
        Ok(())
    })
}

pub fn leave(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.with_stack(|ctx| {
        let mask = ctx.cpu.mode.stack_mask();
        let (sp, bp) = (ctx.cpu.gpr[4], ctx.cpu.gpr[5]);
        ctx.cpu.gpr[4] = sp & !mask | bp & mask;
        let value = ctx.pop(insn.osize)?;
        match insn.osize {
            2 => ctx.set_reg(5, value as u16),
            4 => ctx.set_reg(5, value as u32),
            _ => ctx.set_reg(5, value),
        }
        Ok(())
    })
}

/// ENTER: frame of `imm` bytes at nesting level of the second immediate (SDM volume 2).
pub fn enter(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let size = insn.osize;
    let level = match insn.iced().op_kind(1) {
        OpKind::Immediate8_2nd => insn.iced().immediate8_2nd() & 31,
        _ => 0,
    };
    ctx.with_stack(|ctx| {
        let mask = ctx.cpu.mode.stack_mask();
        let mut bp = ctx.cpu.gpr[5];
        ctx.push(bp, size)?;
        let frame = ctx.cpu.gpr[4];
        for _ in 1..level {
            bp = bp & !mask | bp.wrapping_sub(u64::from(size)) & mask;
            let value = ctx.load_sized(SegReg::Ss as u8, bp & mask, size)?;
            ctx.push(value, size)?;
        }
        if level > 0 {
            ctx.push(frame, size)?;
        }
        let sp = ctx.cpu.gpr[4];
        let new = sp.wrapping_sub(insn.imm & 0xffff) & mask;
        // The new top of the stack must be writable.
        ctx.probe(SegReg::Ss, new, size.into(), true)?;
        ctx.cpu.gpr[4] = sp & !mask | new;
        match size {
            2 => ctx.set_reg(5, frame as u16),
            4 => ctx.set_reg(5, frame as u32),
            _ => ctx.set_reg(5, frame),
        }
        Ok(())
    })
}

/// BOUND: #BR unless the register lies between the two signed bounds.
pub fn bound(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let size = insn.osize;
    let ea = ctx.ea(insn);
    let next = ea.wrapping_add(size.into()) & insn.address_mask();
    let sext = |v: u64| if size == 2 { i64::from(v as i16) } else { i64::from(v as i32) };
    let low = sext(ctx.load_sized(insn.seg, ea, size)?);
    let high = sext(ctx.load_sized(insn.seg, next, size)?);
    let index = sext(ctx.cpu.gpr[usize::from(reg_number(insn.iced().op0_register()))]);
    if index < low || index > high {
        return Err(ctx.cpu.fault(x86_defs::exception::BR));
    }
    Ok(())
}
