//! A VGA with Bochs' display interface: PCI function 1234:1111, which firmware and stock kernels
//! have drivers for.
//!
//! | where | what |
//! |---|---|
//! | ports 0x3b0-0x3df | the VGA's registers |
//! | memory 0xa0000-0xbffff | its window: text, planes, 256 colours |
//! | ports 0x1ce, 0x1cf | the display interface's index and data |
//! | BAR 0, 16 MiB | the linear framebuffer, which is RAM to the guest |
//! | BAR 2, 4 KiB | EDID at 0, the VGA's ports at 0x400, the display interface at 0x500 |
//! | expansion ROM | the VGA firmware, if there is one |
//!
//! The VGA's own 256 KiB and the framebuffer are two memories, so that a text screen is still
//! there after a graphics mode; while the display interface is on, the window leads to a bank of
//! the framebuffer.
//!
//! Not there: text that blinks (it is shown), smooth scrolling by single pixels, interrupts.
//!
//! Locks: the adapter's own, with none taken inside but the memory layout's.

mod dispi;
mod edid;
mod planes;
mod regs;
mod render;
mod state;
mod text_mode;
mod vram;

pub use dispi::Dispi;
pub use regs::{Dac, Regs};
pub use state::VgaState;
pub use vram::SIZE as FRAMEBUFFER;

use device::{Device, MmioDevice, PioDevice, Wiring};
use display::{Frame, Screen};
use guest_mem::Memfd;
use pci::{Bar, BarKind, Function, FunctionConfig, PciHost};
use planes::Planes;
use saved_state::{Error, Reader, Writer, malformed};
use std::{
    fmt, io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use vram::Vram;

/// The memory that a VGA answers to, whatever PCI says.
pub const WINDOW: Range<u64> = 0xa_0000..0xc_0000;

const FRAMEBUFFER_BAR: usize = 0;
const REGISTER_BAR: usize = 2;
const REGISTERS: u32 = 0x1000;
/// Offsets into the registers' BAR.
const VGA_PORTS: Range<u64> = 0x400..0x420;
const DISPI: Range<u64> = 0x500..0x516;
/// The framebuffer's byte order, in the way of QEMU's extension: how many bytes of registers there
/// are, and which order is set.
const EXTENSION: Range<u64> = 0x600..0x608;
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

#[derive(Clone, Debug, Default)]
struct Core {
    regs: Regs,
    dispi: Dispi,
    planes: Planes,
}

/// The adapter.
#[derive(Debug)]
pub struct Vga {
    core: Mutex<Core>,
    vram: Vram,
    edid: [u8; 128],
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    ports: AtomicU64,
    window: AtomicU64,
    frames: AtomicU64,
}

/// The window of the board's bus.
struct Window(Arc<Vga>);

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Window")
    }
}

/// Puts the adapter on the board and on the bus. `rom` is the firmware that it brings along.
///
/// # Errors
/// If the host has no memory for the framebuffer.
///
/// # Panics
/// If the bus has no free slot.
pub fn build(rom: Option<Arc<[u8]>>, pci: &PciHost, wiring: &mut Wiring) -> io::Result<Arc<Vga>> {
    let vga = Arc::new(Vga {
        core: Mutex::default(),
        vram: Vram::new(wiring.memory.clone())?,
        edid: edid::block(),
        counters: Counters::default(),
    });
    let bar =
        |index, prefetchable, size| Bar { index, kind: BarKind::Memory32, prefetchable, size };
    let function = FunctionConfig {
        vendor: 0x1234,
        device: 0x1111,
        revision: 2,
        class: 0x03_00_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        bars: vec![bar(FRAMEBUFFER_BAR, true, FRAMEBUFFER), bar(REGISTER_BAR, false, REGISTERS)],
        rom,
        legacy_ports: true,
        ..FunctionConfig::default()
    };
    pci.add(&function, wiring, |_| vga.clone());
    wiring.claim_ports("vga", 0x3b0..=0x3bb, vga.clone());
    wiring.claim_ports("vga", 0x3c0..=0x3df, vga.clone());
    wiring.claim_ports("vga_dispi", dispi::INDEX_PORT..=dispi::DATA_PORT_EVEN, vga.clone());
    wiring.claim_mmio("vga", WINDOW.start..=WINDOW.end - 1, Arc::new(Window(vga.clone())));
    wiring.devices.push(vga.clone());
    Ok(vga)
}

