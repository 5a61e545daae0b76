//! Near branches, calls, returns and loops.

use crate::{
    Ctx, Insn, Stop,
    operand::{Int, Rm},
};
use vcpu_state::SegReg;
use x86_defs::{exception, is_canonical_48};

impl Ctx<'_> {
    /// Goes to an offset in CS, checked: #GP(0) beyond the limit or if not canonical.
    #[inline(always)]
    pub fn jump(&mut self, target: u64) -> Result<(), Stop> {
        let cpu = &mut *self.cpu;
        let fine = if cpu.mode.is64() {
            is_canonical_48(target)
        } else {
            target <= u64::from(cpu.seg[SegReg::Cs as usize].limit)
        };
        if !fine {
            return Err(self.cpu.fault_code(exception::GP, 0));
        }
        self.cpu.rip = target;
        Ok(())
    }

    /// The target of a relative branch.
    #[inline(always)]
    fn relative(&self, insn: &Insn) -> u64 {
        let target = self.cpu.rip.wrapping_add(insn.imm);
        match insn.osize {
            8 => target,
            4 => target & 0xffff_ffff,
            _ => target & 0xffff,
        }
    }

    /// Runs `f`, and gives the stack pointer its old value if it fails.
    #[inline(always)]
    pub fn with_stack<R>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<R, Stop>,
    ) -> Result<R, Stop> {
        let sp = self.cpu.gpr[4];
        let result = f(self);
        if result.is_err() {
            self.cpu.gpr[4] = sp;
        }
        result
    }
}

/// The same in 64-bit mode.
#[inline(always)]
fn jump64(ctx: &mut Ctx<'_>, target: u64) -> Result<(), Stop> {
    if !is_canonical_48(target) {
        return Err(ctx.cpu.fault_code(exception::GP, 0));
    }
    ctx.cpu.rip = target;
    Ok(())
}

#[inline(always)]
fn branch64(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let target = ctx.cpu.rip.wrapping_add(insn.imm);
    jump64(ctx, target)?;
    Err(Stop::Branch)
}

pub fn jmp_rel64(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    branch64(ctx, insn)
}

pub fn jcc64<const CODE: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    if ctx.cpu.flags.condition(CODE) {
        return branch64(ctx, insn);
    }
    Ok(())
}

pub fn call_rel64(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let back = ctx.cpu.rip;
    jump64(ctx, back.wrapping_add(insn.imm))?;
    if let Err(stop) = ctx.push64(back) {
        ctx.cpu.rip = back;
        return Err(stop);
    }
    Err(Stop::Branch)
}

/// RET without an immediate.
pub fn ret64(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    let at = ctx.cpu.gpr[4];
    let target = ctx.load_flat(SegReg::Ss, at)?;
    jump64(ctx, target)?;
    ctx.cpu.gpr[4] = at.wrapping_add(8);
    Ok(())
}

pub fn jmp_rel(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    branch(ctx, insn)
}

/// Takes a relative branch.
#[inline(always)]
fn branch(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let target = ctx.relative(insn);
    ctx.jump(target)?;
    Err(Stop::Branch)
}

pub fn jcc<const CODE: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    if ctx.cpu.flags.condition(CODE) {
        return branch(ctx, insn);
    }
    Ok(())
}

pub fn jmp_rm<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let target = S::load::<T>(ctx, insn)?.to64();
    ctx.jump(target)
}

#[inline(always)]
fn call(ctx: &mut Ctx<'_>, target: u64, size: u8) -> Result<(), Stop> {
    let back = ctx.cpu.rip;
    ctx.jump(target)?;
    ctx.push(back, size).inspect_err(|_| ctx.cpu.rip = back)
}

pub fn call_rel(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let target = ctx.relative(insn);
    call(ctx, target, insn.osize)?;
    Err(Stop::Branch)
}

pub fn call_rm<T: Int, S: Rm>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let target = S::load::<T>(ctx, insn)?.to64();
    call(ctx, target, T::BYTES)
}

/// RET, and RET imm16 with the number of bytes in `imm`.
pub fn ret(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.with_stack(|ctx| {
        let target = ctx.pop(insn.osize)?;
        ctx.jump(target)?;
        if insn.imm != 0 {
            ctx.release(insn.imm);
        }
        Ok(())
    })
}

impl Ctx<'_> {
    /// Adds to the stack pointer as far as it is used.
    pub fn release(&mut self, bytes: u64) {
        let mask = self.cpu.mode.stack_mask();
        let sp = self.cpu.gpr[4];
        self.cpu.gpr[4] = sp & !mask | sp.wrapping_add(bytes) & mask;
    }

    fn counter(&self, insn: &Insn) -> u64 {
        self.cpu.gpr[1] & insn.address_mask()
    }

    /// Writes RCX, ECX or CX by address size.
    pub(crate) fn set_by_address_size(&mut self, insn: &Insn, number: u8, value: u64) {
        match insn.asize {
            2 => self.set_reg(number, value as u16),
            4 => self.set_reg(number, value as u32),
            _ => self.set_reg(number, value),
        }
    }
}

/// LOOP (2), LOOPE (1), LOOPNE (0).
pub fn loop_while<const KIND: u8>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let left = ctx.counter(insn).wrapping_sub(1) & insn.address_mask();
    let goes = match KIND {
        0 => !ctx.cpu.flags.zf(),
        1 => ctx.cpu.flags.zf(),
        _ => true,
    };
    if left == 0 || !goes {
        ctx.set_by_address_size(insn, 1, left);
        return Ok(());
    }
    let result = branch(ctx, insn);
    if result == Err(Stop::Branch) {
        ctx.set_by_address_size(insn, 1, left);
    }
    result
}

/// JCXZ, JECXZ, JRCXZ.
pub fn jcxz(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    if ctx.counter(insn) == 0 {
        return branch(ctx, insn);
    }
    Ok(())
}
