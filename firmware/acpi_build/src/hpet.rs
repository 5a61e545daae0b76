//! The event timer: its table ("IA-PC HPET Specification" 1.0a, 3.2.4) and its device.

use crate::{Hpet, OEM_ID, OEM_REVISION, OEM_TABLE_ID, dsdt};
use acpi_tables::{
    aml::{EISAName, Memory32Fixed},
    sdt::Sdt,
};

const SIZE: u32 = 0x400;
/// The shortest period, in ticks, at which no interrupt is lost.
const SHORTEST: u16 = 0x2710;
/// A generic address (ACPI 6.5, 5.2.3.2): in memory, 64 bits.
const IN_MEMORY: [u8; 4] = [0, 64, 0, 0];

pub(crate) fn table(hpet: &Hpet) -> Vec<u8> {
    let mut table = Sdt::new(*b"HPET", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&hpet.id.to_le_bytes());
    table.append_slice(&IN_MEMORY);
    table.append_slice(&u64::from(hpet.address).to_le_bytes());
    // The first of the board; pages may be mapped alone, which promises nothing.
    table.append_slice(&[0]);
    table.append_slice(&SHORTEST.to_le_bytes());
    table.append_slice(&[0]);
    table.as_slice().to_vec()
}

pub(crate) fn device(hpet: &Hpet) -> Vec<u8> {
    let registers = Memory32Fixed::new(false, hpet.address, SIZE);
    dsdt::device("HPET", &EISAName::new("PNP0103"), 0, &[&registers])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_where_it_is() {
        let table = table(&Hpet { id: 0x8086_a201, address: 0xfed0_0000 });
        assert_eq!((table.len(), &table[..4]), (56, &b"HPET"[..]));
        assert_eq!(table[36..52], [1, 0xa2, 0x86, 0x80, 0, 64, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
}
