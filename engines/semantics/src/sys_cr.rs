//! Control and debug registers: MOV CR, MOV DR, CLTS, LMSW, SMSW, XGETBV, XSETBV (SDM volume
//! 2, MOV; volume 3, 2.5 and 4.10.4).

use crate::{Ctx, Insn, Stop};
use soft_mmu::{Mode, Paging, load_pdptes};
use vcpu_state::SegReg;
use x86_defs::{
    cr::{cr0, cr3, cr4, efer, xcr0},
    dr,
    exception::{DB, UD},
    gpr::{RAX, RCX, RDX},
    segment::ATTR_L,
};

fn register(insn: &Insn, operand: u32) -> (usize, usize) {
    let iced = insn.iced();
    (iced.op_register(operand).number(), iced.op_register(1 - operand).number() & 15)
}

/// The operand's width: 64 bits in 64-bit mode, else 32, whatever the prefixes.
fn width_mask(ctx: &Ctx<'_>) -> u64 {
    if ctx.cpu.mode.is64() { !0 } else { 0xffff_ffff }
}

pub fn mov_from_cr(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (number, to) = register(insn, 1);
    ctx.control_register(number)?;
    let value = match number {
        0 => ctx.cpu.cr0,
        2 => ctx.cpu.cr2,
        3 => ctx.cpu.cr3,
        4 => ctx.cpu.cr4,
        8 => ctx.call(|host| host.cr8()).into(),
        _ => return Err(ctx.cpu.fault(UD)),
    };
    ctx.cpu.gpr[to] = value & width_mask(ctx);
    Ok(())
}

pub fn mov_to_cr(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (number, from) = register(insn, 0);
    ctx.control_register(number)?;
    let value = ctx.cpu.gpr[from] & width_mask(ctx);
    ctx.cpu.leave = true;
    match number {
        0 => ctx.set_cr0(value),
        2 => {
            ctx.cpu.cr2 = value;
            Ok(())
        }
        3 => ctx.set_cr3(value),
        4 => ctx.set_cr4(value),
        8 if value > 15 => Err(ctx.gp(0)),
        8 => {
            ctx.call_flow(|host| host.set_cr8(value as u8));
            ctx.cpu.look = true;
            Ok(())
        }
        _ => Err(ctx.cpu.fault(UD)),
    }
}

