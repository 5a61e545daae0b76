//! The 82093AA I/O APIC, with the EOI register of its successors (version 0x20).
//!
//! Pins are levels or edges; what they ask for leaves as messages. While a message is sent the
//! IOAPIC's lock is held: local APICs never call back with a lock of theirs held.

use crate::bytes::lock;
use device::{Device, Line, LineRef, MmioDevice, Msi, MsiSink, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

pub const PINS: usize = 24;
/// Where its registers are.
pub const ADDRESS: u64 = 0xfec0_0000;
const SIZE: u64 = 0x1000;
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Bits of a redirection table entry (82093AA, 3.2.4).
mod entry {
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// Vector, delivery mode, destination mode, polarity, trigger, mask; destination.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
    pub const READABLE: u64 = WRITABLE | REMOTE_IRR;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoApicState {
    /// IOREGSEL.
    pub select: u8,
    pub id: u8,
    /// Levels of the pins, one bit each.
    pub lines: u32,
    /// The redirection table.
    pub entries: Vec<u64>,
}

impl Schema for IoApicState {
    const KIND: &'static str = "ioapic-82093aa";
    const VERSION: u16 = 1;
}

#[derive(Debug)]
struct Regs {
    select: u8,
    id: u8,
    lines: u32,
    entries: [u64; PINS],
}

impl Default for Regs {
    fn default() -> Self {
        Self { select: 0, id: 0, lines: 0, entries: [entry::MASKED; PINS] }
    }
}

/// The message that an entry sends (SDM volume 3, 11.11, and 82093AA, 3.2.4).
fn message(entry: u64) -> Msi {
    let (destination, logical) = (entry >> 56, entry >> 11 & 1);
    let address = 0xfee0_0000 | destination << 12 | logical << 2;
    let level = if entry & entry::LEVEL != 0 { 0xc000 } else { 0 };
    Msi { address, data: (entry & 0x7ff) as u32 | level }
}

impl Regs {
    /// Sends what pin `pin` asks for as a level, if it may.
    fn serve_level(&mut self, pin: usize, msi: &dyn MsiSink) {
        let Some(entry) = self.entries.get_mut(pin) else { return };
        let busy = entry::MASKED | entry::REMOTE_IRR;
        if *entry & (busy | entry::LEVEL) == entry::LEVEL && self.lines & 1 << pin != 0 {
            *entry |= entry::REMOTE_IRR;
            msi.send(message(*entry));
        }
    }

    fn set_pin(&mut self, pin: usize, level: bool, msi: &dyn MsiSink) {
        let bit = 1u32 << pin;
        let rises = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        let Some(entry) = self.entries.get(pin).copied() else { return };
        if entry & entry::LEVEL != 0 {
            self.serve_level(pin, msi);
        } else if rises && entry & entry::MASKED == 0 {
            // An edge at a masked pin is lost (3.2.4, "Interrupt Mask").
            msi.send(message(entry));
        }
    }

    fn end(&mut self, vector: u8, msi: &dyn MsiSink) {
        for pin in 0..PINS {
            let Some(entry) = self.entries.get_mut(pin) else { continue };
            if *entry as u8 == vector && *entry & entry::LEVEL != 0 {
                *entry &= !entry::REMOTE_IRR;
                self.serve_level(pin, msi);
            }
        }
    }

    fn read(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            index => match self.entries.get(usize::from(index.wrapping_sub(0x10) >> 1)) {
                Some(entry) if index >= 0x10 => (*entry >> (u32::from(index & 1) * 32)) as u32,
                _ => 0,
            },
        }
    }

    /// True if the redirection table changed.
    fn write(&mut self, value: u32, msi: &dyn MsiSink) -> bool {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
        }
        if self.select < 0x10 {
            return false;
        }
        let pin = usize::from((self.select - 0x10) >> 1);
        let Some(entry) = self.entries.get_mut(pin) else { return false };
        let before = *entry;
        let written = match self.select & 1 {
            0 => *entry >> 32 << 32 | u64::from(value),
            _ => *entry & 0xffff_ffff | u64::from(value) << 32,
        };
        *entry = written & entry::WRITABLE | before & entry::REMOTE_IRR;
        if *entry & entry::LEVEL == 0 {
            // How software ends an interrupt where there is no EOI register.
            *entry &= !entry::REMOTE_IRR;
        }
        let changed = *entry != before;
        self.serve_level(pin, msi);
        changed
    }
}

/// Called with the messages of all pins whenever one may have changed.
pub type RoutesHook = Box<dyn Fn(&[Option<Msi>; PINS]) + Send + Sync>;

