//! From a spec to a running machine: address map, wiring, vCPU threads.
//!
//! ```text
//!   VmSpec + Parts --build--> Machine { owner thread, vCPU threads, timer thread }
//!                               |  handle(): pause, resume, reset, power button, NMI, info
//!                               `  wait(): how it ended
//! ```
//!
//! The machine knows engines only by their seam and devices only by their contract. Every
//! device is built in `build`, from one table; there is no device manager.

mod apic;
mod board;
mod bootable;
mod build;
mod clock;
mod cpuid;
mod cpus;
mod disks;
mod dump;
pub mod engines;
mod extras;
mod firmware;
mod handle;
mod host;
mod image;
mod info;
mod late;
mod loader;
pub mod map;
mod networks;
mod obituary;
mod owner;
mod parts;
mod place;
mod platform;
mod plug;
mod power;
mod ram;
mod saved;
mod screen;
mod smbios;
mod start;
mod stats;
mod timers;
mod trace;
mod units;
mod vcpu;
pub mod virt;
mod virtio_bus;
mod watch;
mod xen;

pub use cpus::{CpusAnswer, CpusInfo};
pub use extras::{BalloonInfo, MemoryInfo};
pub use handle::{Gone, Handle};
pub use image::Image;
pub use info::{Activity, Exits, Info, State, VcpuInfo};
pub use owner::{DebugStop, Ended};
pub use parts::{ChannelPart, DiskPart, NetworkPart, Parts, VsockPart};
pub use place::Place;
pub use platform::{Sleep, Wake};
pub use plug::{Carry, Keep, Plug, PlugError};
pub use saved::tsc_khz;
pub use start::{FLOPPY, FirmwarePart, Start, Variables};
pub use stats::MachineStats;
pub use trace::Tracer;
/// Target and unit of the SCSI adapter.
pub use virtio_scsi::Address as ScsiAddress;

use byte_stream::Input;
use engine::Engine;
use owner::{End, Owner, Request};
use std::{
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::Instant,
};
use vm_spec::VmSpec;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Boot(#[from] boot::Error),
    #[error(transparent)]
    Acpi(#[from] acpi_build::Error),
    #[error(
        "the SMBIOS tables find no room behind those of ACPI; give shorter texts with --smbios"
    )]
    Smbios,
    #[error(transparent)]
    GuestMemory(#[from] guest_mem::Error),
    #[error("engine {engine}")]
    Engine { engine: &'static str, source: engine::Error },
    #[error("CPU model: {0}")]
    CpuModel(String),
    #[error("engine {engine} runs at most {max} vCPUs, not {asked}; give fewer with --cpus")]
    TooManyVcpus { engine: &'static str, max: u32, asked: u32 },
    #[error("no memory for the guest: {size} MiB; give less with --memory")]
    Memory { size: u64, source: std::io::Error },
    #[error("the kernel or initrd cannot be read")]
    Image(#[source] std::io::Error),
    #[error("the firmware's image has {0} bytes; one has whole pages, from 64 KiB to 8 MiB")]
    FirmwareSize(usize),
    #[error("the firmware's variables have {0} bytes; they have whole pages, up to 8 MiB")]
    VariablesSize(usize),
    #[error(transparent)]
    FirmwareFile(#[from] fw_cfg::Error),
    #[error("the SCSI adapter has no room for so many disks")]
    TooManyUnits,
    #[error("engine {0} cannot run Xen PV guests; give --engine translate")]
    DomainEngine(&'static str),
    #[error("a Xen PV guest starts with a kernel, not with firmware; give --kernel FILE")]
    DomainFirmware,
    #[error("only a Xen PV guest starts from a disk without firmware; give --guest xen-pv")]
    NoFirmware,
    #[error("a Xen PV guest starts from a kernel or a disk; give --kernel FILE or --disk FILE")]
    DomainDisk,
    #[error(transparent)]
    DomainDevice(#[from] xen_bus::Error),
    #[error(transparent)]
    DiskBoot(#[from] disk_boot::Error),
    #[error("the kernel's first page tables break Xen's rules")]
    Domain,
    #[error("no thread for the machine")]
    Thread(#[source] std::io::Error),
}

impl Error {
    /// The error and its causes on one line.
    pub fn line(&self) -> String {
        vcpu::with_source(self)
    }
}

/// A machine and its threads. Dropping it ends them all.
pub struct Machine {
    owner: Sender<Request>,
    end: Arc<End>,
    thread: Option<JoinHandle<()>>,
    console: Arc<dyn Input>,
    channels: Vec<Arc<dyn Input>>,
    handle: Handle,
}

impl Machine {
    /// Builds it, paused at its reset state with the kernel loaded.
    pub fn build(engine: &dyn Engine, spec: &VmSpec, parts: Parts) -> Result<Self, Error> {
        Self::build_at(engine, spec, parts, engine.caps().tsc_khz)
    }

    /// Builds one whose TSC runs at this frequency instead of the engine's own: that of the
    /// machine whose state it is to take over, see [`tsc_khz`]. Refused if the engine cannot.
    pub fn build_at(
        engine: &dyn Engine,
        spec: &VmSpec,
        parts: Parts,
        tsc_khz: u32,
    ) -> Result<Self, Error> {
        let (owner, inbox) = channel();
        let built = build::build(engine, spec, parts, tsc_khz, &owner)?;
        let end = Arc::new(End::default());
        let memory = built.board.common().vm.memory().clone();
        let vcpus = built.vcpus.len();
        let handle = Handle::new(owner.clone(), memory, built.watch, built.seat, vcpus);
        let running = vec![false; vcpus];
        let owned = Owner {
            board: built.board,
            vcpus: built.vcpus,
            inbox,
            end: end.clone(),
            running,
            later: Default::default(),
            debugger: None,
            only: None,
            paused: true,
        };
        let thread = std::thread::Builder::new()
            .name("owner".into())
            .spawn(move || owned.serve())
            .map_err(Error::Thread)?;
        let (console, channels) = (built.console, built.channels);
        Ok(Self { owner, end, thread: Some(thread), console, channels, handle })
    }

    /// For other threads: what an operator may do to the machine.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where the console's input goes.
    pub fn console(&self) -> Arc<dyn Input> {
        self.console.clone()
    }

    /// Where the input of each channel goes, in the order of the spec.
    pub fn channels(&self) -> &[Arc<dyn Input>] {
        &self.channels
    }

    /// How it ended; `None` if the deadline passes first.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Ended> {
        self.end.wait(deadline)
    }

    /// What was counted until the end; `None` while it runs.
    pub fn final_stats(&self) -> Option<MachineStats> {
        self.end.stats()
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Machine({} vCPUs)", self.handle.vcpus())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.owner.send(Request::Quit));
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}
