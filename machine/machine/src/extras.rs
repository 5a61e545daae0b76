//! Devices that are there when the spec asks for them, or come later, and that an operator deals with
//! while the machine runs: the virtio console, channels, the balloon, keyboards, sockets.

use crate::{
    Error, map,
    parts::{ChannelPart, VsockPart},
    plug::Keep,
    virtio_bus::VirtioBus,
};
use byte_stream::{Input, Output};
use device::Wiring;
use display::{Keyboard, Pointer, Seat};
use guest_mem::GuestMem;
use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
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
    /// Bytes of memory from the start.
    start: u64,
    /// Bytes at most.
    most: u64,
    terminal: Option<Arc<VirtioConsole>>,
    memory: Option<Arc<VirtioMem>>,
    seat: Seat,
    /// Those that come and go.
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    balloon: Option<Arc<VirtioBalloon>>,
    /// Names of the channels.
    channels: BTreeSet<String>,
}

/// Undoes with a device's end what was done when it came.
struct Undo<F: FnMut() + Send>(F);

impl<F: FnMut() + Send> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// What is known of the balloon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonInfo {
    /// Bytes of memory that the guest has by now, how many of them it is to give up, and how many
    /// it has given up.
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
    /// Keyboards and pointers are added to it.
    pub(crate) seat: Seat,
}

/// Puts them on the bus; also where the channels' input goes.
pub(crate) fn build(
    spec: &VmSpec,
    streams: Streams,
    bus: &mut VirtioBus,
    wiring: &mut Wiring,
) -> Result<(Arc<Extras>, Inputs), Error> {
    let Streams { console, channels, vsock, seat } = streams;
    let most = spec.memory + spec.memory_room();
    let mut extras = Extras { start: spec.memory, most, seat, ..Extras::default() };
    let mut now = Now::default();
    if spec.console_device == ConsoleDevice::Virtio {
        let port = PortConfig { name: None, output: console, peer: true };
        let terminal = VirtioConsole::terminal(port);
        bus.add(terminal.clone(), wiring)?;
        extras.terminal = Some(terminal);
    }
    let mut inputs = Inputs::new();
    if !channels.is_empty() {
        let count = channels.len();
        now.channels.extend(channels.iter().map(|part| part.name.clone()));
        let ports = VirtioConsole::multiport(channels.into_iter().map(port).collect());
        bus.add(ports.clone(), wiring)?;
        inputs.extend((0..count).map(|index| ports.input(index) as Arc<dyn Input>));
    }
    if spec.input {
        let (keyboard, tablet) = (VirtioInput::new(Kind::Keyboard), VirtioInput::new(Kind::Tablet));
        bus.add(keyboard.clone(), wiring)?;
        bus.add(tablet.clone(), wiring)?;
        extras.seat.add_keyboard(keyboard);
        extras.seat.add_pointer(tablet);
    }
    if spec.balloon {
        let balloon = VirtioBalloon::new(wiring.memory.clone(), most);
        bus.add(balloon.clone(), wiring)?;
        now.balloon = Some(balloon);
    }
    let room = spec.memory_room();
    if room > 0 {
        let config = virtio_mem::Config {
            memory: wiring.memory.clone(),
            address: map::hot_memory(spec.memory, room).start,
            size: room,
        };
        let memory = VirtioMem::new(config);
        bus.add(memory.clone(), wiring)?;
        wiring.devices.push(memory.clone());
        extras.memory = Some(memory);
    }
    if let Some(VsockPart { cid, listener, base }) = vsock {
        let config = virtio_vsock::Config { cid, listener, base };
        let device = VirtioVsock::new(config).map_err(Error::Thread)?;
        bus.add(device, wiring)?;
    }
    extras.now = Mutex::new(now);
    Ok((Arc::new(extras), inputs))
}

fn port(part: ChannelPart) -> PortConfig {
    PortConfig { name: Some(part.name), output: part.output, peer: part.peer }
}

