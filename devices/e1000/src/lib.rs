//! Intel's 82540EM Gigabit Ethernet controller (8086:100e), for guests without a virtio driver.
//!
//! ```text
//!   BAR 0, ports --> regs --wake--> the network, on whose thread frames move:
//!                                     tx: take() <-- the guest's ring of descriptors
//!                                     rx: give() --> the guest's ring of buffers
//!                                     flush()    --> interrupts
//! ```
//!
//! Checksums and segmentation that the driver leaves to the controller are left to the network;
//! tags of VLANs are inserted, filtered by and taken off. Interrupts go by the pin, at the end of
//! a batch of frames and no more often than ITR says; the other timers, which delay interrupts of
//! single frames, are registers and nothing else. There is no flash, no wake-up and no loopback.
//!
//! Sections cited are those of the "PCI/PCI-X Family of Gigabit Ethernet Controllers Software
//! Developer's Manual" ("SDM").
//!
//! Locks, in the order in which they are taken: that of transmission, that of reception, the
//! registers', then what memory or a line takes. The first two are held while the guest's rings
//! are worked on, and while a register changes on which that work stands; so what the guest
//! switches off touches its memory no more when the write is done.

mod eeprom;
mod phy;
mod regs;
mod rx;
mod state;
mod stats;
mod tx;

pub use eeprom::Wires;
pub use state::E1000State;
pub use tx::{Context, Cut, Range};

use device::{Clock, Device, Timer, Wiring};
use guest_mem::GuestMem;
use nic::{Mac, Meta, Network, NoRoom, Offloads, Port, Taken};
use pci::{Bar, BarKind, Function, FunctionConfig, PciHost, Requester};
use regs::{Regs, cause, reg};
use saved_state::{Error, Reader, Writer, malformed};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

pub(crate) const VENDOR: u16 = 0x8086;
pub(crate) const DEVICE: u16 = 0x100e;
const SUBSYSTEM_VENDOR: u16 = 0x1af4;
const SUBSYSTEM: u16 = 0x1100;
/// The longest packet that a guest sends or gets.
pub const MTU_MAX: u16 = 16_110;

/// Where the registers are in memory.
const MEMORY_BAR: usize = 0;
const MEMORY_SIZE: u32 = 0x2_0000;
/// Two ports for all of them: IOADDR and IODATA (SDM, 13.2.2).
const PORTS_BAR: usize = 1;
const PORTS_SIZE: u32 = 64;
const IODATA: u64 = 4;

/// ITR counts in units of so many nanoseconds.
const ITR_UNIT_NS: u64 = 256;

/// The controller.
pub struct E1000 {
    memory: Arc<GuestMem>,
    network: Arc<dyn Network>,
    requester: Arc<Requester>,
    clock: Arc<dyn Clock>,
    timer: OnceLock<Arc<dyn Timer>>,
    sending: Mutex<()>,
    /// The frame that arrives.
    receiving: Mutex<Vec<u8>>,
    regs: Mutex<Regs>,
    paused: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    refused: AtomicU64,
    filtered: AtomicU64,
    dropped: AtomicU64,
    lost: AtomicU64,
    interrupts: AtomicU64,
}

impl E1000 {
    /// Its place on the bus.
    pub fn slot(&self) -> u8 {
        self.requester.slot()
    }
}