pub struct IoApic {
    regs: Mutex<Regs>,
    msi: Arc<dyn MsiSink>,
    hook: OnceLock<RoutesHook>,
    /// Held from looking at the routes to having told them, so that the last told are the last.
    telling: Mutex<()>,
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic").field("regs", &self.regs).finish_non_exhaustive()
    }
}

impl IoApic {
    pub(crate) fn build(wiring: &mut Wiring) -> Arc<Self> {
        let ioapic = Arc::new(Self {
            regs: Mutex::new(Regs::default()),
            msi: wiring.msi.clone(),
            hook: OnceLock::new(),
            telling: Mutex::new(()),
        });
        wiring.claim_mmio("ioapic", ADDRESS..=ADDRESS + SIZE - 1, ioapic.clone());
        wiring.devices.push(ioapic.clone());
        ioapic
    }

    /// A local APIC ended the service of a level-triggered `vector`.
    pub fn eoi(&self, vector: u8) {
        lock(&self.regs).end(vector, &*self.msi);
    }

    /// Vectors of level-triggered interrupts that were sent and that nobody has ended.
    pub fn not_ended(&self) -> Vec<u8> {
        let sent = entry::LEVEL | entry::REMOTE_IRR;
        let entries = lock(&self.regs).entries;
        entries.iter().filter(|e| **e & sent == sent).map(|e| *e as u8).collect()
    }

    /// What each pin sends; level-triggered ones have bit 15 of the data set. `None` for pins
    /// that are masked and not in service.
    pub fn routes(&self) -> [Option<Msi>; PINS] {
        let regs = lock(&self.regs);
        regs.entries.map(|entry| {
            let idle = entry & (entry::MASKED | entry::REMOTE_IRR) == entry::MASKED;
            (!idle).then(|| message(entry))
        })
    }

    /// For engines with their own local APICs, which must know the pins. Called without the
    /// lock of the registers, one at a time; it may not access the IOAPIC. Set once.
    pub fn on_routes(&self, hook: RoutesHook) {
        let _ = self.hook.set(hook);
    }

    fn routes_changed(&self) {
        if let Some(hook) = self.hook.get() {
            let _telling = lock(&self.telling);
            hook(&self.routes());
        }
    }

    pub(crate) fn pin(self: &Arc<Self>, pin: usize) -> LineRef {
        Arc::new(Pin { ioapic: self.clone(), pin: pin % PINS })
    }
}

struct Pin {
    ioapic: Arc<IoApic>,
    pin: usize,
}

impl Line for Pin {
    fn set(&self, level: bool) {
        lock(&self.ioapic.regs).set_pin(self.pin, level, &*self.ioapic.msi);
    }

    fn restore(&self, level: bool) {
        let mut regs = lock(&self.ioapic.regs);
        let bit = 1u32 << self.pin;
        regs.lines = if level { regs.lines | bit } else { regs.lines & !bit };
    }
}

impl MmioDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let regs = lock(&self.regs);
        let value = match offset & !0xf {
            0x00 => regs.select.into(),
            0x10 => regs.read(),
            _ => 0,
        };
        let within = (offset & 0xf) as usize;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = value.to_le_bytes().get(within + i).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(value);
        let mut regs = lock(&self.regs);
        let changed = match offset {
            0x00 => {
                regs.select = value as u8;
                false
            }
            // The data sheet wants 32-bit accesses.
            0x10 if data.len() >= 4 => regs.write(value, &*self.msi),
            0x40 => {
                regs.end(value as u8, &*self.msi);
                false
            }
            _ => false,
        };
        drop(regs);
        if changed {
            self.routes_changed();
        }
    }
}

impl Device for IoApic {
    fn name(&self) -> String {
        "ioapic".into()
    }

    /// The levels of the pins are their sources' state and stay.
    fn reset(&self) {
        let mut regs = lock(&self.regs);
        *regs = Regs { lines: regs.lines, ..Regs::default() };
        drop(regs);
        self.routes_changed();
    }

    fn save(&self, to: &mut Writer) {
        let regs = lock(&self.regs);
        let Regs { select, id, lines, entries } = &*regs;
        let entries = entries.to_vec();
        to.put(0, &IoApicState { select: *select, id: *id, lines: *lines, entries });
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let refuse = |reason: &str| malformed::<IoApicState>(reason);
        let IoApicState { select, id, lines, entries } = from.take(0)?;
        let entries = <[u64; PINS]>::try_from(entries).map_err(|_| refuse("not 24 pins"))?;
        if lines >> PINS != 0 || id > 0xf {
            return Err(refuse("a level of a pin that is not there, or an ID above 15"));
        }
        if entries.iter().any(|entry| entry & !entry::READABLE != 0) {
            return Err(refuse("a redirection entry has reserved bits"));
        }
        *lock(&self.regs) = Regs { select, id, lines, entries };
        self.routes_changed();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
