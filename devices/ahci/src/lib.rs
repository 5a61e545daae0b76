//! A SATA host adapter (AHCI 1.3.1) with disks and CD drives: function 8086:2922, the ICH9's.
//!
//! ```text
//!   BAR 5 --> regs (HBA and ports) --kick--> worker, one for each drive
//!                                              | command list, FIS, PRD table   (transfer)
//!                                              v
//!                                   ata (disks) | atapi --> scsi::Cd
//! ```
//!
//! A vCPU only writes registers; commands are executed on the drive's own thread, which calls what
//! stores the blocks. One command of a port is executed at a time, of those that are queued as well:
//! native command queuing spares the driver its turns, and interrupts. These go by the pin, or by one
//! message (MSI).
//!
//! Sections cited are those of "Serial ATA Advanced Host Controller Interface" 1.3.1 ("AHCI"),
//! of ATA/ATAPI Command Set 3 ("ACS") and of MMC-6 ("MMC").
//!
//! Locks: the registers', then what memory or a line takes.

mod ata;
mod atapi;
mod drive;
mod identify;
mod regs;
mod state;
mod transfer;
mod worker;

pub use state::{AhciState, DriveState, PortState, QueueError};

use device::{Device, Wiring};
use disk::Disk;
use drive::Drive;
use guest_mem::GuestMem;
use pci::{Bar, BarKind, Capability, Function, FunctionConfig, PciHost, Requester};
use regs::Hba;
use saved_state::{Error, Reader, Writer};
use std::{
    fmt, io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

/// Ports of an adapter.
pub const PORTS: usize = 6;
const BAR: usize = 5;
const BAR_SIZE: u32 = 0x1000;

/// What is plugged into a port.
pub enum Plug {
    Disk {
        disk: Arc<dyn Disk>,
        serial: String,
    },
    /// A drive, with a disc of 2048-byte blocks in it or without.
    Cd(Option<Arc<dyn Disk>>),
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { serial, .. } => write!(f, "Disk({serial:?})"),
            Self::Cd(disc) => write!(f, "Cd({})", disc.is_some()),
        }
    }
}

/// What registers and workers share.
pub(crate) struct Core {
    pub(crate) memory: Arc<GuestMem>,
    pub(crate) requester: Arc<Requester>,
    pub(crate) hba: Mutex<Hba>,
    /// Something for a worker to do, or a worker is done.
    pub(crate) changed: Condvar,
    pub(crate) drives: Vec<Drive>,
    pub(crate) commands: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) malformed: AtomicU64,
}

impl Core {
    pub(crate) fn hba(&self) -> MutexGuard<'_, Hba> {
        self.hba.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no drive executes a command. Who calls this has seen to it that none begins.
    pub(crate) fn rest<'a>(&self, hba: MutexGuard<'a, Hba>) -> MutexGuard<'a, Hba> {
        let busy = |hba: &mut Hba| hba.is_busy();
        self.changed.wait_while(hba, busy).unwrap_or_else(PoisonError::into_inner)
    }

    /// Drives the pin as the registers say.
    pub(crate) fn drive_pin(&self, hba: &Hba) {
        self.requester.set_pin(hba.interrupt());
    }
}