impl Vga {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what firmware would: 80 by 25 characters, all blank. For a kernel that is started
    /// without one.
    pub fn start_text(&self) {
        let mut core = self.lock();
        let Core { regs, planes, dispi } = &mut *core;
        text_mode::start(regs, planes);
        *dispi = Dispi::default();
    }

    fn dispi_write(&self, index: Option<u16>, value: u16) {
        let mut core = self.lock();
        let index = index.unwrap_or(core.dispi.index);
        if core.dispi.write(index, value, FRAMEBUFFER) {
            let mode = core.dispi.mode(FRAMEBUFFER);
            let end = mode.map_or(0, |m| u32::from(m.height).saturating_mul(m.pitch));
            drop(core);
            self.vram.clear(end.min(FRAMEBUFFER));
        }
    }

    /// Where the window leads in the framebuffer, while it does.
    fn bank(core: &Core, offset: u64) -> Option<u64> {
        core.dispi.mode(FRAMEBUFFER)?;
        let bank = u64::from(core.dispi.bank) << 16;
        (core.dispi.bpp > 4 && offset < 0x1_0000).then_some(bank + offset)
    }

    /// Bytes of a register of 16 bits, from one of them on.
    fn dispi_bytes(&self, offset: u64) -> u8 {
        let value = self.lock().dispi.read((offset / 2) as u16, FRAMEBUFFER);
        value.to_le_bytes()[(offset % 2) as usize]
    }

    fn read_register(&self, offset: u64) -> u8 {
        if let Some(byte) = usize::try_from(offset).ok().and_then(|at| self.edid.get(at)) {
            *byte
        } else if VGA_PORTS.contains(&offset) {
            let port = 0x3c0 + (offset - VGA_PORTS.start) as u16;
            self.lock().regs.read(port).unwrap_or(0xff)
        } else if DISPI.contains(&offset) {
            self.dispi_bytes(offset - DISPI.start)
        } else if EXTENSION.contains(&offset) {
            let at = offset - EXTENSION.start;
            let size = (EXTENSION.end - EXTENSION.start) as u32;
            let word = if at < 4 { size } else { LITTLE_ENDIAN };
            word.to_le_bytes()[(at % 4) as usize]
        } else {
            0
        }
    }
}

