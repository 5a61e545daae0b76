//! virtio over MMIO, version 2 of its registers (4.2): a page for each device, and an interrupt
//! that stays until it is acknowledged.
//!
//! Nothing on this bus can be found by looking: the operating system is told, by ACPI or otherwise,
//! where each device is.

use crate::{VirtioDevice, bus::Wire, core::Core, core::Handle, lock, state::VirtioState, worker};
use device::{Device, LineRef, MmioDevice, Wiring};
use saved_state::{Error, Reader, Writer};
use std::{
    fmt, io,
    ops::Range,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    thread::JoinHandle,
};

/// Bytes of a device's registers and its configuration: a page.
const SIZE: u64 = 0x1000;
/// "virt", as a number.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0x1af4;
/// Saved parts of slots of the PCI bus come before those of this bus.
const FIRST_INSTANCE: u32 = 0x100;

/// Offsets of the registers, each of four bytes (table 4.1).
mod at {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE: u64 = 0x008;
    pub const VENDOR: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    /// Lower and upper half of the descriptor table, the driver area, the device area.
    pub const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    /// Length and address of a region of shared memory, two halves each.
    pub const SHARED_FIRST: u64 = 0x0b0;
    pub const SHARED_LAST: u64 = 0x0bc;
    pub const GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioPlace {
    /// Guest-physical, of [`MmioPlace::SIZE`] bytes.
    pub address: u64,
    /// A level-triggered interrupt, which others may share.
    pub gsi: u32,
}

impl MmioPlace {
    /// Bytes that a device takes.
    pub const SIZE: u64 = SIZE;
}

/// Addresses and interrupts for devices, which take a page each in the order in which they come.
#[derive(Debug)]
pub struct MmioWindow {
    free: Range<u64>,
    gsis: Range<u32>,
    places: Vec<MmioPlace>,
}

impl MmioWindow {
    /// The window begins and ends at pages. Neighbours lead to different interrupts.
    pub fn new(addresses: Range<u64>, gsis: Range<u32>) -> Self {
        Self { free: addresses, gsis, places: Vec::new() }
    }

    /// Those that are taken.
    pub fn places(&self) -> &[MmioPlace] {
        &self.places
    }

    /// Puts a device at the next place, and starts its threads. It serves nothing until it is
    /// resumed.
    ///
    /// # Errors
    /// If the host has no thread for it.
    ///
    /// # Panics
    /// If the window is full: how many devices there are, the caller checks.
    pub fn build(
        &mut self,
        device: Arc<dyn VirtioDevice>,
        wiring: &mut Wiring,
    ) -> io::Result<Arc<VirtioMmio>> {
        let address = self.free.start;
        assert!(address + SIZE <= self.free.end, "no place for {}", device.name());
        self.free.start += SIZE;
        let index = self.places.len() as u32;
        let gsi = self.gsis.start + index % self.gsis.len().max(1) as u32;
        let place = MmioPlace { address, gsi };
        self.places.push(place);
        let line = wiring.irq(gsi as usize);
        let core = Core::new(device, wiring.memory.clone(), Arc::new(Wire(line.clone())));
        let instance = FIRST_INSTANCE + index;
        let this = Arc::new(VirtioMmio { core, place, instance, line, threads: Mutex::default() });
        this.start()?;
        wiring.claim_mmio("virtio", address..=address + SIZE - 1, this.clone());
        wiring.devices.push(this.clone());
        Ok(this)
    }
}

/// A virtio device behind registers in memory. Dropping it ends its threads.
pub struct VirtioMmio {
    core: Arc<Core>,
    place: MmioPlace,
    instance: u32,
    line: LineRef,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for VirtioMmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioMmio").field("place", &self.place).finish_non_exhaustive()
    }
}

impl VirtioMmio {
    pub fn place(&self) -> MmioPlace {
        self.place
    }

    fn start(&self) -> io::Result<()> {
        for index in 0..self.core.workers.len() {
            lock(&self.threads).push(worker::start(&self.core, index)?);
        }
        self.core.device.attach(Handle(Arc::downgrade(&self.core)));
        Ok(())
    }

