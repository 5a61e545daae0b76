//! Fixed ACPI description table (ACPI 6.5, 5.2.9): the power-management ports, the reset
//! register and what a PC has.

use crate::{Board, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// IA-PC boot architecture flags (ACPI 6.5, table 5.10).
mod boot_arch {
    /// Devices on the ISA bus that are not found by enumeration.
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    pub const HAS_8042: u16 = 1 << 1;
    pub const NO_VGA: u16 = 1 << 2;
    pub const NO_CMOS_RTC: u16 = 1 << 5;
}

const PM1_EVENT_LENGTH: u8 = 4;
const PM1_CONTROL_LENGTH: u8 = 2;
const PM_TIMER_LENGTH: u8 = 4;
/// Latencies above 100 and 1000 microseconds: there is no C2 and no C3.
const NO_C2: u16 = 0xfff;
const NO_C3: u16 = 0xfff;

/// The table, with the addresses of the two tables that it leads to.
pub fn table(board: &Board, facs: u32, dsdt: u32) -> Vec<u8> {
    // No flag PwrButton, SlpButton and FixRtc: the buttons are the fixed ones, and the clock's
    // alarm has a status among the fixed registers.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Unspecified)
        .firmware_ctrl_32(facs)
        .dsdt_64(u64::from(dsdt))
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.dsdt = dsdt.into();
    fadt.sci_int = u16::from(board.sci).into();
    let pm = &board.pm;
    fadt.pm1a_evt_blk = u32::from(pm.event).into();
    fadt.pm1_evt_len = PM1_EVENT_LENGTH;
    fadt.x_pm1a_evt_blk = port(pm.event, PM1_EVENT_LENGTH, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(pm.control).into();
    fadt.pm1_cnt_len = PM1_CONTROL_LENGTH;
    fadt.x_pm1a_cnt_blk = port(pm.control, PM1_CONTROL_LENGTH, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(pm.timer).into();
    fadt.pm_tmr_len = PM_TIMER_LENGTH;
    fadt.x_pm_tmr_blk = port(pm.timer, PM_TIMER_LENGTH, AccessSize::DwordAccess);
    if let Some(cpus) = &board.hot_cpus {
        fadt.gpe0_blk = u32::from(cpus.events).into();
        fadt.gpe0_blk_len = cpus.events_length;
        fadt.x_gpe0_blk = port(cpus.events, cpus.events_length, AccessSize::ByteAccess);
    }
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.reset_reg = port(board.reset.port, 1, AccessSize::ByteAccess);
    fadt.reset_value = board.reset.value;
    fadt.century = board.rtc.and_then(|rtc| rtc.century).unwrap_or(0);
    let mut arch = boot_arch::LEGACY_DEVICES;
    if !board.vga {
        arch |= boot_arch::NO_VGA;
    }
    if board.i8042 {
        arch |= boot_arch::HAS_8042;
    }
    if board.rtc.is_none() {
        arch |= boot_arch::NO_CMOS_RTC;
    }
    fadt.iapc_boot_arch = arch.into();
    bytes(&fadt.finalize())
}

fn port(address: u16, length: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8 * length, 0, access, u64::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, HotCpus};

    fn u16_at(table: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(table[at..at + 2].try_into().unwrap())
    }

    fn u32_at(table: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(table[at..at + 4].try_into().unwrap())
    }

    /// Offsets are those of ACPI 6.5, table 5.9.
    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mut board = Board::new(vec![Cpu { uid: 0, apic_id: 0 }]);
        let fadt = table(&board, 0xe_0040, 0xe_0080);
        assert_eq!((fadt[8], fadt[131]), (6, 5));
        assert_eq!(u16_at(&fadt, 46), 9);
        assert_eq!((u32_at(&fadt, 48), fadt[52], fadt[53]), (0, 0, 0));
        assert_eq!(
            (u32_at(&fadt, 56), u32_at(&fadt, 64), u32_at(&fadt, 76)),
            (0x600, 0x604, 0x608)
        );
        assert_eq!((fadt[88], fadt[89], fadt[91]), (4, 2, 4));
        assert_eq!(fadt[108], 0x32);
        assert_eq!(u16_at(&fadt, 109), 0b101);
        // WBINVD, PROC_C1, TMR_VAL_EXT, RESET_REG_SUP, HEADLESS.
        assert_eq!(u32_at(&fadt, 112), 0x1505);
        assert_eq!((&fadt[116..120], u32_at(&fadt, 120), fadt[128]), (&[1, 8, 0, 1][..], 0xcf9, 6));
        assert_eq!((&fadt[148..152], u32_at(&fadt, 152)), (&[1, 32, 0, 2][..], 0x600));
        assert_eq!((&fadt[172..176], u32_at(&fadt, 176)), (&[1, 16, 0, 2][..], 0x604));
        assert_eq!((&fadt[208..212], u32_at(&fadt, 212)), (&[1, 32, 0, 3][..], 0x608));
        board.rtc = None;
        board.i8042 = true;
        let fadt = table(&board, 0xe_0040, 0xe_0080);
        assert_eq!((fadt[108], u16_at(&fadt, 109)), (0, 0b10_0111));
        assert_eq!((u32_at(&fadt, 80), fadt[92], u32_at(&fadt, 224)), (0, 0, 0));
        board.vga = true;
        let fadt = table(&board, 0xe_0040, 0xe_0080);
        assert_eq!(u16_at(&fadt, 109), 0b10_0011);
        board.hot_cpus =
            Some(HotCpus { present: 1, port: 0xcd8, events: 0x620, events_length: 4, event: 2 });
        let fadt = table(&board, 0xe_0040, 0xe_0080);
        assert_eq!((u32_at(&fadt, 80), fadt[92]), (0x620, 4));
        assert_eq!((&fadt[220..224], u32_at(&fadt, 224)), (&[1, 32, 0, 1][..], 0x620));
    }
}