impl PioDevice for Vga {
    fn read(&self, port: u16, data: &mut [u8]) {
        self.counters.ports.fetch_add(1, Relaxed);
        if (dispi::INDEX_PORT..=dispi::DATA_PORT_EVEN).contains(&port) {
            let core = self.lock();
            let value = match port {
                dispi::INDEX_PORT => core.dispi.index,
                _ => core.dispi.read(core.dispi.index, FRAMEBUFFER),
            };
            data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
            return;
        }
        let mut core = self.lock();
        for (port, byte) in (port..=0x3df).zip(data) {
            if let Some(value) = core.regs.read(port) {
                *byte = value;
            }
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.counters.ports.fetch_add(1, Relaxed);
        if (dispi::INDEX_PORT..=dispi::DATA_PORT_EVEN).contains(&port) {
            let value = match *data {
                [low] => low.into(),
                [low, high, ..] => u16::from_le_bytes([low, high]),
                [] => return,
            };
            if port == dispi::INDEX_PORT {
                self.lock().dispi.index = value;
            } else {
                self.dispi_write(None, value);
            }
            return;
        }
        let mut core = self.lock();
        for (port, byte) in (port..=0x3df).zip(data) {
            core.regs.write(port, *byte);
        }
    }
}

impl MmioDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let vga = &*self.0;
        vga.counters.window.fetch_add(1, Relaxed);
        let mut core = vga.lock();
        if let Some(at) = Vga::bank(&core, offset) {
            drop(core);
            vga.vram.read(at, data);
            return;
        }
        let Core { regs, planes, .. } = &mut *core;
        for (offset, byte) in (offset..).zip(data) {
            if let Some(at) = planes::window(regs, offset) {
                *byte = planes.read(regs, at);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let vga = &*self.0;
        vga.counters.window.fetch_add(1, Relaxed);
        let mut core = vga.lock();
        if let Some(at) = Vga::bank(&core, offset) {
            drop(core);
            vga.vram.write(at, data);
            return;
        }
        let Core { regs, planes, .. } = &mut *core;
        for (offset, byte) in (offset..).zip(data) {
            if let Some(at) = planes::window(regs, offset) {
                planes.write(regs, at, *byte);
            }
        }
    }
}

impl Function for Vga {
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            FRAMEBUFFER_BAR => self.vram.read(offset, data),
            _ => (offset..).zip(data).for_each(|(at, byte)| *byte = self.read_register(at)),
        }
    }

    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar == FRAMEBUFFER_BAR {
            self.vram.write(offset, data);
        } else if VGA_PORTS.contains(&offset) {
            let mut core = self.lock();
            for (at, byte) in (offset..VGA_PORTS.end).zip(data) {
                core.regs.write(0x3c0 + (at - VGA_PORTS.start) as u16, *byte);
            }
        } else if DISPI.contains(&offset)
            && let Ok(value) = <[u8; 2]>::try_from(data)
        {
            // Registers of 16 bits, written whole.
            let index = ((offset - DISPI.start) / 2) as u16;
            self.dispi_write(Some(index), u16::from_le_bytes(value));
        }
    }

    fn memory(&self, bar: usize) -> Option<Arc<Memfd>> {
        (bar == FRAMEBUFFER_BAR).then(|| self.vram.mem.clone())
    }
}

impl Screen for Vga {
    fn render(&self, frame: &mut Frame) {
        self.counters.frames.fetch_add(1, Relaxed);
        let core = self.lock();
        match core.dispi.mode(FRAMEBUFFER) {
            // What is in the framebuffer is read without holding up the guest.
            Some(mode) if mode.bpp > 4 => {
                let dac = core.regs.dac.clone();
                drop(core);
                render::linear(&mode, &dac, &Planes::none(), &self.vram, frame);
            }
            Some(mode) => render::linear(&mode, &core.regs.dac, &core.planes, &self.vram, frame),
            None => render::legacy(&core.regs, &core.planes, frame),
        }
    }
}

impl Device for Vga {
    fn name(&self) -> String {
        "vga".into()
    }

    fn reset(&self) {
        *self.lock() = Core::default();
        self.vram.clear(FRAMEBUFFER);
    }

    fn save(&self, to: &mut Writer) {
        let core = self.lock();
        let state = VgaState {
            regs: core.regs.clone(),
            dispi: core.dispi,
            latch: core.planes.latch,
            planes: core.planes.save(),
            framebuffer: self.vram.used().collect(),
        };
        to.put(0, &state);
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: VgaState = from.take(0)?;
        let refuse = |reason: &str| Err(malformed::<VgaState>(reason));
        if !state.regs.is_possible() || !state.dispi.is_possible() {
            return refuse("a register has bits that are not there");
        }
        let Some(planes) = Planes::restore(state.planes, state.latch) else {
            return refuse("the planes are larger than they are");
        };
        if !self.vram.restore(&state.framebuffer) {
            return refuse("a page of the framebuffer is not one");
        }
        *self.lock() = Core { regs: state.regs, dispi: state.dispi, planes };
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { ports, window, frames } = &self.counters;
        vec![
            ("port accesses", ports.load(Relaxed)),
            ("window accesses", window.load(Relaxed)),
            ("frames drawn", frames.load(Relaxed)),
        ]
    }
}