    /// What a driver may only write reads as 0 (4.2.2).
    fn register(&self, offset: u64) -> u32 {
        let core = &self.core;
        match offset {
            at::MAGIC => return MAGIC,
            at::VERSION => return VERSION,
            at::DEVICE => return core.device.device_type().into(),
            at::VENDOR => return VENDOR,
            at::INTERRUPT_STATUS => return u32::from(*lock(&core.isr)),
            // A region that is not there has length and address -1 (4.2.2).
            at::SHARED_FIRST..=at::SHARED_LAST => return u32::MAX,
            _ => {}
        }
        let regs = lock(&core.regs);
        match offset {
            at::DEVICE_FEATURES => regs.offered(core),
            at::QUEUE_SIZE_MAX => regs.queue().map_or(0, |queue| queue.max.into()),
            at::QUEUE_READY => regs.queue().is_some_and(|queue| queue.enabled).into(),
            at::STATUS => regs.status.into(),
            at::GENERATION => regs.generation.into(),
            _ => 0,
        }
    }

    fn set_register(&self, offset: u64, value: u32) {
        let core = &self.core;
        match offset {
            at::QUEUE_NOTIFY => {
                core.counters.doorbells.fetch_add(1, Relaxed);
                if let Ok(queue) = u16::try_from(value) {
                    core.kick(queue);
                }
                return;
            }
            at::INTERRUPT_ACKNOWLEDGE => return core.acknowledge(value as u8),
            _ => {}
        }
        let mut regs = lock(&core.regs);
        match offset {
            at::DEVICE_FEATURES_SELECT => regs.device_select = value,
            at::DRIVER_FEATURES_SELECT => regs.driver_select = value,
            at::DRIVER_FEATURES => regs.accept(value),
            // There is no such queue as the last number that fits.
            at::QUEUE_SELECT => regs.queue_select = u16::try_from(value).unwrap_or(u16::MAX),
            at::QUEUE_SIZE => regs.set_size(value),
            at::QUEUE_READY if value == 1 => regs.enable_queue(core),
            at::QUEUE_READY if value == 0 => regs.disable_queue(core),
            at::STATUS => {
                // Bits that no status has would otherwise be cut off to a reset.
                if let Ok(status) = u8::try_from(value) {
                    regs.set_status(core, status);
                }
            }
            _ => {
                let part = match offset & !4 {
                    at::QUEUE_DESCRIPTORS => 0,
                    at::QUEUE_DRIVER => 1,
                    at::QUEUE_DEVICE => 2,
                    _ => return,
                };
                let shift = (offset & 4) * 8;
                let mask = u64::from(u32::MAX) << shift;
                regs.set_address(part, u64::from(value) << shift, mask);
            }
        }
    }
}

impl MmioDevice for VirtioMmio {
    /// Registers are read by their whole width (4.2.2.2); other reads give zeroes.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(at::CONFIG) {
            self.core.device.read_config(at, data);
        } else if let (Ok(data), true) = (<&mut [u8; 4]>::try_from(data), offset.is_multiple_of(4))
        {
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(at::CONFIG) {
            self.core.device.write_config(at, data);
        } else if let (Ok(data), true) = (<[u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            self.set_register(offset, u32::from_le_bytes(data));
        }
    }
}

impl Device for VirtioMmio {
    fn name(&self) -> String {
        format!("{} at {:#x}", self.core.device.name(), self.place.address)
    }

    fn reset(&self) {
        let mut regs = lock(&self.core.regs);
        self.core.reset(&mut regs);
    }

    fn pause(&self) {
        self.core.pause();
    }

    fn resume(&self) {
        self.core.resume();
    }

    fn save(&self, to: &mut Writer) {
        to.put(self.instance, &self.core.save());
        self.core.device.save(to, self.instance);
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: VirtioState = from.take(self.instance)?;
        let (regs, rings) = self.core.check(&state)?;
        self.core.device.restore(from, self.instance)?;
        self.core.take_over(&state, regs, rings);
        self.line.restore(state.isr != 0);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.core.counters()
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        self.core.end();
        for thread in lock(&self.threads).drain(..) {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}
