//! Devices that are there when the spec asks for them, and that an operator deals with while the
//! machine runs: the virtio console, channels, the balloon, sockets.

use crate::{
    Error,
    board::{ChannelPart, VsockPart},
    map,
};
use byte_stream::{Input, Output};
use device::Wiring;
use display::Seat;
use pci::PciHost;
use std::{fmt, sync::Arc, time::Duration};
use virtio_balloon::{Statistics, VirtioBalloon};
use virtio_console::{PortConfig, VirtioConsole};
use virtio_input::{Kind, VirtioInput};
use virtio_mem::{Sizes, VirtioMem};
use virtio_vsock::VirtioVsock;
use vm_spec::{ConsoleDevice, VmSpec};

/// How long a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Those that there are.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    terminal: Option<Arc<VirtioConsole>>,
    keyboard: Option<Arc<VirtioInput>>,
    tablet: Option<Arc<VirtioInput>>,
    pub(crate) balloon: Option<Arc<VirtioBalloon>>,
    memory: Option<Arc<VirtioMem>>,
}

/// What is known of the balloon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonInfo {
    /// Bytes of RAM, how many of them the guest is to give up, and how many it has.
    pub memory: u64,
    pub target: u64,
    pub actual: u64,
    /// What its driver says of the rest; empty if there is none.
    pub statistics: Statistics,
}

impl fmt::Display for BalloonInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, target, actual, statistics } = self;
        writeln!(f, "memory                {:>10} MiB", memory >> 20)?;
        writeln!(f, "wanted from the guest {:>10} MiB", target >> 20)?;
        writeln!(f, "given by the guest    {:>10} MiB", actual >> 20)?;
        write!(f, "{statistics}")
    }
}

/// How much memory there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// From the start, and the least.
    pub start: u64,
    pub most: u64,
    /// What the operator wants, and what the guest has.
    pub wanted: u64,
    pub now: u64,
}

impl fmt::Display for MemoryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, most, wanted, now } = self;
        writeln!(f, "memory of the guest   {:>10} MiB", now >> 20)?;
        writeln!(f, "wanted for the guest  {:>10} MiB", wanted >> 20)?;
        writeln!(f, "from the start        {:>10} MiB", start >> 20)?;
        writeln!(f, "at most               {:>10} MiB", most >> 20)
    }
}

/// Where the bytes for each channel go.
pub(crate) type Inputs = Vec<Arc<dyn Input>>;

/// What carries bytes between the guest and the host.
pub(crate) struct Streams {
    pub(crate) console: Arc<dyn Output>,
    pub(crate) channels: Vec<ChannelPart>,
    pub(crate) vsock: Option<VsockPart>,
}

/// Puts them on the bus; also where the channels' input goes.
pub(crate) fn build(
    spec: &VmSpec,
    streams: Streams,
    pci: &PciHost,
    wiring: &mut Wiring,
) -> Result<(Arc<Extras>, Inputs), Error> {
    let Streams { console, channels, vsock } = streams;
    let mut extras = Extras::default();
    if spec.console_device == ConsoleDevice::Virtio {
        let port = PortConfig { name: None, output: console, peer: true };
        let terminal = VirtioConsole::terminal(port);
        virtio::build(terminal.clone(), pci, wiring).map_err(Error::Thread)?;
        extras.terminal = Some(terminal);
    }
    let mut inputs = Inputs::new();
    if !channels.is_empty() {
        let port = |part: ChannelPart| PortConfig {
            name: Some(part.name),
            output: part.output,
            peer: part.peer,
        };
        let count = channels.len();
        let ports = VirtioConsole::multiport(channels.into_iter().map(port).collect());
        virtio::build(ports.clone(), pci, wiring).map_err(Error::Thread)?;
        inputs.extend((0..count).map(|index| ports.input(index) as Arc<dyn Input>));
    }
    if spec.input {
        let mut add = |kind| {
            let input = VirtioInput::new(kind);
            virtio::build(input.clone(), pci, wiring).map_err(Error::Thread)?;
            Ok::<_, Error>(Some(input))
        };
        extras.keyboard = add(Kind::Keyboard)?;
        extras.tablet = add(Kind::Tablet)?;
    }
    if spec.balloon {
        let balloon = VirtioBalloon::new(wiring.memory.clone(), spec.memory);
        virtio::build(balloon.clone(), pci, wiring).map_err(Error::Thread)?;
        extras.balloon = Some(balloon);
    }
    let room = spec.memory_room();
    if room > 0 {
        let config = virtio_mem::Config {
            memory: wiring.memory.clone(),
            address: map::hot_memory(spec.memory, room).start,
            size: room,
        };
        let memory = VirtioMem::new(config);
        virtio::build(memory.clone(), pci, wiring).map_err(Error::Thread)?;
        wiring.devices.push(memory.clone());
        extras.memory = Some(memory);
    }
    if let Some(VsockPart { cid, listener, base }) = vsock {
        let config = virtio_vsock::Config { cid, listener, base };
        let device = VirtioVsock::new(config).map_err(Error::Thread)?;
        virtio::build(device, pci, wiring).map_err(Error::Thread)?;
    }
    Ok((Arc::new(extras), inputs))
}

impl Extras {
    /// Where the console's input goes if it is no serial port's.
    pub(crate) fn console_input(&self) -> Option<Arc<dyn Input>> {
        self.terminal.as_ref().map(|terminal| terminal.input(0) as Arc<dyn Input>)
    }

    /// A seat with the virtio keyboard and the virtio tablet before the others.
    pub(crate) fn seated(&self, mut seat: Seat) -> Seat {
        if let Some(keyboard) = &self.keyboard {
            seat.keyboards.insert(0, keyboard.clone());
        }
        if let Some(tablet) = &self.tablet {
            seat.pointers.insert(0, tablet.clone());
        }
        seat
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        if let Some(terminal) = &self.terminal {
            terminal.resize(columns, rows);
        }
    }

    /// `None` if there is no memory beside what there is from the start.
    pub(crate) fn set_memory(&self, start: u64, bytes: u64) -> Option<()> {
        self.memory.as_ref().map(|memory| memory.request(bytes.saturating_sub(start)))
    }

    /// Of memory that can come and go.
    pub(crate) fn memory_info(&self, start: u64) -> Option<MemoryInfo> {
        let Sizes { region, requested, plugged } = self.memory.as_ref()?.sizes();
        Some(MemoryInfo {
            start,
            most: start + region,
            wanted: start + requested,
            now: start + plugged,
        })
    }

    /// Leaves the guest with so many bytes of its memory. False if there is no balloon.
    pub(crate) fn leave(&self, memory: u64, bytes: u64) -> bool {
        let Some(balloon) = &self.balloon else { return false };
        balloon.set_target(memory.saturating_sub(bytes));
        true
    }

    /// Asks the guest, and waits a moment for its answer.
    pub(crate) fn balloon_info(&self, memory: u64) -> Option<BalloonInfo> {
        let balloon = self.balloon.as_ref()?;
        let statistics = balloon.ask_statistics(PATIENCE);
        let (target, actual) = balloon.size();
        Some(BalloonInfo { memory, target, actual, statistics })
    }
}
