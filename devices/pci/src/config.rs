//! Configuration space of a function: bytes, and which of their bits software may write.
//!
//! Everything else follows from the two: sizing a BAR is writing ones to it and reading back
//! what stuck (PCI, 6.2.5.1).

use crate::{msi, msix};
use device::Msi;
use std::{ops::Range, sync::Arc};

/// Bytes of the space that every function has. The extended space is empty.
pub(crate) const SIZE: usize = 256;
/// Base address registers of a function.
pub(crate) const BARS: usize = 6;

/// Registers of the header (PCI, 6.1).
pub(crate) mod reg {
    pub const VENDOR: usize = 0x00;
    pub const DEVICE: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const CACHE_LINE: usize = 0x0c;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const BAR: usize = 0x10;
    /// Of a bridge: its own bus, the one behind it, and the last of those behind that.
    pub const BUSES: usize = 0x18;
    /// Of a bridge: the memory that it passes on, first and last MiB.
    pub const WINDOW: usize = 0x20;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM: usize = 0x2e;
    pub const ROM: usize = 0x30;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    pub const BRIDGE_CONTROL: usize = 0x3e;
    /// The first byte after the header.
    pub const FREE: usize = 0x40;
}

/// Bits of the command register (PCI, 6.2.2).
pub(crate) mod command {
    pub const IO: u16 = 1 << 0;
    pub const MEMORY: u16 = 1 << 1;
    pub const MASTER: u16 = 1 << 2;
    pub const PARITY: u16 = 1 << 6;
    pub const SERR: u16 = 1 << 8;
    pub const INTX_DISABLE: u16 = 1 << 10;
    pub const WRITABLE: u16 = MEMORY | MASTER | PARITY | SERR | INTX_DISABLE;
}

/// Bits of the status register (PCI, 6.2.3).
pub(crate) mod status {
    pub const INTERRUPT: u16 = 1 << 3;
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// [`Bar::index`] of the expansion ROM, whose register stands apart (PCI, 6.2.5.2).
pub(crate) const ROM_BAR: usize = BARS;
/// The lowest bit of a BAR for ports (PCI, 6.2.5.1).
const IO_SPACE: u8 = 1;
/// The ROM answers.
const ROM_ENABLE: u32 = 1;

/// A bridge's header (PCI-to-PCI Bridge Architecture Specification 1.2, 3.2).
const BRIDGE_HEADER: u8 = 1;
/// Bits of the bridge control register: the bus behind it is held in reset; parity and SERR.
pub(crate) const BUS_RESET: u8 = 1 << 6;
const BRIDGE_CONTROL_WRITABLE: u8 = BUS_RESET | 0b11;
/// ID of the PCI Express capability.
pub(crate) const EXPRESS: u8 = 0x10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    Memory32,
    /// Takes the next register too.
    Memory64,
    /// Ports, which only a function on the root bus can have.
    Io,
}

/// A range of memory, or of ports, that a function answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which register: 0 to 5.
    pub index: usize,
    pub kind: BarKind,
    pub prefetchable: bool,
    /// A power of two: of memory from 4 KiB, so that no access crosses the end, to 256 MiB; of
    /// ports from 4 to 256.
    pub size: u32,
}

/// A capability of the function's own (PCI, 6.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    pub id: u8,
    /// What follows the ID and the pointer to the next one.
    pub body: Vec<u8>,
    /// Bits of the body that software may write; what is not given is not writable.
    pub writable: Vec<u8>,
    /// The last four bytes of the body are a window: accesses to them go to
    /// [`Function`](crate::Function) instead of the bytes.
    pub window: bool,
}

/// Registers of the function's own behind the header, which are no capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Where they begin: from 0x40 on.
    pub at: usize,
    /// What they are after a reset.
    pub value: Vec<u8>,
    /// Bits that software may write; what is not given is not writable.
    pub writable: Vec<u8>,
}

/// Where a function has its message table (PCI, 6.8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixConfig {
    /// 1 to 2048.
    pub vectors: u16,
    pub bar: usize,
    /// Offsets in the BAR, multiples of 8.
    pub table: u32,
    pub pba: u32,
}

