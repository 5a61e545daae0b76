//! A parallel NOR flash chip with Intel's command set (CFI, JEDEC JESD68 and JEP137, command set
//! 1; commands as in Intel's data sheet 290606, 28F320J5): where UEFI firmware keeps its
//! variables. One byte wide, blocks of 4 KiB.
//!
//! A write is a command or its operand, never data: programming clears bits, and erasing a block
//! sets all of them. What is programmed goes to the chip's file, if it has one, and is durable
//! when the host writes its page cache back.
//!
//! | command | what it does |
//! |---|---|
//! | 0xff | reads are the array's bytes |
//! | 0x70, 0x50 | reads are the status; the status is cleared |
//! | 0x90 | reads are the identification |
//! | 0x10, 0x40 | the next write programs its byte |
//! | 0xe8 | writes: a count less one, so many bytes, 0xd0 |
//! | 0x20 | followed by 0xd0 erases a block |

mod state;

pub use state::{FlashState, Mode};

use device::{Device, MmioDevice, Wiring};
use disk::Disk;
use saved_state::{Error, Reader, Writer, malformed};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// What is erased at once.
pub const BLOCK: usize = 4096;
/// What a buffered command programs at most.
const BUFFER: usize = 256;
/// Manufacturer and device: Intel, 28F320J5 (the identification's first bytes).
const IDENTIFICATION: [u8; 2] = [0x89, 0x14];

/// Bits of the status.
mod status {
    pub const READY: u8 = 0x80;
    /// With both, a sequence of commands made no sense.
    pub const ERASE_FAILED: u8 = 0x20;
    pub const PROGRAM_FAILED: u8 = 0x10;
}

/// Contents, and where they are kept.
pub struct Config {
    /// The first address.
    pub at: u64,
    /// A multiple of [`BLOCK`].
    pub contents: Vec<u8>,
    /// Holds the same bytes, and is written with them; `None` forgets them at the end.
    pub store: Option<Arc<dyn Disk>>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({} bytes at {:#x})", self.contents.len(), self.at)
    }
}

struct Chip {
    bytes: Vec<u8>,
    mode: Mode,
    status: u8,
    buffer: Vec<(u32, u8)>,
}

pub struct Flash {
    chip: Mutex<Chip>,
    store: Option<Arc<dyn Disk>>,
    programmed: AtomicU64,
    erased: AtomicU64,
    failed: AtomicU64,
}

impl fmt::Debug for Flash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flash").field("programmed", &self.programmed).finish_non_exhaustive()
    }
}

/// Puts the chip on the board.
///
/// # Panics
/// If its size is no multiple of [`BLOCK`], or 4 GiB: the caller has checked what it opened.
pub fn build(config: Config, wiring: &mut Wiring) -> Arc<Flash> {
    let Config { at, contents, store } = config;
    let good = !contents.is_empty() && contents.len().is_multiple_of(BLOCK);
    assert!(good && u32::try_from(contents.len()).is_ok(), "{} bytes of flash", contents.len());
    let last = at + (contents.len() as u64 - 1);
    let chip = Chip { bytes: contents, mode: Mode::Array, status: 0, buffer: Vec::new() };
    let flash = Arc::new(Flash {
        chip: Mutex::new(chip),
        store,
        programmed: 0.into(),
        erased: 0.into(),
        failed: 0.into(),
    });
    wiring.claim_mmio("flash", at..=last, flash.clone());
    wiring.devices.push(flash.clone());
    flash
}

impl Flash {
    fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These bytes of the array have changed.
    fn keep(&self, chip: &mut Chip, at: usize, len: usize) {
        let Some((store, bytes)) = self.store.as_ref().zip(chip.bytes.get(at..at + len)) else {
            return;
        };
        if store.write(at as u64, bytes).is_err() {
            // The firmware hears of it as of a worn-out cell.
            self.failed.fetch_add(1, Relaxed);
            chip.status |= status::PROGRAM_FAILED;
        }
    }

    fn program(&self, chip: &mut Chip, at: usize, value: u8) {
        if let Some(byte) = chip.bytes.get_mut(at) {
            *byte &= value;
            self.programmed.fetch_add(1, Relaxed);
            self.keep(chip, at, 1);
        }
    }

