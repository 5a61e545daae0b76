//! IN and OUT, and who may use a port (SDM volume 1, 19.5).

use crate::{Ctx, Insn, Stop};
use vcpu_state::SegReg;
use x86_defs::{
    exception, rflags,
    segment::{ATTR_TYPE, system_type},
};

impl Ctx<'_> {
    /// Raises #GP(0) unless IOPL or the TSS's bitmap gives the port.
    pub fn io_allowed(&mut self, port: u16, size: u8) -> Result<(), Stop> {
        let iopl = (self.cpu.rflags & rflags::IOPL) >> rflags::IOPL_SHIFT;
        let mode = self.cpu.mode;
        if mode.protected && (u64::from(mode.cpl) > iopl || mode.v86) {
            return self.io_bitmap_allows(port, size);
        }
        Ok(())
    }

    /// The bitmap of the TSS: a clear bit for each port that the access touches.
    #[cold]
    fn io_bitmap_allows(&mut self, port: u16, size: u8) -> Result<(), Stop> {
        let tr = *self.cpu.segment(SegReg::Tr);
        let limit = u64::from(tr.limit);
        let kind = tr.attr & ATTR_TYPE;
        let refused = |ctx: &mut Self| Err(ctx.cpu.fault_code(exception::GP, 0));
        if !matches!(kind, system_type::TSS_AVAILABLE | system_type::TSS_BUSY) || limit < 103 {
            return refused(self);
        }
        let map = u64::from(self.load_linear::<u16>(tr.base.wrapping_add(102))?);
        let at = map + u64::from(port / 8);
        // Two bytes are read, whatever the port.
        if at + 1 > limit {
            return refused(self);
        }
        let bits = self.load_linear::<u16>(tr.base.wrapping_add(at))?;
        let mask = ((1u16 << size.min(8)) - 1) << (port % 8);
        if bits & mask != 0 {
            return refused(self);
        }
        Ok(())
    }

    pub fn port_in(&mut self, port: u16, size: u8) -> u64 {
        let mut data = [0; 8];
        let width = usize::from(size.min(4));
        self.cpu.note_port(port, size);
        self.call_flow(|host| host.pio_in(port, width, &mut data[..width]));
        u64::from_le_bytes(data)
    }

    pub fn port_out(&mut self, port: u16, size: u8, value: u64) {
        let data = value.to_le_bytes();
        let width = usize::from(size.min(4));
        self.cpu.note_port(port, size);
        self.call_flow(|host| host.pio_out(port, width, &data[..width]));
    }
}

/// Of a port by immediate.
fn port(ctx: &Ctx<'_>, insn: &Insn) -> u16 {
    if insn.reg == 0 { insn.imm as u8 as u16 } else { ctx.cpu.gpr[2] as u16 }
}

/// IN; `reg` is 0 for an immediate port, 1 for DX.
pub fn input(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let port = port(ctx, insn);
    ctx.io_allowed(port, insn.osize)?;
    let value = ctx.port_in(port, insn.osize);
    match insn.osize {
        1 => ctx.set_reg(0, value as u8),
        2 => ctx.set_reg(0, value as u16),
        _ => ctx.set_reg(0, value as u32),
    }
    Ok(())
}

pub fn output(ctx: &mut Ctx<'_>, insn: &Insn) -> Result<(), Stop> {
    let port = port(ctx, insn);
    ctx.io_allowed(port, insn.osize)?;
    let value = ctx.cpu.gpr[0];
    ctx.port_out(port, insn.osize, value);
    Ok(())
}

/// The instruction is not defined, or not in this mode or on this processor.
pub fn undefined(ctx: &mut Ctx<'_>, _: &Insn) -> Result<(), Stop> {
    Err(ctx.cpu.fault(exception::UD))
}
