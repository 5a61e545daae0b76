//! The LPC bridge (ICH9, chapter 13): what ISA devices are behind.

use crate::{Config, LPC_SLOT};
use device::{PioDevice, Wiring};
use pci::{FunctionConfig, Nothing, PciHost, Registers};
use std::sync::Arc;

/// Where ACPI's registers are (13.1.13). They stay where they are.
const PMBASE: usize = 0x40;
/// Bit 0 says that it is a port.
const PORT: u32 = 1;
const PMBASE_BITS: u32 = 0xff80;
/// ACPI's registers are decoded, and its interrupt is IRQ 9 (13.1.14).
const ACPI_CNTL: usize = 0x44;
const ACPI_ENABLE: u8 = 0x80;
/// Which ISA interrupts the pins of PCI lead to for a kernel that knows no IOAPIC (13.1.18,
/// 13.1.20): kept, and without effect, as pins lead to the IOAPIC only.
const PIRQ_A: usize = 0x60;
const PIRQ_E: usize = 0x68;
const PIRQ_OFF: u8 = 0x80;
const PIRQ_BITS: u8 = 0x8f;
/// Where the root complex's registers are (13.1.37): kept, and there are none.
const RCBA: usize = 0xf0;
const RCBA_BITS: u32 = 0xffff_c001;

/// Of ACPI's registers, those for system-management interrupts (13.8.3.10 and following).
const SMI: u16 = 0x30;
const SMI_PORTS: u16 = 8;
/// SMI_EN: a write to port 0xb2 causes an interrupt. Set from the start it means that somebody
/// has set up system management, and firmware keeps off.
const APMC_ENABLE: u8 = 1 << 5;

fn function(config: &Config) -> FunctionConfig {
    let route = |at| Registers { at, value: vec![PIRQ_OFF; 4], writable: vec![PIRQ_BITS; 4] };
    let pm_base = u32::from(config.pm_base) & PMBASE_BITS | PORT;
    FunctionConfig {
        vendor: 0x8086,
        device: 0x2918,
        revision: 2,
        class: 0x06_01_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        registers: vec![
            Registers {
                at: PMBASE,
                value: pm_base.to_le_bytes().into(),
                writable: PMBASE_BITS.to_le_bytes().into(),
            },
            Registers { at: ACPI_CNTL, value: vec![ACPI_ENABLE], writable: vec![0x87] },
            route(PIRQ_A),
            route(PIRQ_E),
            Registers { at: RCBA, value: vec![0; 4], writable: RCBA_BITS.to_le_bytes().into() },
        ],
        ..FunctionConfig::default()
    }
}

/// SMI_EN and SMI_STS, of which nothing can be written.
struct Smi(u16);

impl PioDevice for Smi {
    fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        if port == self.0
            && let Some(first) = data.first_mut()
        {
            *first = APMC_ENABLE;
        }
    }

    fn write(&self, _: u16, _: &[u8]) {}
}

pub(crate) fn build(config: &Config, pci: &PciHost, wiring: &mut Wiring) {
    pci.add_at(LPC_SLOT, &function(config), wiring, |_| Arc::new(Nothing));
    let first = config.pm_base.saturating_add(SMI);
    wiring.claim_ports("smi", first..=first.saturating_add(SMI_PORTS - 1), Arc::new(Smi(first)));
}