    fn erase(&self, chip: &mut Chip, at: usize) {
        let start = at - at % BLOCK;
        if let Some(block) = chip.bytes.get_mut(start..start + BLOCK) {
            block.fill(0xff);
            self.erased.fetch_add(1, Relaxed);
            self.keep(chip, start, BLOCK);
        }
    }

    fn write_byte(&self, chip: &mut Chip, at: usize, value: u8) {
        chip.mode = match (chip.mode, value) {
            (Mode::Program, value) => {
                self.program(chip, at, value);
                chip.status |= status::READY;
                Mode::Status
            }
            (Mode::Erase, 0xd0) => {
                self.erase(chip, at);
                chip.status |= status::READY;
                Mode::Status
            }
            (Mode::Count, count) if usize::from(count) < BUFFER => {
                chip.buffer.clear();
                Mode::Fill { left: u16::from(count) + 1 }
            }
            (Mode::Fill { left: 1.. }, value) if chip.buffer.len() < BUFFER => {
                chip.buffer.push((at as u32, value));
                Mode::Fill { left: chip.mode.left().saturating_sub(1) }
            }
            (Mode::Fill { left: 0 }, 0xd0) => {
                for (at, value) in std::mem::take(&mut chip.buffer) {
                    self.program(chip, at as usize, value);
                }
                chip.status |= status::READY;
                Mode::Status
            }
            (Mode::Erase | Mode::Count | Mode::Fill { .. }, _) => {
                chip.buffer.clear();
                chip.status |= status::READY | status::ERASE_FAILED | status::PROGRAM_FAILED;
                Mode::Status
            }
            (_, 0x50) => {
                chip.status = 0;
                Mode::Array
            }
            (_, 0x70) => Mode::Status,
            (_, 0x90) => Mode::Identification,
            (_, 0x10 | 0x40) => Mode::Program,
            (_, 0x20) => Mode::Erase,
            (_, 0xe8) => {
                chip.status |= status::READY;
                Mode::Count
            }
            // 0xff, and what is no command.
            _ => Mode::Array,
        };
    }
}

impl MmioDevice for Flash {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let chip = self.chip();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match chip.mode {
            Mode::Array => {
                let from = chip.bytes.get(start..).unwrap_or_default();
                data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
            Mode::Identification => {
                for (i, byte) in data.iter_mut().enumerate() {
                    *byte = IDENTIFICATION.get(start.wrapping_add(i) % 4).copied().unwrap_or(0);
                }
            }
            _ => data.fill(chip.status),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut chip = self.chip();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter().enumerate() {
            self.write_byte(&mut chip, start.saturating_add(i), *byte);
        }
    }
}

impl Device for Flash {
    fn name(&self) -> String {
        "flash".into()
    }

    /// What is programmed stays.
    fn reset(&self) {
        let mut chip = self.chip();
        (chip.mode, chip.status) = (Mode::Array, 0);
        chip.buffer.clear();
    }

    fn save(&self, to: &mut Writer) {
        let Chip { bytes, mode, status, buffer } = &*self.chip();
        let (bytes, mode, status, buffer) = (bytes.clone(), *mode, *status, buffer.clone());
        to.put(0, &FlashState { bytes, mode, status, buffer });
    }

    /// The file becomes what was saved, too.
    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let FlashState { bytes, mode, status, buffer } = from.take(0)?;
        let refuse = |reason: &str| Err(malformed::<FlashState>(reason));
        let mut chip = self.chip();
        if bytes.len() != chip.bytes.len() {
            return refuse("the chip has another size");
        }
        let room = BUFFER - buffer.len().min(BUFFER);
        if usize::from(mode.left()) > room {
            return refuse("its buffer has no room for what is announced");
        }
        let same = chip.bytes == bytes;
        *chip = Chip { bytes, mode, status, buffer };
        let len = chip.bytes.len();
        if !same {
            self.keep(&mut chip, 0, len);
        }
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("bytes programmed", self.programmed.load(Relaxed)),
            ("blocks erased", self.erased.load(Relaxed)),
            ("failed writes", self.failed.load(Relaxed)),
        ]
    }
}