/// What a function is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionConfig {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, sub-class and programming interface: `0x06_00_00`.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
    pub bars: Vec<Bar>,
    pub msix: Option<MsixConfig>,
    pub capabilities: Vec<Capability>,
    /// Has pin INTA#.
    pub interrupt_pin: bool,
    /// What the expansion ROM holds, for firmware to run: at most 16 MiB.
    pub rom: Option<Arc<[u8]>>,
    /// Answers at ports that PCI does not place: a VGA. Software can then set the command
    /// register's I/O bit, which changes nothing here.
    pub legacy_ports: bool,
    /// Must not overlap each other or the capabilities, which begin at 0x40.
    pub registers: Vec<Registers>,
    /// Leads to a bus of its own, by a header of type 1.
    pub bridge: bool,
}

/// What a write to configuration space changed besides bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Which addresses lead where.
    pub(crate) map: bool,
    /// What the requester may do.
    pub(crate) requester: bool,
    /// Registers of the function's own.
    pub(crate) own: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: Vec<Bar>,
    /// Where the MSI-X capability is.
    msix: Option<usize>,
    /// Where the MSI capability is.
    msi: Option<Range<usize>>,
    /// The capability with a window, and the window, which is its end.
    window: Option<Range<usize>>,
    /// Where registers of the function's own are.
    own: Vec<Range<usize>>,
    /// Where the PCI Express capability is.
    express: Option<usize>,
}

