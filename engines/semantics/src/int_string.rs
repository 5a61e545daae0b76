//! String instructions. A REP goes page by page where memory allows it, and can be interrupted
//! between any two iterations: the registers then say what is left.

use crate::{
    Ctx, Insn, Stop,
    insn::{prefix, segment},
    int_alu::sub_flags,
    operand::Int,
};
use std::sync::atomic::Ordering::Relaxed;
use vcpu_state::SegReg;
use x86_defs::{gpr, rflags};

/// Iterations between two polls of the slow way.
const SLICE: u64 = 256;

impl Ctx<'_> {
    fn index(&self, insn: &Insn, number: usize) -> u64 {
        self.cpu.gpr[number & 15] & insn.address_mask()
    }

    /// Moves RSI or RDI by `count` elements of `size` in the direction of DF.
    fn step(&mut self, insn: &Insn, number: usize, size: u8, count: u64) {
        let bytes = count.wrapping_mul(u64::from(size));
        let at = self.index(insn, number);
        let new = if self.backward() { at.wrapping_sub(bytes) } else { at.wrapping_add(bytes) };
        self.set_by_address_size(insn, number as u8, new);
    }

    fn backward(&self) -> bool {
        self.cpu.rflags & rflags::DF != 0
    }

    /// Elements that may be done in one piece: what is left, up to the end of the page of each
    /// index register and of the address space; 0 if they go backward.
    fn span(&self, insn: &Insn, left: u64, size: u8, source: bool, dest: bool) -> u64 {
        if self.backward() {
            return 0;
        }
        let mut count = left.min(0x1000 / u64::from(size)).min(self.cpu.rep_budget);
        let mut bound = |number: usize, seg: u8| {
            let ea = self.index(insn, number);
            let base = self.cpu.segment(segment(seg)).base;
            let long = self.cpu.mode.is64() && seg < SegReg::Fs as u8;
            let linear = if long { ea } else { ea.wrapping_add(base) };
            let page = 0x1000 - (linear & 0xfff);
            // 16- and 32-bit indices wrap.
            let wrap = (insn.address_mask() - ea).saturating_add(1);
            count = count.min(page.min(wrap) / u64::from(size));
        };
        if source {
            bound(gpr::RSI, insn.seg);
        }
        if dest {
            bound(gpr::RDI, SegReg::Es as u8);
        }
        count
    }

    /// Runs `piece` until RCX is zero. It is given what is left, does at least one iteration,
    /// and returns how many it did and whether the condition of REPE or REPNE ended it.
    fn repeat(
        &mut self,
        insn: &Insn,
        mut piece: impl FnMut(&mut Self, &Insn, u64) -> Result<(u64, bool), Stop>,
    ) -> Result<(), Stop> {
        if insn.prefix & (prefix::REP | prefix::REPNE) == 0 {
            piece(self, insn, 1)?;
            return Ok(());
        }
        let start = self.start(insn);
        let mut since_poll = 0;
        let mut total = 0u64;
        loop {
            let left = self.cpu.gpr[gpr::RCX] & insn.address_mask();
            if left == 0 {
                break;
            }
            let result = piece(self, insn, left);
            let (done, ended) = match result {
                Ok(done) => done,
                Err(stop) => {
                    self.cpu.rep_retired += total;
                    return Err(stop);
                }
            };
            self.set_by_address_size(insn, gpr::RCX as u8, left.wrapping_sub(done));
            total += done;
            self.cpu.rep_budget = self.cpu.rep_budget.saturating_sub(done);
            if ended || left <= done {
                break;
            }
            since_poll += if done > 1 { SLICE } else { 1 };
            let poll = since_poll >= SLICE && self.cpu.slot.flags.load(Relaxed) != 0;
            if poll || self.cpu.leave || self.cpu.rep_budget == 0 {
                self.cpu.rip = start;
                self.cpu.leave = true;
                break;
            }
            since_poll %= SLICE;
        }
        // The instruction itself counts for one.
        self.cpu.rep_retired += total.saturating_sub(1);
        Ok(())
    }
}

