//! Entry in 32-bit protected mode without paging: flat segments, interrupts off, no IDT. PVH, Linux'
//! 32-bit protocol and Multiboot ask for the same, each with registers of its own; the selectors
//! are Linux' `__BOOT_CS` and `__BOOT_DS`.

use crate::Error;
use crate::layout::{GDT, Plan};
use vcpu_state::{SegReg, Segment, Table, VcpuState};
use x86_defs::cr::cr0;
use x86_defs::segment::{
    ATTR_ACCESSED, ATTR_CODE, ATTR_DB, ATTR_G, ATTR_P, ATTR_RW, ATTR_S, Descriptor,
    system_type::TSS_BUSY,
};

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const CODE: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_CODE | ATTR_S | ATTR_P | ATTR_DB | ATTR_G;
const DATA: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_S | ATTR_P | ATTR_DB | ATTR_G;

/// Places the descriptors; the state in which `entry` is run, with the general registers of
/// a reset.
pub fn enter(plan: &mut Plan, entry: u64) -> Result<VcpuState, Error> {
    if entry > u64::from(u32::MAX) {
        return Err(Error::Malformed("a 32-bit entry is above 4 GiB"));
    }
    plan.place_fixed("GDT", GDT, gdt())?;
    Ok(entry_state(entry))
}

fn gdt() -> Vec<u8> {
    let flat = |attr| Descriptor::new(0, 0xf_ffff, attr).0;
    [0, 0, flat(CODE), flat(DATA)].iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect()
}

fn entry_state(entry: u64) -> VcpuState {
    let mut state = VcpuState::reset(0);
    state.regs.rip = entry;
    let data = Segment { selector: DATA_SELECTOR, base: 0, limit: u32::MAX, attr: DATA };
    for which in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
        *state.segment_mut(which) = data;
    }
    *state.segment_mut(SegReg::Cs) = Segment { selector: CODE_SELECTOR, attr: CODE, ..data };
    *state.segment_mut(SegReg::Tr) =
        Segment { selector: 0, base: 0, limit: 0x67, attr: TSS_BUSY | ATTR_P };
    state.segments.gdtr = Table { base: GDT.start, limit: 4 * 8 - 1 };
    state.segments.idtr = Table { base: 0, limit: 0 };
    state.control.cr0 = cr0::PE | cr0::ET;
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_state_is_flat_32_bit_without_paging() {
        let state = entry_state(0x20_0020);
        let cs = state.segment(SegReg::Cs);
        assert_eq!((cs.base, cs.limit, cs.attr), (0, u32::MAX, 0xc09b));
        assert_eq!((state.control.cr0, state.control.cr4, state.control.efer), (0x11, 0, 0));
        assert_eq!(state.segment(SegReg::Tr).attr, 0x8b);
    }
}