impl fmt::Debug for E1000 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("E1000").field("slot", &self.requester.slot()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a controller with this address, plugged into the network, on the bus.
///
/// # Panics
/// If the bus is full: how many there are, the caller checks.
pub fn build(
    mac: Mac,
    network: Arc<dyn Network>,
    pci: &PciHost,
    wiring: &mut Wiring,
) -> Arc<E1000> {
    let bar = |index, kind, size| Bar { index, kind, prefetchable: false, size };
    let config = FunctionConfig {
        vendor: VENDOR,
        device: DEVICE,
        revision: 3,
        class: 0x02_00_00,
        subsystem_vendor: SUBSYSTEM_VENDOR,
        subsystem: SUBSYSTEM,
        bars: vec![
            bar(MEMORY_BAR, BarKind::Memory32, MEMORY_SIZE),
            bar(PORTS_BAR, BarKind::Io, PORTS_SIZE),
        ],
        interrupt_pin: true,
        ..FunctionConfig::default()
    };
    let card = pci.add(&config, wiring, |requester| {
        Arc::new(E1000 {
            memory: wiring.memory.clone(),
            network: network.clone(),
            requester,
            clock: wiring.clock.clone(),
            timer: OnceLock::new(),
            sending: Mutex::default(),
            receiving: Mutex::default(),
            regs: Mutex::new(Regs::new(mac, SUBSYSTEM_VENDOR, SUBSYSTEM)),
            // A device is built paused.
            paused: AtomicBool::new(true),
            sent: 0.into(),
            received: 0.into(),
            refused: 0.into(),
            filtered: 0.into(),
            dropped: 0.into(),
            lost: 0.into(),
            interrupts: 0.into(),
        })
    });
    let weak = Arc::downgrade(&card);
    let timer = wiring.timers.create(Arc::new(move |_| {
        let Some(card) = Weak::<E1000>::upgrade(&weak) else { return };
        let mut regs = card.regs();
        // A fire that was under way at a pause belongs to the time after it.
        if !card.paused.load(SeqCst) {
            card.drive(&mut regs);
        }
    }));
    // Just made, so it has none yet.
    drop(card.timer.set(timer));
    let port: Weak<E1000> = Arc::downgrade(&card);
    network.attach(port);
    wiring.devices.push(card.clone());
    card
}

impl E1000 {
    fn regs(&self) -> MutexGuard<'_, Regs> {
        lock(&self.regs)
    }

    /// Asserts or releases the pin, as the registers say.
    fn drive(&self, regs: &mut Regs) {
        let before = regs.asserted;
        if regs.icr & regs.ims == 0 {
            regs.asserted = false;
        } else if !before {
            let now = self.clock.now_ns();
            if now < regs.next_interrupt_ns {
                if let Some(timer) = self.timer.get() {
                    timer.arm(Some(regs.next_interrupt_ns));
                }
                return;
            }
            let interval = u64::from(regs.get(reg::ITR)) * ITR_UNIT_NS;
            regs.next_interrupt_ns = now.saturating_add(interval);
            regs.asserted = true;
            self.interrupts.fetch_add(1, Relaxed);
        }
        if regs.asserted != before {
            self.requester.set_pin(regs.asserted);
        }
    }

    /// Frames may be moved.
    fn works(&self) -> bool {
        !self.paused.load(SeqCst) && self.requester.is_master()
    }

    fn read_register(&self, offset: u32) -> u32 {
        let mut regs = self.regs();
        let value = regs.read(offset);
        if offset == reg::ICR {
            self.drive(&mut regs);
        }
        value
    }

    fn write_register(&self, offset: u32, value: u32) {
        let resets = offset == reg::CTRL;
        let sends = resets || matches!(offset, reg::TCTL | reg::TDBAL..=reg::TDH);
        let receives = resets || matches!(offset, reg::RCTL | reg::RDBAL..=reg::RDH);
        let sending = sends.then(|| lock(&self.sending));
        let receiving = receives.then(|| lock(&self.receiving));
        let mut regs = self.regs();
        let effects = regs.write(offset, value);
        self.drive(&mut regs);
        drop((regs, receiving, sending));
        if effects.wake {
            self.network.wake();
        }
    }

    /// When this returns, nobody is at work on the rings.
    fn settle(&self) {
        drop(lock(&self.sending));
        drop(lock(&self.receiving));
    }
}