impl Ctx<'_> {
    /// #UD for a register that does not exist, then #GP(0) above level 0.
    fn control_register(&mut self, number: usize) -> Result<(), Stop> {
        match number {
            0 | 2 | 3 | 4 | 8 => self.need_cpl0(),
            _ => Err(self.cpu.fault(UD)),
        }
    }

    pub(crate) fn set_cr0(&mut self, value: u64) -> Result<(), Stop> {
        let cpu = &mut *self.cpu;
        let new = value & cr0::DEFINED | cr0::ET;
        let changed = new ^ cpu.cr0;
        let bad = value >> 32 != 0
            || new & (cr0::PG | cr0::PE) == cr0::PG
            || new & (cr0::CD | cr0::NW) == cr0::NW;
        if bad {
            return Err(self.gp(0));
        }
        let mut new_efer = cpu.efer;
        let mut pdpte = cpu.pdpte;
        if changed & cr0::PG != 0 {
            let long_code = cpu.segment(SegReg::Cs).attr & ATTR_L != 0;
            if new & cr0::PG == 0 {
                if cpu.cr4 & cr4::PCIDE != 0 || cpu.mode.is64() {
                    return Err(self.gp(0));
                }
                new_efer &= !efer::LMA;
            } else if cpu.efer & efer::LME != 0 {
                if cpu.cr4 & cr4::PAE == 0 || long_code {
                    return Err(self.gp(0));
                }
                new_efer |= efer::LMA;
            }
        }
        let latches = changed & (cr0::PG | cr0::CD | cr0::NW) != 0;
        if latches && new & cr0::PG != 0 && new_efer & efer::LMA == 0 && cpu.cr4 & cr4::PAE != 0 {
            pdpte = self.latched(self.cpu.cr3, new)?;
        }
        let cpu = &mut *self.cpu;
        (cpu.cr0, cpu.efer, cpu.pdpte) = (new, new_efer, pdpte);
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 || latches {
            cpu.paging_changed();
        }
        cpu.leave = true;
        cpu.update_mode();
        if changed & cr0::AM != 0 {
            cpu.mode_changed();
        }
        Ok(())
    }

    /// The page-directory-pointer entries that a value of CR3 selects; #GP(0) if one is bad.
    fn latched(&mut self, cr3: u64, cr0: u64) -> Result<[u64; 4], Stop> {
        let cpu = &mut *self.cpu;
        let features = cpu.mmu.features();
        let paging = Paging::new([cr0, cr3, cpu.cr4, cpu.efer], [0; 4], features);
        match load_pdptes(cpu.mmu.phys(), cr3, &paging) {
            Some(pdpte) => Ok(pdpte),
            None => Err(self.gp(0)),
        }
    }

    pub(crate) fn set_cr3(&mut self, value: u64) -> Result<(), Stop> {
        let cpu = &mut *self.cpu;
        let pcide = cpu.cr4 & cr4::PCIDE != 0;
        let keep = pcide && value & cr3::NO_FLUSH != 0;
        let value = if pcide { value & !cr3::NO_FLUSH } else { value };
        let mode = cpu.new_paging().mode;
        if cpu.mode.long && value >> cpu.mmu.features().phys_bits.min(52) != 0 {
            return Err(self.gp(0));
        }
        if mode == Mode::Pae {
            let cr0 = cpu.cr0;
            self.cpu.pdpte = self.latched(value, cr0)?;
        }
        let cpu = &mut *self.cpu;
        cpu.cr3 = value;
        let paging = cpu.new_paging();
        cpu.mmu.switch(paging, Paging::pcid(value, cpu.cr4), keep);
        cpu.leave = true;
        Ok(())
    }

    pub(crate) fn set_cr4(&mut self, value: u64) -> Result<(), Stop> {
        let offered = self.cr4_offered();
        let cpu = &mut *self.cpu;
        let changed = value ^ cpu.cr4;
        let on = changed & value;
        let bad = value & !offered != 0
            || cpu.mode.long && value & cr4::PAE == 0
            || on & cr4::PCIDE != 0 && (!cpu.mode.long || cpu.cr3 & cr3::PCID != 0);
        if bad {
            return Err(self.gp(0));
        }
        const LATCH: u64 = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
        let paged = cpu.cr0 & cr0::PG != 0;
        let mut pdpte = cpu.pdpte;
        if paged && changed & LATCH != 0 && value & cr4::PAE != 0 && !cpu.mode.long {
            let features = cpu.mmu.features();
            let paging = Paging::new([cpu.cr0, cpu.cr3, value, cpu.efer], [0; 4], features);
            match load_pdptes(cpu.mmu.phys(), cpu.cr3, &paging) {
                Some(entries) => pdpte = entries,
                None => return Err(self.gp(0)),
            }
        }
        let cpu = &mut *self.cpu;
        (cpu.cr4, cpu.pdpte) = (value, pdpte);
        const PAGING: u64 = LATCH | cr4::PCIDE | cr4::SMAP | cr4::PKE;
        if changed & PAGING != 0 {
            cpu.paging_changed();
        }
        cpu.leave = true;
        cpu.update_mode();
        Ok(())
    }

    /// CR4's bits that CPUID offers; others are reserved.
    fn cr4_offered(&self) -> u64 {
        let [_, _, ecx1, edx1] = self.cpu.cpuid.lookup(1, 0);
        let [_, ebx7, ecx7, _] = self.cpu.cpuid.lookup(7, 0);
        let table = [
            (edx1, 1, cr4::VME | cr4::PVI),
            (edx1, 4, cr4::TSD),
            (edx1, 2, cr4::DE),
            (edx1, 3, cr4::PSE),
            (edx1, 6, cr4::PAE),
            (edx1, 7, cr4::MCE),
            (edx1, 13, cr4::PGE),
            (edx1, 24, cr4::OSFXSR),
            (edx1, 25, cr4::OSXMMEXCPT),
            (ecx7, 2, cr4::UMIP),
            (ebx7, 0, cr4::FSGSBASE),
            (ecx1, 17, cr4::PCIDE),
            (ecx1, 26, cr4::OSXSAVE),
            (ebx7, 7, cr4::SMEP),
            (ebx7, 20, cr4::SMAP),
        ];
        let offered = table.iter().filter(|(word, bit, _)| word >> bit & 1 != 0);
        offered.fold(cr4::PCE, |bits, (_, _, more)| bits | more)
    }

    /// #GP(0) for user mode if CR4.UMIP is set.
    pub(crate) fn need_umip(&mut self) -> Result<(), Stop> {
        if self.cpu.cr4 & cr4::UMIP != 0 && self.cpu.mode.cpl != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }
}

