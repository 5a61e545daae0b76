//! Devices that are there when the spec asks for them, and that an operator deals with while the
//! machine runs: the virtio console, channels, the balloon.

use crate::{Error, board::ChannelPart};
use byte_stream::{Input, Output};
use device::Wiring;
use display::Seat;
use pci::PciHost;
use std::{fmt, sync::Arc, time::Duration};
use virtio_balloon::{Statistics, VirtioBalloon};
use virtio_console::{PortConfig, VirtioConsole};
use virtio_input::{Kind, VirtioInput};
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

/// Where the bytes for each channel go.
pub(crate) type Inputs = Vec<Arc<dyn Input>>;

/// Puts them on the bus; also where the channels' input goes.
pub(crate) fn build(
    spec: &VmSpec,
    console: Arc<dyn Output>,
    channels: Vec<ChannelPart>,
    pci: &PciHost,
    wiring: &mut Wiring,
) -> Result<(Arc<Extras>, Inputs), Error> {
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
