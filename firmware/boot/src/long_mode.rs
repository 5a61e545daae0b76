//! Entry in long mode: an identity map of the low 4 GiB, flat segments with the selectors
//! `__BOOT_CS` and `__BOOT_DS`, interrupts off, no IDT (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").

use crate::Error;
use crate::bytes::put;
use crate::layout::{GDT, PAGE_TABLES, Plan};
use vcpu_state::{SegReg, Segment, Table, VcpuState};
use x86_defs::segment::{
    ATTR_ACCESSED, ATTR_CODE, ATTR_DB, ATTR_G, ATTR_L, ATTR_P, ATTR_RW, ATTR_S, Descriptor,
};
use x86_defs::{cr::cr0, cr::cr4, cr::efer, paging};

/// `__BOOT_CS`: flat 64-bit code.
const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS`: flat data.
const BOOT_DS: u16 = 0x18;

/// Places the tables; the state in which `entry` is run.
pub fn enter(plan: &mut Plan, entry: u64) -> Result<VcpuState, Error> {
    plan.place_fixed("page tables", PAGE_TABLES, identity_map())?;
    plan.place_fixed("GDT", GDT, gdt())?;
    Ok(entry_state(entry))
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

const CODE: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_CODE | ATTR_S | ATTR_P | ATTR_L | ATTR_G;
const DATA: u16 = ATTR_ACCESSED | ATTR_RW | ATTR_S | ATTR_P | ATTR_DB | ATTR_G;

fn gdt() -> Vec<u8> {
    let flat = |attr| Descriptor::new(0, 0xf_ffff, attr).0;
    [0, 0, flat(CODE), flat(DATA)].iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect()
}

fn entry_state(entry: u64) -> VcpuState {
    let mut state = VcpuState::reset(0);
    state.regs.rip = entry;
    let data = Segment { selector: BOOT_DS, base: 0, limit: u32::MAX, attr: DATA };
    for which in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
        *state.segment_mut(which) = data;
    }
    *state.segment_mut(SegReg::Cs) = Segment { selector: BOOT_CS, attr: CODE, ..data };
    state.segments.gdtr = Table { base: GDT.start, limit: 4 * 8 - 1 };
    state.segments.idtr = Table { base: 0, limit: 0 };
    state.control.cr0 = cr0::PE | cr0::ET | cr0::PG;
    state.control.cr3 = PAGE_TABLES.start;
    state.control.cr4 = cr4::PAE;
    state.control.efer = efer::LME | efer::LMA;
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;

    #[test]
    fn the_entry_state_is_the_protocols() {
        let state = entry_state(0x100_0000);
        let cs = state.segment(SegReg::Cs);
        assert_eq!((cs.selector, cs.attr, cs.limit), (0x10, 0xa09b, u32::MAX));
        let ds = state.segment(SegReg::Ds);
        assert_eq!((ds.selector, ds.attr, ds.limit), (0x18, 0xc093, u32::MAX));
        assert_eq!(state.regs.rflags & x86_defs::rflags::IF, 0);
        let gdt = gdt();
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
