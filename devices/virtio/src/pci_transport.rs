//! virtio over PCI (4.1): where the structures are, and the device on its bus.
//!
//! One BAR holds everything:
//!
//! | offset | what |
//! |---|---|
//! | `0x0000` | common configuration |
//! | `0x1000` | ISR status |
//! | `0x2000` | device-specific configuration |
//! | `0x3000` | doorbells, four bytes for each queue |
//! | `0x4000` | MSI-X table, and at `0x5000` its pending bits |

use crate::{VirtioDevice, core::Core, core::Handle, lock, state::VirtioState, worker};
use device::{Device, Wiring};
use guest_mem::GuestMem;
use pci::{Bar, BarKind, Capability, Function, FunctionConfig, MsixConfig, PciHost, Requester};
use saved_state::{Error, Reader, Writer};
use std::{
    fmt, io,
    sync::{Arc, Mutex, OnceLock, atomic::Ordering::Relaxed},
    thread::JoinHandle,
};

const VENDOR: u16 = 0x1af4;
/// Device ID of a modern device of type 0 (4.1.2).
const MODERN: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;
/// The vendor-specific capability (PCI, appendix H).
const VENDOR_SPECIFIC: u8 = 9;

const BAR: usize = 0;
const BAR_SIZE: u32 = 0x8000;
const STRUCTURE: u64 = 0x1000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
/// Bytes between the doorbells of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// `cfg_type` (4.1.4).
mod kind {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const WINDOW: u8 = 5;
}

/// A virtio device as a function of the PCI bus. Dropping it ends its threads.
pub struct VirtioPci {
    pub(crate) core: Arc<Core>,
    slot: u8,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whether the threads run, for messages.
    started: OnceLock<()>,
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Puts a device on the bus, and starts its threads. It serves nothing until it is resumed.
///
/// # Errors
/// If the host has no thread for it.
///
/// # Panics
/// If the bus has no free slot.
pub fn build(
    device: Arc<dyn VirtioDevice>,
    host: &PciHost,
    wiring: &mut Wiring,
) -> io::Result<Arc<VirtioPci>> {
    let memory = wiring.memory.clone();
    let config = function(&*device);
    let this = host.add(&config, wiring, |requester| VirtioPci::new(device, memory, requester));
    this.start()?;
    wiring.devices.push(this.clone());
    Ok(this)
}

/// Why a device was not plugged in.
#[derive(Debug)]
pub enum PlugError {
    Slot(pci::PlugError),
    Thread(io::Error),
}

/// Puts a device behind a root port while the guest runs, and starts its threads. It serves
/// nothing until it is resumed, and is the caller's to pause, save and reset.
///
/// # Errors
/// If the port is not there or not free, or the host has no thread for it.
pub fn plug(
    device: Arc<dyn VirtioDevice>,
    host: &PciHost,
    port: usize,
    memory: &Arc<GuestMem>,
) -> Result<Arc<VirtioPci>, PlugError> {
    let config = function(&*device);
    let mut failed = None;
    let plugged = host.plug(port, &config, |requester| {
        let this = VirtioPci::new(device, memory.clone(), requester);
        // Before the guest sees it.
        failed = this.start().err();
        this
    });
    match (plugged, failed) {
        (Ok(_), Some(error)) => {
            host.pull(port);
            Err(PlugError::Thread(error))
        }
        (plugged, _) => plugged.map_err(PlugError::Slot),
    }
}

impl VirtioPci {
    fn new(
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMem>,
        requester: Arc<Requester>,
    ) -> Arc<Self> {
        let slot = requester.slot();
        let core = Core::new(device, memory, requester);
        Arc::new(Self { core, slot, threads: Mutex::default(), started: OnceLock::new() })
    }

