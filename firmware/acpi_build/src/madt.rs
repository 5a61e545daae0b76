//! Multiple APIC description table (ACPI 6.5, 5.2.12): processors, I/O APICs and how ISA
//! interrupts reach them.

use crate::{Board, Cpu, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Override};
use acpi_tables::sdt::Sdt;

const REVISION: u8 = 5;
/// Flag: a PC with two 8259 interrupt controllers as well.
const PCAT_COMPAT: u32 = 1;

/// Structure types (ACPI 6.5, table 5.21).
mod kind {
    pub const LOCAL_APIC: u8 = 0;
    pub const IO_APIC: u8 = 1;
    pub const OVERRIDE: u8 = 2;
    pub const LOCAL_APIC_NMI: u8 = 4;
    pub const LOCAL_X2APIC: u8 = 9;
    pub const LOCAL_X2APIC_NMI: u8 = 10;
}

/// IDs and UIDs from here on need the x2APIC structures; 255 itself means every processor.
const FIRST_X2APIC: u32 = 255;
const ENABLED: u32 = 1;
/// It is not there yet, and may come (ACPI 6.5, table 5.22).
const ONLINE_CAPABLE: u32 = 1 << 1;
/// The local APIC's pin that NMIs arrive at.
const NMI_PIN: u8 = 1;
const ISA_BUS: u8 = 0;

/// The table.
pub fn table(board: &Board) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(board.local_apic_address.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    let present = board.hot_cpus.map_or(board.cpus.len(), |hot| hot.present);
    for (index, cpu) in board.cpus.iter().enumerate() {
        let flags = if index < present { ENABLED } else { ONLINE_CAPABLE };
        body.extend(processor(cpu, flags));
    }
    for io_apic in &board.io_apics {
        let mut data = vec![io_apic.id, 0];
        data.extend(io_apic.address.to_le_bytes());
        data.extend(io_apic.gsi_base.to_le_bytes());
        structure(&mut body, kind::IO_APIC, &data);
    }
    for entry in &board.overrides {
        interrupt_override(&mut body, entry);
    }
    // For all processors (UID 0xff), polarity and trigger as the bus has them.
    structure(&mut body, kind::LOCAL_APIC_NMI, &[0xff, 0, 0, NMI_PIN]);
    if board.cpus.iter().any(needs_x2apic) {
        let data = [0, 0, 0xff, 0xff, 0xff, 0xff, NMI_PIN, 0, 0, 0];
        structure(&mut body, kind::LOCAL_X2APIC_NMI, &data);
    }
    let mut table = Sdt::new(*b"APIC", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

fn needs_x2apic(cpu: &Cpu) -> bool {
    cpu.apic_id >= FIRST_X2APIC || cpu.uid >= FIRST_X2APIC
}

/// The structure of one that is there: what its `_MAT` answers.
pub(crate) fn present(cpu: &Cpu) -> Vec<u8> {
    processor(cpu, ENABLED)
}

fn processor(cpu: &Cpu, flags: u32) -> Vec<u8> {
    let mut body = Vec::new();
    let mut data = Vec::new();
    if needs_x2apic(cpu) {
        data.extend([0, 0]);
        for value in [cpu.apic_id, flags, cpu.uid] {
            data.extend(value.to_le_bytes());
        }
        structure(&mut body, kind::LOCAL_X2APIC, &data);
    } else {
        data.extend([cpu.uid as u8, cpu.apic_id as u8]);
        data.extend(flags.to_le_bytes());
        structure(&mut body, kind::LOCAL_APIC, &data);
    }
    body
}

fn interrupt_override(body: &mut Vec<u8>, entry: &Override) {
    let flags = entry.polarity as u16 | (entry.trigger as u16) << 2;
    let mut data = vec![ISA_BUS, entry.irq];
    data.extend(entry.gsi.to_le_bytes());
    data.extend(flags.to_le_bytes());
    structure(body, kind::OVERRIDE, &data);
}

fn structure(body: &mut Vec<u8>, kind: u8, data: &[u8]) {
    // The longest structure here has 16 bytes.
    body.extend([kind, 2 + data.len() as u8]);
    body.extend(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HotCpus;

    fn structures(board: &Board) -> Vec<Vec<u8>> {
        let table = table(board);
        let mut rest = &table[44..];
        let mut all = Vec::new();
        while !rest.is_empty() {
            let (one, after) = rest.split_at(usize::from(rest[1]));
            all.push(one.to_vec());
            rest = after;
        }
        all
    }

    #[test]
    fn two_processors_of_the_usual_board() {
        let cpus = vec![Cpu { uid: 0, apic_id: 0 }, Cpu { uid: 1, apic_id: 2 }];
        let expected: Vec<Vec<u8>> = vec![
            vec![0, 8, 0, 0, 1, 0, 0, 0],
            vec![0, 8, 1, 2, 1, 0, 0, 0],
            vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            vec![2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            vec![2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0],
            vec![4, 6, 0xff, 0, 0, 1],
        ];
        assert_eq!(structures(&Board::new(cpus)), expected);
    }

    #[test]
    fn those_that_may_come_can_be_brought_online() {
        let cpus = (254..257).map(|id| Cpu { uid: id - 254, apic_id: id }).collect();
        let hot = HotCpus { present: 1, port: 0xcd8, events: 0x620, events_length: 4, event: 2 };
        let all = structures(&Board { hot_cpus: Some(hot), ..Board::new(cpus) });
        assert_eq!(all[0], [0, 8, 0, 254, 1, 0, 0, 0]);
        assert_eq!(all[1], [9, 16, 0, 0, 255, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(all[2], [9, 16, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn ids_from_255_are_x2apic_ids() {
        let cpus = vec![Cpu { uid: 0, apic_id: 254 }, Cpu { uid: 1, apic_id: 255 }];
        let all = structures(&Board::new(cpus));
        assert_eq!(all[0], [0, 8, 0, 254, 1, 0, 0, 0]);
        assert_eq!(all[1], [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(all.last().unwrap()[..8], [10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }
}
