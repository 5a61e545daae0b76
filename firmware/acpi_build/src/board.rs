//! What the tables describe, with the values of the usual board.

use std::ops::Range;

/// A PC board as ACPI sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    /// The bootstrap processor first.
    pub cpus: Vec<Cpu>,
    pub local_apic_address: u32,
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not edge-triggered, active high and at the GSI of their number.
    pub overrides: Vec<Override>,
    /// The system control interrupt, an ISA interrupt.
    pub sci: u8,
    pub pm: PmPorts,
    pub reset: Reset,
    /// A keyboard controller at 0x60 and 0x64, interrupts 1 and 12.
    pub i8042: bool,
    /// A VGA that software may look for.
    pub vga: bool,
    pub rtc: Option<Rtc>,
    pub serial: Vec<Serial>,
    /// The port of a pvpanic device.
    pub pvpanic: Option<u16>,
    pub pci: Option<Pci>,
    pub hpet: Option<Hpet>,
    /// CPUs that can come and go while the machine runs.
    pub hot_cpus: Option<HotCpus>,
    /// Those that are on no bus that could be enumerated.
    pub virtio: Vec<VirtioMmio>,
    /// Where memory can come to while the machine runs; with it all RAM is told of, too.
    pub hot_memory: Option<HotMemory>,
}

impl Board {
    /// The usual board: one I/O APIC, the PIT at GSI 2, SCI 9 level-triggered and active high,
    /// COM1, RTC and pvpanic.
    pub fn new(cpus: Vec<Cpu>) -> Self {
        let sci = 9;
        Self {
            cpus,
            local_apic_address: 0xfee0_0000,
            io_apics: vec![IoApic { id: 0, address: 0xfec0_0000, gsi_base: 0 }],
            overrides: vec![
                Override { irq: 0, gsi: 2, polarity: Polarity::Bus, trigger: Trigger::Bus },
                Override {
                    irq: sci,
                    gsi: u32::from(sci),
                    polarity: Polarity::ActiveHigh,
                    trigger: Trigger::Level,
                },
            ],
            sci,
            pm: PmPorts { event: 0x600, control: 0x604, timer: 0x608 },
            reset: Reset { port: 0xcf9, value: 6 },
            i8042: false,
            vga: false,
            rtc: Some(Rtc { port: 0x70, irq: 8, century: Some(0x32) }),
            serial: vec![Serial { port: 0x3f8, irq: 4 }],
            pvpanic: Some(0x505),
            pci: None,
            hpet: None,
            hot_cpus: None,
            virtio: Vec::new(),
            hot_memory: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// ACPI's own number, which links MADT and DSDT.
    pub uid: u32,
    /// The local APIC's ID; from 255 on it is an x2APIC ID.
    pub apic_id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    pub id: u8,
    pub address: u32,
    /// The global system interrupt of its first pin.
    pub gsi_base: u32,
}

/// Interrupt source override (ACPI 6.5, 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// ISA interrupt.
    pub irq: u8,
    pub gsi: u32,
    pub polarity: Polarity,
    pub trigger: Trigger,
}

/// Values of the MPS INTI flags (ACPI 6.5, table 5.26).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Polarity {
    /// As the bus has it: active high for ISA.
    Bus = 0,
    ActiveHigh = 1,
    ActiveLow = 3,
}

/// Values of the MPS INTI flags (ACPI 6.5, table 5.26).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Trigger {
    /// As the bus has it: edge for ISA.
    Bus = 0,
    Edge = 1,
    Level = 3,
}

/// The ports of the power-management registers (ACPI 6.5, 4.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmPorts {
    /// PM1a_EVT: status and enable, 2 bytes each.
    pub event: u16,
    /// PM1a_CNT, 2 bytes. `SLP_TYP` 5 with `SLP_EN` powers off.
    pub control: u16,
    /// PM_TMR, 4 bytes, of 32 valid bits.
    pub timer: u16,
}

/// Writing `value` to `port` resets the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    pub port: u16,
    pub value: u8,
}

/// A clock of the MC146818 kind with its CMOS memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtc {
    /// The index port; data is the next one.
    pub port: u16,
    pub irq: u8,
    /// The CMOS register that has the century.
    pub century: Option<u8>,
}

/// A 16550 UART of 8 ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    pub port: u16,
    pub irq: u8,
}

/// A high precision event timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hpet {
    /// The lower half of its capabilities.
    pub id: u32,
    pub address: u32,
}

/// A virtio device with registers in memory, a page of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    pub address: u32,
    /// A level-triggered interrupt.
    pub gsi: u32,
}

/// A PCI Express host bridge with its configuration ports at 0xcf8 and one root bus, bus 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pci {
    /// The enhanced configuration space, from bus 0 on.
    pub ecam: u32,
    /// Of buses, 1 MiB each: up to 256.
    pub buses: u16,
    /// Where its functions' memory may be: first and last address.
    pub memory: (u32, u32),
    /// The GSI of pin INTA# of each device from 1 on.
    pub interrupts: Vec<u32>,
    /// There are ports whose slots the operating system may run itself.
    pub hot_plug: bool,
}

/// How CPUs come and go: by QEMU's registers for that, and a general-purpose event that tells of
/// changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotCpus {
    /// How many of the CPUs are there from the start: the first ones.
    pub present: usize,
    /// The first of the 12 ports of the registers.
    pub port: u16,
    /// The first port of the block of events.
    pub events: u16,
    /// Its length in bytes: status and enable, half of it each.
    pub events_length: u8,
    /// The number of the event.
    pub event: u8,
}

/// What the table of affinities says: all of it is of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotMemory {
    /// RAM that is there from the start.
    pub ram: Vec<Range<u64>>,
    /// Where more may come.
    pub room: Range<u64>,
}
