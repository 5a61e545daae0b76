//! Segment limits and types outside 64-bit mode (SDM volume 3, 5.3 to 5.5).

use crate::{Cpu, Ctx, Stop};
use soft_mmu::Access;
use vcpu_state::{SegReg, Segment};
use x86_defs::{
    exception::{GP, SS},
    segment::{ATTR_CODE, ATTR_DB, ATTR_EC, ATTR_RW},
};

/// The linear address of `len` bytes (at least 1), if the segment allows the access. `real`:
/// in real or virtual-8086 mode.
pub(crate) fn allowed(s: &Segment, real: bool, ea: u64, len: u64, access: Access) -> Option<u64> {
    let last = ea.checked_add(len - 1)?;
    let limit = u64::from(s.limit);
    let code = s.attr & ATTR_CODE != 0;
    let within = if real || code || s.attr & ATTR_EC == 0 {
        last <= limit
    } else {
        let top = if s.attr & ATTR_DB != 0 { 0xffff_ffff } else { 0xffff };
        ea > limit && last <= top
    };
    // Types do not matter in real mode.
    let rights = real
        || s.usable()
            && match access {
                Access::Read => !code || s.attr & ATTR_RW != 0,
                Access::Write => !code && s.attr & ATTR_RW != 0,
                Access::Execute => true,
            };
    (within && rights).then_some(s.base.wrapping_add(ea) & 0xffff_ffff)
}

impl Cpu {
    /// [`allowed`] of a segment register as it is.
    pub(crate) fn checked_linear(
        &self,
        seg: SegReg,
        ea: u64,
        len: u64,
        access: Access,
    ) -> Option<u64> {
        allowed(self.segment(seg), self.mode.real_like(), ea, len, access)
    }
}

impl Ctx<'_> {
    pub(super) fn segmented(
        &mut self,
        seg: SegReg,
        ea: u64,
        len: u64,
        access: Access,
    ) -> Result<u64, Stop> {
        match self.cpu.checked_linear(seg, ea, len, access) {
            Some(linear) => Ok(linear),
            None => Err(self.cpu.segment_fault(seg)),
        }
    }
}

impl Cpu {
    /// The fault of an access beyond a segment's limit, or to a non-canonical address.
    #[cold]
    pub(crate) fn segment_fault(&mut self, seg: SegReg) -> Stop {
        self.fault_code(if seg == SegReg::Ss { SS } else { GP }, 0)
    }
}
