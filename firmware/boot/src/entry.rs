//! The states in which kernels are entered: flat segments with the selectors `__BOOT_CS` and `__BOOT_DS`
//! of Linux, interrupts off, no IDT, and the general registers of a reset.
//!
//! - [`flat`]: 32-bit protected mode without paging. PVH, Linux' 32-bit protocol and Multiboot ask for
//!   the same, each with registers of its own.
//! - [`long`]: long mode with an identity map of the low 4 GiB (`Documentation/arch/x86/boot.rst`,
//!   "64-bit Boot Protocol").

use crate::Error;
use crate::bytes::put;
use crate::layout::{GDT, PAGE_TABLES, Plan};
use vcpu_state::{SegReg, Segment, Table, VcpuState};
use x86_defs::segment::{
    ATTR_ACCESSED, ATTR_CODE, ATTR_DB, ATTR_G, ATTR_L, ATTR_P, ATTR_RW, ATTR_S, Descriptor,
    system_type::TSS_BUSY,
};
use x86_defs::{cr::cr0, cr::cr4, cr::efer, paging};

/// `__BOOT_CS`.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;

const FLAT: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_S | ATTR_P | ATTR_G;
const CODE_32: u16 = FLAT | ATTR_CODE | ATTR_DB;
const CODE_64: u16 = FLAT | ATTR_CODE | ATTR_L;
const DATA: u16 = FLAT | ATTR_DB;

/// Places the descriptors; the state in which `entry` is run in 32-bit mode.
pub fn flat(plan: &mut Plan, entry: u64) -> Result<VcpuState, Error> {
    if entry > u64::from(u32::MAX) {
        return Err(Error::Unfit {
            why: "its 32-bit entry is above 4 GiB",
            hint: "link it to be loaded below 4 GiB",
        });
    }
    plan.place_fixed("GDT", GDT, gdt(CODE_32))?;
    Ok(flat_state(entry))
}

/// Places page tables and descriptors; the state in which `entry` is run in 64-bit mode.
pub fn long(plan: &mut Plan, entry: u64) -> Result<VcpuState, Error> {
    plan.place_fixed("page tables", PAGE_TABLES, identity_map())?;
    plan.place_fixed("GDT", GDT, gdt(CODE_64))?;
    Ok(long_state(entry))
}

fn gdt(code: u16) -> Vec<u8> {
    let flat = |attr| Descriptor::new(0, 0xf_ffff, attr).0;
    [0, 0, flat(code), flat(DATA)].iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect()
}

/// What both modes have in common.
fn state(entry: u64, code: u16) -> VcpuState {
    let mut state = VcpuState::reset(0);
    state.regs.rip = entry;
    let data = Segment { selector: DATA_SELECTOR, base: 0, limit: u32::MAX, attr: DATA };
    for which in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
        *state.segment_mut(which) = data;
    }
    *state.segment_mut(SegReg::Cs) = Segment { selector: CODE_SELECTOR, attr: code, ..data };
    state.segments.gdtr = Table { base: GDT.start, limit: 4 * 8 - 1 };
    state.segments.idtr = Table { base: 0, limit: 0 };
    state
}

fn flat_state(entry: u64) -> VcpuState {
    let mut state = state(entry, CODE_32);
    *state.segment_mut(SegReg::Tr) =
        Segment { selector: 0, base: 0, limit: 0x67, attr: TSS_BUSY | ATTR_P };
    state.control.cr0 = cr0::PE | cr0::ET;
    state
}

fn long_state(entry: u64) -> VcpuState {
    let mut state = state(entry, CODE_64);
    state.control.cr0 = cr0::PE | cr0::ET | cr0::PG;
    state.control.cr3 = PAGE_TABLES.start;
    state.control.cr4 = cr4::PAE;
    state.control.efer = efer::LME | efer::LMA;
    state
}

/// Page tables that map the low 4 GiB onto themselves in 2 MiB pages.
fn identity_map() -> Vec<u8> {
    const TABLE: usize = 4096;
    const DIRECTORIES: usize = 4;
    const ENTRY: u64 = paging::P | paging::RW;
    let base = PAGE_TABLES.start;
    let mut tables = vec![0; (2 + DIRECTORIES) * TABLE];
    let mut set = |table: usize, index: usize, value: u64| {
        put(&mut tables, table * TABLE + index * 8, &value.to_le_bytes());
    };
    let address = |table: usize| base + (table * TABLE) as u64;
    set(0, 0, address(1) | ENTRY);
    for directory in 0..DIRECTORIES {
        set(1, directory, address(2 + directory) | ENTRY);
        for index in 0..512 {
            let page = ((directory * 512 + index) as u64) << 21;
            set(2 + directory, index, page | ENTRY | paging::PS);
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;

    #[test]
    fn the_flat_state_is_32_bit_without_paging() {
        let state = flat_state(0x20_0020);
        let cs = state.segment(SegReg::Cs);
        assert_eq!((cs.base, cs.limit, cs.attr), (0, u32::MAX, 0xc09b));
        assert_eq!((state.control.cr0, state.control.cr4, state.control.efer), (0x11, 0, 0));
        assert_eq!(state.segment(SegReg::Tr).attr, 0x8b);
    }

    #[test]
    fn the_long_state_is_the_protocols() {
        let state = long_state(0x100_0000);
        let cs = state.segment(SegReg::Cs);
        assert_eq!((cs.selector, cs.attr, cs.limit), (0x10, 0xa09b, u32::MAX));
        let ds = state.segment(SegReg::Ds);
        assert_eq!((ds.selector, ds.attr, ds.limit), (0x18, 0xc093, u32::MAX));
        assert_eq!(state.regs.rflags & x86_defs::rflags::IF, 0);
        let gdt = gdt(CODE_64);
        let code = Descriptor(u64_at(&gdt, 0x10).unwrap());
        assert_eq!((code.attr(), code.limit(), code.base()), (cs.attr, cs.limit, 0));
    }

    #[test]
    fn the_map_translates_4_gib_onto_itself() {
        let tables = identity_map();
        assert_eq!(tables.len() as u64, PAGE_TABLES.end - PAGE_TABLES.start);
        let read = |gpa: u64| u64_at(&tables, (gpa - PAGE_TABLES.start) as usize).unwrap();
        for address in [0u64, 0x1f_ffff, 0x4000_0000, 0xfee0_0123, 0xffff_ffff] {
            let pml4e = read(PAGE_TABLES.start + (address >> 39) * 8);
            let pdpte = read((pml4e & paging::ADDRESS) + (address >> 30 & 511) * 8);
            let pde = read((pdpte & paging::ADDRESS) + (address >> 21 & 511) * 8);
            assert_eq!(pde & 0xfff, paging::P | paging::RW | paging::PS);
            assert_eq!((pde & paging::ADDRESS) + (address & 0x1f_ffff), address);
        }
    }
}