impl Function for E1000 {
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        if bar == PORTS_BAR {
            let value = match (offset, data.len()) {
                (0, 4) => self.regs().io_address,
                (IODATA, 4) => {
                    let address = self.regs().io_address;
                    if address < MEMORY_SIZE { self.read_register(address & !3) } else { 0 }
                }
                _ => return,
            };
            data.copy_from_slice(&value.to_le_bytes());
            return;
        }
        // Some registers are changed by reading, so each is read once.
        let (mut register, mut value) = (u64::MAX, 0);
        for (at, byte) in (offset..).zip(data) {
            if at & !3 != register {
                register = at & !3;
                value = self.read_register(register as u32);
            }
            *byte = value.to_le_bytes()[(at & 3) as usize];
        }
    }

    /// Registers are four bytes wide, and written as a whole (SDM, 13.2.1).
    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        let (words, _) = data.as_chunks::<4>();
        let words = words.iter().map(|word| u32::from_le_bytes(*word));
        for (at, value) in (offset..).step_by(4).zip(words) {
            match (bar, at) {
                (MEMORY_BAR, _) => self.write_register(at as u32, value),
                (PORTS_BAR, 0) => self.regs().io_address = value,
                (PORTS_BAR, IODATA) => {
                    let address = self.regs().io_address;
                    if address < MEMORY_SIZE {
                        self.write_register(address & !3, value);
                    }
                }
                _ => {}
            }
        }
    }

    fn became_master(&self) {
        self.network.wake();
    }

    fn lost_master(&self) {
        self.settle();
    }

    fn bus_reset(&self) {
        self.reset();
    }
}

impl Port for E1000 {
    fn mac(&self) -> Mac {
        self.regs().mac()
    }

    /// What is left undone of a checksum is done here, since a driver relies on it.
    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: false, tso6: false }
    }

    fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        let _sending = lock(&self.sending);
        if self.works() { self.next_frame(buffer) } else { None }
    }

    fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let mut frame = lock(&self.receiving);
        if self.works() { self.arrive(&mut frame, meta, parts) } else { Err(NoRoom) }
    }

    fn flush(&self) {
        let mut regs = self.regs();
        if !self.paused.load(SeqCst) {
            let owed = std::mem::take(&mut regs.owed);
            regs.icr |= owed;
            self.drive(&mut regs);
        }
    }

    fn set_link(&self, up: bool) {
        let mut regs = self.regs();
        if regs.link != up {
            regs.link = up;
            regs.owed |= cause::LINK;
        }
        drop(regs);
        self.flush();
    }
}

impl Device for E1000 {
    fn name(&self) -> String {
        format!("e1000 in slot {}", self.requester.slot())
    }

    fn reset(&self) {
        let guards = (lock(&self.sending), lock(&self.receiving));
        let mut regs = self.regs();
        regs.reset();
        regs.asserted = false;
        self.requester.set_pin(false);
        drop((regs, guards));
    }

    fn pause(&self) {
        self.paused.store(true, SeqCst);
        self.settle();
        // A flush under way ends.
        drop(self.regs());
    }

    fn resume(&self) {
        self.paused.store(false, SeqCst);
        self.flush();
        self.network.wake();
    }

    fn save(&self, to: &mut Writer) {
        to.put(self.requester.slot().into(), &self.regs().save());
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: E1000State = from.take(self.requester.slot().into())?;
        let mut regs = self.regs();
        // The pin's level is the bus's to restore.
        *regs = regs.restored(&state).map_err(malformed::<E1000State>)?;
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("frames sent", self.sent.load(Relaxed)),
            ("frames received", self.received.load(Relaxed)),
            ("frames without room", self.refused.load(Relaxed)),
            ("frames not wanted", self.filtered.load(Relaxed)),
            ("frames dropped", self.dropped.load(Relaxed)),
            ("buffers that are no memory", self.lost.load(Relaxed)),
            ("interrupts", self.interrupts.load(Relaxed)),
        ]
    }
}