impl Extras {
    /// Where the console's input goes if it is no serial port's.
    pub(crate) fn console_input(&self) -> Option<Arc<dyn Input>> {
        self.terminal.as_ref().map(|terminal| terminal.input(0) as Arc<dyn Input>)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    fn balloon(&self) -> Option<Arc<VirtioBalloon>> {
        self.now().balloon.clone()
    }

    /// A balloon that the operator's commands are for until what belongs to it is dropped; `None` if
    /// there is one.
    pub(crate) fn new_balloon(
        self: &Arc<Self>,
        memory: &Arc<GuestMem>,
    ) -> Option<(Arc<VirtioBalloon>, Keep)> {
        let mut now = self.now();
        if now.balloon.is_some() {
            return None;
        }
        let balloon = VirtioBalloon::new(memory.clone(), self.most);
        now.balloon = Some(balloon.clone());
        let extras = self.clone();
        Some((balloon, Box::new(Undo(move || extras.now().balloon = None))))
    }

    /// A keyboard or a tablet that belongs to the seat until what belongs to it is dropped.
    pub(crate) fn new_input(&self, kind: Kind) -> (Arc<VirtioInput>, Keep) {
        let (input, seat) = (VirtioInput::new(kind), self.seat.clone());
        let keep: Keep = match kind {
            Kind::Keyboard => {
                let keyboard: Arc<dyn Keyboard> = input.clone();
                seat.add_keyboard(keyboard.clone());
                Box::new(Undo(move || seat.remove_keyboard(&keyboard)))
            }
            Kind::Tablet => {
                let pointer: Arc<dyn Pointer> = input.clone();
                seat.add_pointer(pointer.clone());
                Box::new(Undo(move || seat.remove_pointer(&pointer)))
            }
        };
        (input, keep)
    }

    /// A device of one channel, whose name is its own until what belongs to it is dropped; `None` if
    /// another has it.
    pub(crate) fn new_channel(
        self: &Arc<Self>,
        part: ChannelPart,
    ) -> Option<(Arc<VirtioConsole>, Keep)> {
        let name = part.name.clone();
        if !self.now().channels.insert(name.clone()) {
            return None;
        }
        let extras = self.clone();
        let keep = Undo(move || {
            extras.now().channels.remove(&name);
        });
        Some((VirtioConsole::multiport(vec![port(part)]), Box::new(keep)))
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        if let Some(terminal) = &self.terminal {
            terminal.resize(columns, rows);
        }
    }

    /// Bytes of memory beside those from the start that the guest has taken.
    fn plugged(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.sizes().plugged)
    }

    /// Asks the guest to have so many bytes of memory in all. False if it can have no other.
    pub(crate) fn set_memory(&self, bytes: u64) -> bool {
        let Some(memory) = &self.memory else { return false };
        memory.request(bytes.saturating_sub(self.start));
        true
    }

    /// Of memory that can come and go.
    pub(crate) fn memory_info(&self) -> Option<MemoryInfo> {
        let Sizes { region, requested, plugged } = self.memory.as_ref()?.sizes();
        let start = self.start;
        Some(MemoryInfo {
            start,
            most: start + region,
            wanted: start + requested,
            now: start + plugged,
        })
    }

    /// Leaves the guest with so many bytes of the memory that it has by now. False if there is no
    /// balloon.
    pub(crate) fn leave(&self, bytes: u64) -> bool {
        let Some(balloon) = self.balloon() else { return false };
        balloon.set_target((self.start + self.plugged()).saturating_sub(bytes));
        true
    }

    /// What a reset is about to take from the guest its balloon need not: a guest that starts with
    /// less would have nothing left to start with.
    pub(crate) fn before_reset(&self) {
        if let Some(balloon) = self.balloon() {
            let (target, _) = balloon.size();
            balloon.set_target(target.saturating_sub(self.plugged()));
        }
    }

    /// Asks the guest, and waits a moment for its answer.
    pub(crate) fn balloon_info(&self) -> Option<BalloonInfo> {
        let balloon = self.balloon()?;
        let statistics = balloon.ask_statistics(PATIENCE);
        let (target, actual) = balloon.size();
        Some(BalloonInfo { memory: self.start + self.plugged(), target, actual, statistics })
    }
}