impl ConfigSpace {
    /// # Panics
    /// If what is described does not fit: a function's layout is the programmer's.
    pub(crate) fn new(config: &FunctionConfig) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: config.bars.clone(),
            msix: None,
            msi: None,
            window: None,
            own: Vec::new(),
            express: None,
        };
        space.header(config);
        for bar in &config.bars {
            space.bar(bar);
        }
        if let Some(rom) = &config.rom {
            space.rom(rom.len());
        }
        let mut at = reg::FREE;
        let mut link = reg::CAPABILITIES;
        if let Some(msix) = &config.msix {
            space.msix = Some(at);
            space.capability(&msix::capability(msix), &mut link, &mut at);
        }
        for capability in &config.capabilities {
            let start = at;
            space.capability(capability, &mut link, &mut at);
            if capability.id == EXPRESS {
                space.express = Some(start);
            }
            if capability.id == msi::ID {
                space.msi = Some(start..at);
            }
            if capability.window {
                space.window = Some(start..start + 2 + capability.body.len());
            }
        }
        for registers in &config.registers {
            space.registers(registers, at);
        }
        space
    }

    /// `free` is where the capabilities end.
    fn registers(&mut self, registers: &Registers, free: usize) {
        let range = registers.at..registers.at + registers.value.len();
        assert!(range.start >= free && range.end <= SIZE, "{registers:?}");
        assert!(registers.writable.len() <= registers.value.len(), "{registers:?}");
        self.set(range.start, &registers.value);
        self.allow(range.start, &registers.writable);
        self.own.push(range);
    }

    /// The function has registers of its own.
    pub(crate) fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    fn header(&mut self, config: &FunctionConfig) {
        self.set(reg::VENDOR, &config.vendor.to_le_bytes());
        self.set(reg::DEVICE, &config.device.to_le_bytes());
        self.bytes[reg::REVISION] = config.revision;
        self.set(reg::CLASS, &config.class.to_le_bytes()[..3]);
        if config.bridge {
            self.bytes[reg::HEADER_TYPE] = BRIDGE_HEADER;
            self.allow(reg::BUSES, &[0xff; 3]);
            self.allow(reg::WINDOW, &[0xf0, 0xff, 0xf0, 0xff]);
            self.allow(reg::BRIDGE_CONTROL, &[BRIDGE_CONTROL_WRITABLE]);
        } else {
            self.set(reg::SUBSYSTEM_VENDOR, &config.subsystem_vendor.to_le_bytes());
            self.set(reg::SUBSYSTEM, &config.subsystem.to_le_bytes());
        }
        self.bytes[reg::INTERRUPT_PIN] = u8::from(config.interrupt_pin);
        let ports = config.bars.iter().any(|bar| bar.kind == BarKind::Io);
        let io = if config.legacy_ports || ports { command::IO } else { 0 };
        self.allow(reg::COMMAND, &(command::WRITABLE | io).to_le_bytes());
        // Kept for software, and means nothing on PCI Express (PCIe, 7.5.1.1.7).
        self.allow(reg::CACHE_LINE, &[0xff]);
        self.allow(reg::INTERRUPT_LINE, &[0xff]);
    }

    fn bar(&mut self, bar: &Bar) {
        let sizes = if bar.kind == BarKind::Io { 4..=256 } else { 4096..=256 << 20 };
        assert!(bar.size.is_power_of_two() && sizes.contains(&bar.size), "{bar:?}");
        let registers = if bar.kind == BarKind::Memory64 { 2 } else { 1 };
        assert!(bar.index + registers <= BARS, "{bar:?}");
        let at = reg::BAR + 4 * bar.index;
        let kind = match bar.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 1 << 2,
            BarKind::Io => IO_SPACE,
        };
        self.bytes[at] = kind | u8::from(bar.prefetchable) << 3;
        self.allow(at, &(!(bar.size - 1)).to_le_bytes());
        if registers == 2 {
            self.allow(at + 4, &[0xff; 4]);
        }
    }

    fn rom(&mut self, len: usize) {
        assert!((1..=16 << 20).contains(&len), "a ROM of {len} bytes");
        // Whole pages, as for other BARs.
        let size = (len as u32).next_power_of_two().max(4096);
        self.allow(reg::ROM, &(!(size - 1) | ROM_ENABLE).to_le_bytes());
        let kind = BarKind::Memory32;
        self.bars.push(Bar { index: ROM_BAR, kind, prefetchable: false, size });
    }

    /// Appends to the list; `link` is where the last pointer is, `at` where there is room.
    fn capability(&mut self, capability: &Capability, link: &mut usize, at: &mut usize) {
        assert!(*at + 2 + capability.body.len() <= SIZE, "capabilities take too much room");
        self.bytes[*link] = *at as u8;
        self.bytes[*at] = capability.id;
        *link = *at + 1;
        self.set(*at + 2, &capability.body);
        self.allow(*at + 2, &capability.writable);
        *at = (*at + 2 + capability.body.len()).next_multiple_of(4);
        let status = self.word(reg::STATUS) | status::CAPABILITIES;
        self.set(reg::STATUS, &status.to_le_bytes());
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    pub(crate) fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    pub(crate) fn command(&self) -> u16 {
        self.word(reg::COMMAND)
    }

    /// MSI-X message control, if there is the capability.
    pub(crate) fn msix_control(&self) -> Option<u16> {
        Some(self.word(self.msix? + 2))
    }

    /// The message that software has chosen instead of the pin, if the function has one.
    pub(crate) fn message(&self) -> Option<Msi> {
        let capability = self.msi.clone()?;
        msi::message(self.bytes.get(capability)?)
    }

    /// The capability with a window, if the access touches the window.
    pub(crate) fn window(&self, at: usize, len: usize) -> Option<&[u8]> {
        let range = self.window.clone()?;
        let touches = at < range.end && at.checked_add(len)? > range.end - 4;
        touches.then(|| &self.bytes[range])
    }

    /// Where the window begins; behind the space if there is none.
    pub(crate) fn window_start(&self) -> usize {
        self.window.as_ref().map_or(SIZE, |window| window.end - 4)
    }

    /// Software writes; what it may not write stays.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) -> Changed {
        let mut changed = Changed::default();
        for (at, value) in (at..SIZE).zip(data) {
            let (mask, before) = (self.writable[at], self.bytes[at]);
            let after = before & !mask | value & mask;
            self.bytes[at] = after;
            if after != before {
                let command = (reg::COMMAND..reg::COMMAND + 2).contains(&at);
                let control = self.msix.is_some_and(|msix| (msix + 2..msix + 4).contains(&at));
                changed.map |= command
                    || (reg::BAR..reg::BAR + 4 * BARS).contains(&at)
                    || (reg::ROM..reg::ROM + 4).contains(&at);
                // Of a bridge these are among the BARs' places.
                changed.map |= self.is_bridge() && (reg::BUSES..reg::ROM).contains(&at);
                let message = self.msi.as_ref().is_some_and(|msi| msi.contains(&at));
                changed.requester |= command || control || message;
                changed.own |= self.own.iter().any(|range| range.contains(&at));
            }
        }
        changed
    }

    pub(crate) fn is_bridge(&self) -> bool {
        self.bytes[reg::HEADER_TYPE] == BRIDGE_HEADER
    }

    /// The bus behind a bridge.
    pub(crate) fn secondary_bus(&self) -> u8 {
        self.byte(reg::BUSES + 1)
    }

    /// What a bridge passes on while it does.
    pub(crate) fn bridge_window(&self) -> Option<Range<u64>> {
        let mib = |at: usize| u64::from(self.word(at) >> 4) << 20;
        let range = mib(reg::WINDOW)..mib(reg::WINDOW + 2) + (1 << 20);
        let passes = self.command() & command::MEMORY != 0;
        (passes && !range.is_empty()).then_some(range)
    }

    /// What firmware sets: the bus behind a bridge, and the MiBs that it passes on.
    pub(crate) fn set_bridge(&mut self, bus: u8, window: &Range<u64>) {
        self.write(reg::BUSES, &[0, bus, bus]);
        let mib = |at: u64| ((at >> 20) as u16) << 4;
        self.write(reg::WINDOW, &mib(window.start).to_le_bytes());
        self.write(reg::WINDOW + 2, &mib(window.end - 1).to_le_bytes());
    }

    pub(crate) fn express(&self) -> Option<usize> {
        self.express
    }

    pub(crate) fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Where the BAR is, whether or not it is decoded. `None` if it reaches beyond the last
    /// address.
    pub(crate) fn bar_range(&self, bar: &Bar) -> Option<Range<u64>> {
        let at = register(bar);
        let unused = match bar.kind {
            _ if bar.index == ROM_BAR => 0x7ff,
            BarKind::Io => 0x3,
            BarKind::Memory32 | BarKind::Memory64 => 0xf,
        };
        let mut base = u64::from(self.dword(at) & !unused);
        if bar.kind == BarKind::Memory64 {
            base |= u64::from(self.dword(at + 4)) << 32;
        }
        Some(base..base.checked_add(bar.size.into())?)
    }

    /// Whether it answers: decoding of its space is on, and a ROM has a bit of its own besides.
    pub(crate) fn is_on(&self, bar: &Bar) -> bool {
        let space = if bar.kind == BarKind::Io { command::IO } else { command::MEMORY };
        let rom = bar.index != ROM_BAR || self.dword(reg::ROM) & ROM_ENABLE != 0;
        rom && self.command() & space != 0
    }

    pub(crate) fn set_bar(&mut self, bar: &Bar, base: u64) {
        let at = register(bar);
        self.write(at, &(base as u32).to_le_bytes());
        if bar.kind == BarKind::Memory64 {
            self.write(at + 4, &((base >> 32) as u32).to_le_bytes());
        }
    }

    pub(crate) fn bytes(&self) -> &[u8; SIZE] {
        &self.bytes
    }

    /// Takes over saved bytes. False, and nothing changes, if bits differ that software cannot
    /// have written: they are another function's.
    pub(crate) fn restore(&mut self, bytes: &[u8]) -> bool {
        let Ok(bytes) = <&[u8; SIZE]>::try_from(bytes) else { return false };
        let same = |at: usize| (self.bytes[at] ^ bytes[at]) & !self.writable[at] == 0;
        let fits = (0..SIZE).all(same);
        if fits {
            self.bytes = *bytes;
        }
        fits
    }
}