/// The adapter.
pub struct Ahci {
    core: Arc<Core>,
    slot: u8,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Ahci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahci").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Puts an adapter with these drives, in the order of ports, on the bus.
///
/// # Errors
/// If there is no thread for a drive.
///
/// # Panics
/// If there are more than [`PORTS`], or the bus is full: how many, the caller checks.
pub fn build(plugs: Vec<Plug>, pci: &PciHost, wiring: &mut Wiring) -> io::Result<Arc<Ahci>> {
    assert!(plugs.len() <= PORTS, "{} drives", plugs.len());
    let config = FunctionConfig {
        vendor: 0x8086,
        device: 0x2922,
        revision: 2,
        class: 0x01_06_01,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        bars: vec![Bar {
            index: BAR,
            kind: BarKind::Memory32,
            prefetchable: false,
            size: BAR_SIZE,
        }],
        interrupt_pin: true,
        capabilities: vec![Capability::msi()],
        ..FunctionConfig::default()
    };
    let memory = wiring.memory.clone();
    let drives: Vec<Drive> = plugs.into_iter().map(Drive::new).collect();
    let ahci = pci.add(&config, wiring, |requester| {
        let slot = requester.slot();
        let signatures = drives.iter().map(Drive::signature).collect();
        let core = Arc::new(Core {
            memory,
            requester,
            hba: Mutex::new(Hba::new(signatures)),
            changed: Condvar::new(),
            drives,
            commands: 0.into(),
            failed: 0.into(),
            malformed: 0.into(),
        });
        Arc::new(Ahci { core, slot, threads: Mutex::default() })
    });
    for port in 0..ahci.core.drives.len() {
        let thread = worker::start(&ahci.core, port)?;
        ahci.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
    wiring.devices.push(ahci.clone());
    Ok(ahci)
}

impl Ahci {
    /// The PCI slot that it is in.
    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// Waits until no drive executes a command, or may take one: for tests.
    #[doc(hidden)]
    pub fn settle(&self) {
        let master = self.core.requester.is_master();
        let busy = |hba: &mut Hba| {
            let takes = master && !hba.paused;
            let drives = hba.ports.iter().take(self.core.drives.len());
            hba.is_busy() || takes && drives.into_iter().any(|port| port.next().is_some())
        };
        drop(self.core.changed.wait_while(self.core.hba(), busy));
    }
}

impl Function for Ahci {
    fn read(&self, _: usize, offset: u64, data: &mut [u8]) {
        let hba = self.core.hba();
        for (at, byte) in (offset..).zip(data) {
            let register = hba.read((at & !3) as u32);
            *byte = register.to_le_bytes()[(at & 3) as usize];
        }
    }

    /// Registers are four bytes wide, and written as a whole (AHCI, 3).
    fn write(&self, _: usize, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        let mut hba = self.core.hba();
        for (at, value) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let value = value.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            hba.write(at as u32, value, &self.core);
        }
        self.core.drive_pin(&hba);
        if std::mem::take(&mut hba.repeat) {
            self.core.requester.repeat();
        }
        self.core.changed.notify_all();
    }

    fn became_master(&self) {
        self.core.changed.notify_all();
    }

    /// Commands under way come to their end; those behind them wait.
    fn lost_master(&self) {
        drop(self.core.rest(self.core.hba()));
    }
}

impl Device for Ahci {
    fn name(&self) -> String {
        format!("ahci in slot {}", self.slot)
    }

    /// Waits for commands under way: what they move arrives before, or not at all.
    fn reset(&self) {
        let mut hba = self.core.hba();
        hba.reset();
        let hba = self.core.rest(hba);
        self.core.drives.iter().for_each(Drive::reset);
        self.core.drive_pin(&hba);
    }

    fn pause(&self) {
        let mut hba = self.core.hba();
        hba.paused = true;
        drop(self.core.rest(hba));
    }

    fn resume(&self) {
        self.core.hba().paused = false;
        self.core.changed.notify_all();
    }

    fn save(&self, to: &mut Writer) {
        let (global, ports) = self.core.hba().save();
        let drives = self.core.drives.iter().map(Drive::save).collect();
        to.put(
            self.slot.into(),
            &AhciState { control: global.0, pending: global.1, ports, drives },
        );
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: AhciState = from.take(self.slot.into())?;
        state.check(self.core.drives.len())?;
        let mut hba = self.core.hba();
        hba.restore(&state);
        for (drive, saved) in self.core.drives.iter().zip(&state.drives) {
            drive.restore(saved);
        }
        // The pin's level is the bus's to restore.
        drop(hba);
        self.core.changed.notify_all();
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("commands", self.core.commands.load(Relaxed)),
            ("failed commands", self.core.failed.load(Relaxed)),
            ("malformed commands", self.core.malformed.load(Relaxed)),
        ]
    }
}

impl Drop for Ahci {
    fn drop(&mut self) {
        self.core.hba().stop = true;
        self.core.changed.notify_all();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic has been reported by the panic hook.
            drop(thread.join());
        }
    }
}
