//! System resource affinity table (ACPI 6.5, 5.2.16): by it an operating system knows before it
//! begins to use memory how far up more of it can come.

use crate::{Board, HotMemory, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use acpi_tables::sdt::Sdt;
use std::ops::Range;

const REVISION: u8 = 3;
/// Structure types (ACPI 6.5, 5.2.16.1 to 5.2.16.3).
mod kind {
    pub const LOCAL_APIC: u8 = 0;
    pub const MEMORY: u8 = 1;
    pub const LOCAL_X2APIC: u8 = 2;
}
/// IDs from here on need the x2APIC's structure.
const FIRST_X2APIC: u32 = 255;
const ENABLED: u32 = 1;
const HOT_PLUGGABLE: u32 = 2;

/// The table, for a board to which memory can come.
pub fn table(board: &Board, memory: &HotMemory) -> Vec<u8> {
    // One reserved as 1, and eight bytes.
    let mut body = vec![1, 0, 0, 0];
    body.extend([0; 8]);
    for cpu in &board.cpus {
        processor(&mut body, cpu.apic_id);
    }
    for range in &memory.ram {
        place(&mut body, range, ENABLED);
    }
    place(&mut body, &memory.room, ENABLED | HOT_PLUGGABLE);
    let mut table = Sdt::new(*b"SRAT", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

/// Of domain 0, as everything.
fn processor(body: &mut Vec<u8>, apic_id: u32) {
    if apic_id < FIRST_X2APIC {
        body.extend([kind::LOCAL_APIC, 16, 0, apic_id as u8]);
        body.extend(ENABLED.to_le_bytes());
        body.extend([0; 8]);
        return;
    }
    body.extend([kind::LOCAL_X2APIC, 24, 0, 0, 0, 0, 0, 0]);
    body.extend(apic_id.to_le_bytes());
    body.extend(ENABLED.to_le_bytes());
    body.extend([0; 8]);
}

fn place(body: &mut Vec<u8>, range: &Range<u64>, flags: u32) {
    body.extend([kind::MEMORY, 40, 0, 0, 0, 0, 0, 0]);
    body.extend(range.start.to_le_bytes());
    body.extend((range.end - range.start).to_le_bytes());
    body.extend([0; 4]);
    body.extend(flags.to_le_bytes());
    body.extend([0; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cpu;

    #[test]
    fn processors_memory_and_room() {
        let cpus = vec![Cpu { uid: 0, apic_id: 5 }, Cpu { uid: 1, apic_id: 300 }];
        let memory =
            HotMemory { ram: vec![0..0x1000, 0x1000..0x2000], room: 0x1_0000_0000..0x1_8000_0000 };
        let table = table(&Board::new(cpus), &memory);
        assert_eq!(table.len(), 48 + 16 + 24 + 3 * 40);
        assert_eq!(table[36..40], [1, 0, 0, 0]);
        let mut structures = Vec::new();
        let mut rest = &table[48..];
        while let [kind, len, ..] = *rest {
            structures.push((kind, rest[..usize::from(len)].to_vec()));
            rest = &rest[usize::from(len)..];
        }
        let kinds: Vec<u8> = structures.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0, 2, 1, 1, 1]);
        assert_eq!(structures[0].1[2..8], [0, 5, 1, 0, 0, 0]);
        assert_eq!(structures[1].1[8..16], [0x2c, 1, 0, 0, 1, 0, 0, 0]);
        let room = &structures[4].1;
        assert_eq!(room[8..24], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0]);
        assert_eq!((room[28], structures[2].1[28]), (3, 1));
    }
}
