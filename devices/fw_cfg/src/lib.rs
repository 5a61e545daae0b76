//! The firmware configuration device: what firmware is told of its machine (QEMU's specification
//! "QEMU Firmware Configuration (fw_cfg) Device").
//!
//! ```text
//!   ports 0x510, 0x511   select an item, read its bytes one at a time
//!   ports 0x514 - 0x51b  the address of a command in memory: select, read, skip      (DMA)
//! ```
//!
//! Items have numbers; those from 0x20 on have names too, which the item [`key::FILE_DIR`] lists.
//! All are read-only here, and are made before the guest runs, so that a saved state is only
//! where in which item the guest reads.

mod dma;
mod items;
mod state;

pub use items::{Error, Items, NAME_MAX, key};
pub use state::FwCfgState;

use device::{Device, PioDevice, Wiring};
use guest_mem::GuestMem;
use saved_state::{Reader, Writer, malformed};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Written with two bytes, selects an item.
pub const SELECTOR: u16 = 0x510;
/// Reads the item's next byte. It is one port: each byte of a wider access is the next one.
pub const DATA: u16 = 0x511;
/// The upper half of a command's address, and at the next four ports the lower, each with its
/// most significant byte first; writing the lower executes the command.
pub const DMA: u16 = 0x514;
const DMA_LOW: u16 = DMA + 4;
/// What the DMA ports read as, most significant byte first: "QEMU CFG".
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;

/// Where the guest reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    /// Bits that an item's number has not are kept: they name no item then.
    item: u16,
    offset: u32,
    dma_high: u32,
}

pub struct FwCfg {
    items: Items,
    memory: Arc<GuestMem>,
    cursor: Mutex<Cursor>,
    given: AtomicU64,
    refused: AtomicU64,
}

impl fmt::Debug for FwCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FwCfg").field("items", &self.items).finish_non_exhaustive()
    }
}

/// Puts the device on the board.
pub fn build(items: Items, wiring: &mut Wiring) -> Arc<FwCfg> {
    let device = Arc::new(FwCfg {
        items,
        memory: wiring.memory.clone(),
        cursor: Mutex::default(),
        given: 0.into(),
        refused: 0.into(),
    });
    wiring.claim_ports("fw_cfg", SELECTOR..=DATA, device.clone());
    wiring.claim_ports("fw_cfg", DMA..=DMA + 7, device.clone());
    wiring.devices.push(device.clone());
    device
}

impl FwCfg {
    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The item's bytes from the cursor on; none behind its end, and of what is no item.
    fn rest(&self, cursor: &Cursor) -> &[u8] {
        let item = self.items.get(cursor.item).unwrap_or_default();
        item.get(cursor.offset as usize..).unwrap_or_default()
    }

    /// Behind its end an item reads as zeroes.
    fn read_data(&self, data: &mut [u8]) {
        let mut cursor = self.cursor();
        for byte in data {
            *byte = match self.rest(&cursor).first() {
                Some(next) => {
                    cursor.offset += 1;
                    self.given.fetch_add(1, Relaxed);
                    *next
                }
                None => 0,
            };
        }
    }
}

impl PioDevice for FwCfg {
    fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            DATA => self.read_data(data),
            DMA.. => {
                let signature = DMA_SIGNATURE.to_be_bytes();
                let from = signature.get(usize::from(port - DMA)..).unwrap_or_default();
                data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
            _ => {}
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        match (port, data) {
            (SELECTOR, [low, high]) => {
                let mut cursor = self.cursor();
                (cursor.item, cursor.offset) = (u16::from_le_bytes([*low, *high]), 0);
            }
            (DMA, &[a, b, c, d]) => self.cursor().dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let low = u32::from_be_bytes([a, b, c, d]);
                let high = std::mem::take(&mut self.cursor().dma_high);
                self.execute(u64::from(high) << 32 | u64::from(low));
            }
            // Items are read-only, and other widths mean nothing.
            _ => {}
        }
    }
}

impl Device for FwCfg {
    fn name(&self) -> String {
        "fw_cfg".into()
    }

    fn reset(&self) {
        *self.cursor() = Cursor::default();
    }

    fn save(&self, to: &mut Writer) {
        let Cursor { item, offset, dma_high } = *self.cursor();
        to.put(0, &FwCfgState { item, offset, dma_high });
    }

    fn restore(&self, from: &mut Reader) -> Result<(), saved_state::Error> {
        let FwCfgState { item, offset, dma_high } = from.take(0)?;
        let cursor = Cursor { item, offset, dma_high };
        let len = self.items.get(item).map_or(0, <[u8]>::len);
        if offset as usize > len {
            return Err(malformed::<FwCfgState>("the item has fewer bytes"));
        }
        *self.cursor() = cursor;
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("bytes given", self.given.load(Relaxed)),
            ("commands refused", self.refused.load(Relaxed)),
        ]
    }
}
