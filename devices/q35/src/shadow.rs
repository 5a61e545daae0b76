//! The upper memory area, 768 KiB to 1 MiB: which parts of it are RAM, and which are ROM.
//!
//! Each of 13 segments has two bits in the host bridge: whether reads go to RAM, and whether
//! writes do (MCH, 5.1.17). Firmware starts from ROM, copies itself to RAM below it, and locks
//! that when it is done. What is not memory, writes that do not go to the memory that is read
//! included, arrives here from the board's bus.
//!
//! RAM that is not seen, or cannot be written, is out of reach of who copies the guest's memory:
//! its bytes are saved here.

use crate::Config;
use device::{Device, MmioDevice, SlotMap, Wiring};
use guest_mem::{Change, Memfd, Slot, SlotId};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// The area, which is no other's to lay out.
pub const AREA: Range<u64> = 0xc_0000..0x10_0000;
/// How many segments it has, each with a memory slot.
const SEGMENTS: usize = 13;
/// The slot of the first.
const FIRST_SLOT: SlotId = 16;

const READ: u8 = 1;
const WRITE: u8 = 2;

/// ROM that ends where the area does.
#[derive(Clone)]
pub struct Rom {
    pub mem: Arc<Memfd>,
    /// Where in `mem` it begins, and how long it is: whole pages.
    pub offset: u64,
    pub len: u64,
}

impl fmt::Debug for Rom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rom({} KiB)", self.len >> 10)
    }
}

/// The RAM of the area, whatever of it is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowState {
    pub bytes: Vec<u8>,
}

impl Schema for ShadowState {
    const KIND: &'static str = "shadow-ram";
    const VERSION: u16 = 1;
}

/// Where a segment is. Register 0 has the last, the others two each, from below.
fn segment(index: usize) -> Range<u64> {
    if index == 0 {
        return 0xf_0000..AREA.end;
    }
    let start = AREA.start + (index as u64 - 1) * 0x4000;
    start..start + 0x4000
}

/// The segment of an address of the area.
fn segment_of(address: u64) -> usize {
    if address >= 0xf_0000 { 0 } else { (address.saturating_sub(AREA.start) / 0x4000) as usize + 1 }
}

/// Its two bits.
fn access(registers: &[u8; 7], index: usize) -> u8 {
    let register = registers.get(index.div_ceil(2)).copied().unwrap_or(0);
    let upper = index == 0 || index.is_multiple_of(2);
    (if upper { register >> 4 } else { register }) & (READ | WRITE)
}

pub(crate) struct Shadow {
    ram: Arc<Memfd>,
    rom: Option<Rom>,
    slots: Arc<dyn SlotMap>,
    /// What is in force; none before the first call.
    segments: Mutex<[Option<u8>; SEGMENTS]>,
}

impl Shadow {
    pub(crate) fn build(config: &Config, wiring: &mut Wiring) -> Arc<Self> {
        let shadow = Arc::new(Self {
            ram: config.ram.clone(),
            rom: config.rom.clone(),
            slots: wiring.slots.clone(),
            segments: Mutex::new([None; SEGMENTS]),
        });
        wiring.claim_mmio("shadow", AREA.start..=AREA.end - 1, shadow.clone());
        shadow
    }

    /// The registers are these now.
    pub(crate) fn set(&self, registers: &[u8; 7]) {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut changes, mut next) = (Vec::new(), *segments);
        for (index, now) in next.iter_mut().enumerate() {
            let access = access(registers, index);
            let before = now.and_then(|before| self.slot(index, before));
            let after = self.slot(index, access);
            if *now != Some(access) {
                changes.extend(before.map(|slot| Change::Unmap(slot.id)));
                changes.extend(after.map(Change::Map));
            }
            *now = Some(access);
        }
        // What cannot be laid out stays as it was; there is nobody here to tell.
        if changes.is_empty() || self.slots.change(&changes).is_ok() {
            *segments = next;
        }
    }

    /// The memory that is read there; none where there is no ROM.
    fn slot(&self, index: usize, access: u8) -> Option<Slot> {
        let range = segment(index);
        let (gpa, len) = (range.start, range.end - range.start);
        let id = FIRST_SLOT + index as SlotId;
        if access & READ != 0 {
            let writable = access & WRITE != 0;
            return Some(Slot { id, gpa, mem: self.ram.clone(), offset: gpa, len, writable });
        }
        let rom = self.rom.as_ref()?;
        let inside = (AREA.end - gpa) <= rom.len;
        let offset = rom.offset + rom.len.checked_sub(AREA.end - gpa)?;
        inside.then(|| Slot { id, gpa, mem: rom.mem.clone(), offset, len, writable: false })
    }
}

impl Device for Shadow {
    fn name(&self) -> String {
        "shadow RAM".into()
    }

    /// The bridge's registers lay it out; what is in it stays.
    fn reset(&self) {}

    fn save(&self, to: &mut Writer) {
        let mut bytes = vec![0; (AREA.end - AREA.start) as usize];
        // A memfd of this size gives it.
        drop(self.ram.read_at(AREA.start, &mut bytes));
        to.put(0, &ShadowState { bytes });
    }

    /// What is seen is taken away and shown again, so that nobody goes on with what was there.
    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let ShadowState { bytes } = from.take(0)?;
        if bytes.len() as u64 != AREA.end - AREA.start {
            return Err(malformed::<ShadowState>("the area has another size"));
        }
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = (0..).zip(&*segments).filter_map(|(at, access)| self.slot(at, (*access)?));
        let (away, again): (Vec<_>, Vec<_>) =
            seen.map(|slot| (Change::Unmap(slot.id), Change::Map(slot))).unzip();
        let done = self.slots.change(&away).is_ok()
            && self.ram.write_at(AREA.start, &bytes).is_ok()
            && self.slots.change(&again).is_ok();
        if !done {
            *segments = [None; SEGMENTS];
            return Err(malformed::<ShadowState>("this host cannot lay it out"));
        }
        Ok(())
    }
}

impl MmioDevice for Shadow {
    fn read(&self, _: u64, _: &mut [u8]) {}

    /// To what is not read there: RAM below a ROM, if writes go to RAM. Accesses do not cross
    /// pages, and so not segments.
    fn write(&self, offset: u64, data: &[u8]) {
        let address = AREA.start + offset;
        let segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        if segments.get(segment_of(address)).copied().flatten() == Some(WRITE) {
            // A memfd of this size takes it.
            drop(self.ram.write_at(address, data));
        }
    }
}

#[cfg(test)]
mod tests;