    fn start(&self) -> io::Result<()> {
        for index in 0..self.core.workers.len() {
            lock(&self.threads).push(worker::start(&self.core, index)?);
        }
        let _ = self.started.set(());
        self.core.device.attach(Handle(Arc::downgrade(&self.core)));
        Ok(())
    }
}

fn function(device: &dyn VirtioDevice) -> FunctionConfig {
    let vectors = device.queue_sizes().len() as u16 + 1;
    FunctionConfig {
        vendor: VENDOR,
        device: MODERN + device.device_type(),
        // 4.1.2.1
        revision: 1,
        class: device.class(),
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
        bars: vec![Bar {
            index: BAR,
            kind: BarKind::Memory32,
            prefetchable: false,
            size: BAR_SIZE,
        }],
        msix: Some(MsixConfig { vectors, bar: BAR, table: TABLE, pba: PENDING }),
        capabilities: vec![
            structure(kind::COMMON, COMMON, &[]),
            structure(kind::ISR, ISR, &[]),
            structure(kind::DEVICE, DEVICE, &[]),
            structure(kind::NOTIFY, NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes()),
            window(),
        ],
        interrupt_pin: true,
        ..FunctionConfig::default()
    }
}

/// struct virtio_pci_cap (4.1.4).
fn structure(kind: u8, offset: u64, more: &[u8]) -> Capability {
    let mut body = vec![16 + more.len() as u8, kind, BAR as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((STRUCTURE as u32).to_le_bytes());
    body.extend(more);
    Capability { id: VENDOR_SPECIFIC, body, writable: Vec::new(), window: false }
}

/// Another way to the same registers, for firmware that cannot reach the BAR (4.1.4.9).
fn window() -> Capability {
    let mut body = vec![20, kind::WINDOW];
    body.resize(18, 0);
    // BAR, two bytes of padding and an ID that stay, offset, length.
    let writable = [&[0, 0, 0xff, 0, 0, 0][..], &[0xff; 8]].concat();
    Capability { id: VENDOR_SPECIFIC, body, writable, window: true }
}

impl VirtioPci {
    /// The bus's number for it, and the instance of its saved state.
    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// The access that a window's capability asks for: offset and length.
    fn through_window(capability: &[u8]) -> Option<(u64, usize)> {
        let word = |at: usize| {
            let bytes = capability.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let (offset, length) = (word(8)?, word(12)?);
        let whole = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        let inside = usize::from(*capability.get(4)?) == BAR && offset < BAR_SIZE;
        (whole && inside).then_some((offset.into(), length as usize))
    }
}

impl Function for VirtioPci {
    fn read(&self, _: usize, offset: u64, data: &mut [u8]) {
        let at = offset % STRUCTURE;
        data.fill(0);
        match offset - at {
            COMMON => lock(&self.core.regs).read(&self.core, at, data),
            ISR if at == 0 => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.core.take_isr();
                }
            }
            DEVICE => self.core.device.read_config(at, data),
            _ => {}
        }
    }

    fn write(&self, _: usize, offset: u64, data: &[u8]) {
        let at = offset % STRUCTURE;
        match offset - at {
            COMMON => lock(&self.core.regs).write(&self.core, at, data),
            DEVICE => self.core.device.write_config(at, data),
            NOTIFY => {
                self.core.counters.doorbells.fetch_add(1, Relaxed);
                self.core.kick((at / u64::from(NOTIFY_MULTIPLIER)) as u16);
            }
            _ => {}
        }
    }

    fn bus_reset(&self) {
        Device::reset(self);
    }

    fn became_master(&self) {
        self.core.kick_all();
    }

    fn lost_master(&self) {
        self.core.rest();
    }

    fn read_window(&self, capability: &[u8], data: &mut [u8; 4]) {
        if let Some((offset, length)) = Self::through_window(capability) {
            Function::read(self, BAR, offset, &mut data[..length]);
        }
    }

    fn write_window(&self, capability: &[u8], data: &[u8]) {
        if let Some((offset, length)) = Self::through_window(capability)
            && let Some(data) = data.get(..length)
        {
            Function::write(self, BAR, offset, data);
        }
    }
}

impl Device for VirtioPci {
    fn name(&self) -> String {
        let name = self.core.device.name();
        match self.slot.checked_sub(pci::SLOTS) {
            Some(port) => format!("{name} behind port {port}"),
            None => format!("{name} in slot {}", self.slot),
        }
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
        to.put(self.slot.into(), &self.core.save());
        self.core.device.save(to, self.slot.into());
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: VirtioState = from.take(self.slot.into())?;
        let (regs, rings) = self.core.check(&state)?;
        self.core.device.restore(from, self.slot.into())?;
        self.core.take_over(&state, regs, rings);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.core.counters()
    }
}

impl VirtioPci {
    /// No thread of the queues runs when this returns, and none will.
    pub(crate) fn end(&self) {
        self.core.end();
        for thread in lock(&self.threads).drain(..) {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestError, Queue, Served, fake::Board, feature::VERSION_1};
    use std::{
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        thread,
        time::Duration,
    };

    /// Refuses every request.
    #[derive(Default)]
    struct Refusing(AtomicBool);

    impl VirtioDevice for Refusing {
        fn name(&self) -> &'static str {
            "refusing"
        }
        fn device_type(&self) -> u16 {
            0x3f
        }
        fn class(&self) -> u32 {
            0xff_00_00
        }
        fn queue_sizes(&self) -> Vec<u16> {
            vec![crate::fake::SIZE]
        }
        fn serve(&self, _: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
            if queue.pop()?.is_none() {
                return Ok(Served::Drained);
            }
            self.0.store(true, SeqCst);
            Err(GuestError("refused"))
        }
    }

    /// Panics at its first request.
    #[derive(Default)]
    struct Fragile(AtomicBool);

    impl VirtioDevice for Fragile {
        fn name(&self) -> &'static str {
            "fragile"
        }
        fn device_type(&self) -> u16 {
            0x3f
        }
        fn class(&self) -> u32 {
            0xff_00_00
        }
        fn queue_sizes(&self) -> Vec<u16> {
            vec![crate::fake::SIZE]
        }
        fn serve(&self, _: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
            while let Some(chain) = queue.pop()? {
                assert!(self.0.swap(true, SeqCst), "the first request");
                queue.complete(chain, 0)?;
            }
            Ok(Served::Drained)
        }
    }

    #[test]
    fn a_device_that_panicked_needs_a_reset_and_lives() {
        let board = Board::new(Arc::new(Fragile::default()));
        board.start(VERSION_1, true);
        assert_eq!(board.call(0, b"x", 0), None);
        assert_eq!(board.forgive_failures(), 1);
        board.set_status(0);
        board.clear_rings();
        board.start(VERSION_1, true);
        assert_eq!(board.call(0, b"x", 0), Some(Vec::new()));
    }

    #[test]
    fn a_pause_waits_until_an_error_is_reported() {
        let device = Arc::new(Refusing::default());
        let board = Board::new(device.clone());
        board.start(VERSION_1, true);
        // Reporting needs the registers.
        let regs = lock(&board.virtio.core.regs);
        board.submit(0, b"x", 0);
        board.until("the request", || device.0.load(SeqCst));
        let paused = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                board.virtio.pause();
                paused.store(true, SeqCst);
            });
            thread::sleep(Duration::from_millis(50));
            assert!(!paused.load(SeqCst));
            drop(regs);
        });
        assert_eq!(board.status() & 0x40, 0x40);
        assert_eq!(board.sink.take_messages().len(), 1);
    }
}