/// Where the BAR's register is.
fn register(bar: &Bar) -> usize {
    if bar.index == ROM_BAR { reg::ROM } else { reg::BAR + 4 * bar.index }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function() -> FunctionConfig {
        FunctionConfig {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_00_00,
            bars: vec![
                Bar { index: 0, kind: BarKind::Memory32, prefetchable: false, size: 0x4000 },
                Bar { index: 2, kind: BarKind::Memory64, prefetchable: true, size: 0x10_0000 },
            ],
            msix: Some(MsixConfig { vectors: 3, bar: 0, table: 0x1000, pba: 0x2000 }),
            capabilities: vec![Capability {
                id: 9,
                body: vec![1, 2, 3, 4, 5, 6],
                writable: vec![0xff, 0],
                window: true,
            }],
            interrupt_pin: true,
            ..FunctionConfig::default()
        }
    }

    #[test]
    fn writing_ones_to_a_bar_sizes_it() {
        let mut space = ConfigSpace::new(&function());
        assert!(space.write(0x10, &[0xff; 24]).map);
        assert_eq!(space.dword(0x10), 0xffff_c000);
        assert_eq!((space.dword(0x14), space.dword(0x20)), (0, 0));
        assert_eq!((space.dword(0x18), space.dword(0x1c)), (0xfff0_000c, u32::MAX));
        let wide = space.bars()[1];
        assert_eq!(space.bar_range(&wide), None, "beyond the last address");
        space.set_bar(&wide, 0x12_3450_0000);
        assert_eq!(space.bar_range(&wide), Some(0x12_3450_0000..0x12_3460_0000));
    }

    #[test]
    fn ports_are_sized_and_switched_on_apart() {
        let ports = Bar { index: 1, kind: BarKind::Io, prefetchable: false, size: 64 };
        let config = FunctionConfig { bars: vec![ports], ..FunctionConfig::default() };
        let mut space = ConfigSpace::new(&config);
        space.write(0x10, &[0xff; 24]);
        assert_eq!((space.dword(0x10), space.dword(0x14), space.dword(0x18)), (0, 0xffff_ffc1, 0));
        space.set_bar(&ports, 0xc040);
        assert_eq!((space.dword(0x14), space.bar_range(&ports)), (0xc041, Some(0xc040..0xc080)));
        space.write(reg::COMMAND, &command::MEMORY.to_le_bytes());
        assert!(!space.is_on(&ports));
        space.write(reg::COMMAND, &command::IO.to_le_bytes());
        assert!(space.is_on(&ports));
    }

    #[test]
    fn capabilities_are_a_list() {
        let space = ConfigSpace::new(&function());
        assert_eq!(space.word(reg::STATUS), 0x10);
        assert_eq!((space.byte(0x34), space.word(0x40), space.word(0x42)), (0x40, 0x4c11, 2));
        assert_eq!((space.dword(0x44), space.dword(0x48)), (0x1000, 0x2000));
        assert_eq!((space.word(0x4c), space.byte(0x4e)), (0x0009, 1));
        assert_eq!(space.window(0x4c, 4), None);
        assert_eq!(space.window(0x4e, 4).map(|w| w.len()), Some(8));
        assert_eq!((space.window(0x53, 1).is_some(), space.window(0x54, 4)), (true, None));
    }

    #[test]
    fn registers_of_the_functions_own_are_told_of() {
        let at = 0x90;
        let registers = Registers { at, value: vec![1, 2, 3], writable: vec![0xf0, 0x0f] };
        let config = FunctionConfig { registers: vec![registers], ..FunctionConfig::default() };
        let mut space = ConfigSpace::new(&config);
        assert!(space.has_own() && !ConfigSpace::new(&function()).has_own());
        assert_eq!(space.write(0x8f, &[0xff; 6]), Changed { own: true, ..Changed::default() });
        let bytes: Vec<u8> = (0x8f..0x95).map(|at| space.byte(at)).collect();
        assert_eq!(bytes, [0, 0xf1, 0x0f, 3, 0, 0]);
        assert_eq!(space.write(0x92, &[0xff; 4]), Changed::default());
    }

    #[test]
    fn only_what_is_writable_is_written() {
        let mut space = ConfigSpace::new(&function());
        let before = space.clone();
        assert_eq!(space.write(0, &[0xff; 4]), Changed::default());
        let changed = space.write(reg::COMMAND, &[0xff; 4]);
        assert_eq!(changed, Changed { map: true, requester: true, own: false });
        assert_eq!((space.command(), space.word(reg::STATUS)), (0x546, 0x10));
        assert_eq!(
            space.write(0x42, &[0xff; 2]),
            Changed { requester: true, ..Changed::default() }
        );
        assert_eq!(space.msix_control(), Some(0xc002));
        space.write(0x4e, &[0xff; 2]);
        assert_eq!((space.byte(0x4e), space.byte(0x4f)), (0xff, 2));
        space.write(250, &[0xff; 16]);
        let mut fresh = before.clone();
        assert!(fresh.restore(space.bytes()));
        assert_eq!(fresh.bytes, space.bytes);
        let mut other = *before.bytes();
        other[reg::VENDOR] ^= 1;
        assert!(!fresh.restore(&other) && !fresh.restore(&other[..255]));
        assert_eq!(fresh.bytes, space.bytes);
    }
}