pub fn clts(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    ctx.cpu.cr0 &= !cr0::TS;
    ctx.cpu.leave = true;
    Ok(())
}

/// LMSW: PE, MP, EM and TS; PE can only be set.
pub fn lmsw(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_cpl0()?;
    let value = ctx.read_op(insn, 0, 2)?;
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let old = ctx.cpu.cr0;
    ctx.set_cr0(old & !(low & !cr0::PE) | value & low)
}

pub fn smsw(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    ctx.need_umip()?;
    let iced = insn.iced();
    let size = match iced.op0_kind() {
        iced_x86::OpKind::Register => iced.op0_register().size() as u8,
        _ => 2,
    };
    let value = ctx.cpu.cr0;
    ctx.write_op(insn, 0, size, value)
}

/// A debug register may be used: level 0, no DR7.GD; DR4 and DR5 are aliases unless CR4.DE.
fn debug_register(ctx: &mut Ctx<'_>, number: usize) -> Result<usize, Stop> {
    let alias = matches!(number, 4 | 5);
    if number > 7 || alias && ctx.cpu.cr4 & cr4::DE != 0 {
        return Err(ctx.cpu.fault(UD));
    }
    ctx.need_cpl0()?;
    if ctx.cpu.dr7 & dr::DR7_GD != 0 {
        let stop = ctx.cpu.fault(DB);
        ctx.cpu.raised.payload = dr::DR6_BD;
        return Err(stop);
    }
    Ok(if alias { number + 2 } else { number })
}

pub fn mov_from_dr(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (number, to) = register(insn, 1);
    let value = match debug_register(ctx, number)? {
        6 => ctx.cpu.dr6,
        7 => ctx.cpu.dr7,
        n => ctx.cpu.dr[n & 3],
    };
    ctx.cpu.gpr[to] = value & width_mask(ctx);
    Ok(())
}

pub fn mov_to_dr(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let (number, from) = register(insn, 0);
    let number = debug_register(ctx, number)?;
    let value = ctx.cpu.gpr[from] & width_mask(ctx);
    if number >= 6 && value >> 32 != 0 {
        return Err(ctx.gp(0));
    }
    let cpu = &mut *ctx.cpu;
    match number {
        // BLD and RTM, active low, are not offered: they read as one.
        6 => cpu.dr6 = value & (dr::DR6_B | dr::DR6_BD | dr::DR6_BS | dr::DR6_BT) | dr::DR6_RESET,
        7 => cpu.dr7 = value & 0xffff_23ff | dr::DR7_RESET,
        n => cpu.dr[n & 3] = value,
    }
    cpu.debug_changed();
    cpu.leave = true;
    Ok(())
}

pub fn xgetbv(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    if ctx.cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(ctx.cpu.fault(UD));
    }
    let value = match ctx.cpu.gpr[RCX] as u32 {
        0 => ctx.cpu.xcr0,
        // XINUSE: this engine tracks no component as unused, which is allowed (SDM volume 1,
        // 13.6).
        1 if ctx.cpu.cpuid.lookup(0xd, 1)[0] & 4 != 0 => ctx.cpu.xcr0,
        _ => return Err(ctx.gp(0)),
    };
    ctx.cpu.gpr[RAX] = value & 0xffff_ffff;
    ctx.cpu.gpr[RDX] = value >> 32;
    Ok(())
}

pub fn xsetbv(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    if ctx.cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(ctx.cpu.fault(UD));
    }
    ctx.need_cpl0()?;
    let cpu = &mut *ctx.cpu;
    let value = cpu.gpr[RDX] << 32 | cpu.gpr[RAX] & 0xffff_ffff;
    let [low, _, _, high] = cpu.cpuid.lookup(0xd, 0);
    let offered = u64::from(high) << 32 | u64::from(low);
    let bad = value & !offered != 0
        || value & xcr0::X87 == 0
        || value & (xcr0::AVX | xcr0::SSE) == xcr0::AVX;
    if bad || cpu.gpr[RCX] as u32 != 0 {
        return Err(ctx.gp(0));
    }
    cpu.xcr0 = value;
    cpu.leave = true;
    Ok(())
}