pub fn movs<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.repeat(insn, |ctx, insn, left| {
        let many = if left > 1 { ctx.span(insn, left, T::BYTES, true, true) } else { 0 };
        let (from, to) = (ctx.index(insn, gpr::RSI), ctx.index(insn, gpr::RDI));
        if many > 1
            && let bytes = many * u64::from(T::BYTES)
            && let Some(source) = ctx.host_span_found(insn.segment(), from, bytes, false)
            && let Some(dest) = ctx.host_span_found(SegReg::Es, to, bytes, true)
        {
            let arena = ctx.cpu.mem.arena();
            let distance = dest.0.wrapping_sub(source.0);
            if distance as u64 >= bytes {
                let mut buffer = [0; 0x1000];
                let part = &mut buffer[..bytes as usize & 0x1fff];
                arena.read(source, part);
                arena.write(dest, part);
            } else {
                // Overlapping forward: what was written is read again.
                for n in (0..bytes as usize).step_by(T::BYTES.into()) {
                    let at = |base: usize| guest_mem::ArenaOffset(base.wrapping_add(n));
                    arena.store(at(dest.0), arena.load::<T>(at(source.0)));
                }
            }
            ctx.step(insn, gpr::RSI, T::BYTES, many);
            ctx.step(insn, gpr::RDI, T::BYTES, many);
            return Ok((many, false));
        }
        let value = ctx.load::<T>(insn.segment(), from)?;
        ctx.store(SegReg::Es, to, value)?;
        ctx.step(insn, gpr::RSI, T::BYTES, 1);
        ctx.step(insn, gpr::RDI, T::BYTES, 1);
        Ok((1, false))
    })
}

pub fn stos<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let value = ctx.reg::<T>(0);
    ctx.repeat(insn, |ctx, insn, left| {
        let many = if left > 1 { ctx.span(insn, left, T::BYTES, false, true) } else { 0 };
        let to = ctx.index(insn, gpr::RDI);
        if many > 1
            && let bytes = many * u64::from(T::BYTES)
            && let Some(dest) = ctx.host_span(SegReg::Es, to, bytes, true)
        {
            let arena = ctx.cpu.mem.arena();
            let byte = value.to64() as u8;
            if value == T::from64(u64::from(byte).wrapping_mul(0x0101_0101_0101_0101)) {
                arena.fill(dest, bytes as usize, byte);
            } else {
                for n in (0..bytes as usize).step_by(T::BYTES.into()) {
                    arena.store(guest_mem::ArenaOffset(dest.0.wrapping_add(n)), value);
                }
            }
            ctx.step(insn, gpr::RDI, T::BYTES, many);
            return Ok((many, false));
        }
        ctx.store(SegReg::Es, to, value)?;
        ctx.step(insn, gpr::RDI, T::BYTES, 1);
        Ok((1, false))
    })
}

pub fn lods<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.repeat(insn, |ctx, insn, _| {
        let from = ctx.index(insn, gpr::RSI);
        let value = ctx.load::<T>(insn.segment(), from)?;
        ctx.set_reg(0, value);
        ctx.step(insn, gpr::RSI, T::BYTES, 1);
        Ok((1, false))
    })
}

/// True if REPE or REPNE goes on.
fn goes_on(ctx: &Ctx<'_>, insn: &Insn) -> bool {
    ctx.cpu.flags.zf() == (insn.prefix & prefix::REP != 0)
}

pub fn scas<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.repeat(insn, |ctx, insn, _| {
        let to = ctx.index(insn, gpr::RDI);
        let b = ctx.load::<T>(SegReg::Es, to)?;
        let a = ctx.reg::<T>(0);
        sub_flags(&mut ctx.cpu.flags, a, b, T::from64(a.to64().wrapping_sub(b.to64())));
        ctx.step(insn, gpr::RDI, T::BYTES, 1);
        Ok((1, !goes_on(ctx, insn)))
    })
}

pub fn cmps<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.repeat(insn, |ctx, insn, _| {
        let (from, to) = (ctx.index(insn, gpr::RSI), ctx.index(insn, gpr::RDI));
        let a = ctx.load::<T>(insn.segment(), from)?;
        let b = ctx.load::<T>(SegReg::Es, to)?;
        sub_flags(&mut ctx.cpu.flags, a, b, T::from64(a.to64().wrapping_sub(b.to64())));
        ctx.step(insn, gpr::RSI, T::BYTES, 1);
        ctx.step(insn, gpr::RDI, T::BYTES, 1);
        Ok((1, !goes_on(ctx, insn)))
    })
}

/// INS: the destination is probed before the port is read.
pub fn ins<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let port = ctx.cpu.gpr[gpr::RDX] as u16;
    ctx.io_allowed(port, T::BYTES)?;
    ctx.repeat(insn, |ctx, insn, _| {
        let to = ctx.index(insn, gpr::RDI);
        ctx.probe(SegReg::Es, to, T::BYTES.into(), true)?;
        let value = ctx.port_in(port, T::BYTES);
        ctx.store(SegReg::Es, to, T::from64(value))?;
        ctx.step(insn, gpr::RDI, T::BYTES, 1);
        Ok((1, false))
    })
}

pub fn outs<T: Int>(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let port = ctx.cpu.gpr[gpr::RDX] as u16;
    ctx.io_allowed(port, T::BYTES)?;
    ctx.repeat(insn, |ctx, insn, _| {
        let from = ctx.index(insn, gpr::RSI);
        let value = ctx.load::<T>(insn.segment(), from)?;
        ctx.port_out(port, T::BYTES, value.to64());
        ctx.step(insn, gpr::RSI, T::BYTES, 1);
        Ok((1, false))
    })
}
