//! Instruction fetches.

use crate::{Ctx, Stop};
use guest_mem::{ArenaOffset, PAGE};
use soft_mmu::Access;
use vcpu_state::SegReg;
use x86_defs::is_canonical_48;

/// Where instructions are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPage {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Its RAM; `None` where instructions come from a device.
    pub ram: Option<ArenaOffset>,
    /// What is known of the page may be kept under [`super::Tags::global`].
    pub global: bool,
}

impl Ctx<'_> {
    /// Translates the page of a linear address for fetching. Raises the page fault, with the
    /// address as it was given, or #GP(0) if it is not canonical.
    pub fn fetch_page(&mut self, linear: u64) -> Result<FetchPage, Stop> {
        let cpu = &mut *self.cpu;
        let linear = if cpu.mode.is64() { linear } else { linear & 0xffff_ffff };
        if cpu.mode.long && !is_canonical_48(linear) {
            return Err(cpu.segment_fault(SegReg::Cs));
        }
        let privilege = cpu.mmu.privilege;
        match cpu.mmu.translate(linear, Access::Execute, privilege) {
            Ok(place) => Ok(FetchPage {
                gpa: place.gpa & !(PAGE - 1),
                ram: place.ram.map(|at| ArenaOffset(at.0 & !(PAGE as usize - 1))),
                global: cpu.mmu.note_fetch(linear, place.gpa, privilege),
            }),
            Err(e) => Err(cpu.page_fault(linear, e.0)),
        }
    }
}
