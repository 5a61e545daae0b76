//! The small virtio devices.

use crate::{
    input::Input,
    rig::{Model, Request, Rig, drive},
};
use byte_stream::{Input as _, Output};
use display::{Buttons, Key, Keyboard as _, Pointer as _, PointerEvent};
use std::{
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};
use virtio::fake::RAM;
use virtio_balloon::VirtioBalloon;
use virtio_console::{PortConfig, VirtioConsole};
use virtio_input::{Kind, VirtioInput};
use virtio_mem::{BLOCK, VirtioMem};
use virtio_rng::VirtioRng;

/// A carrier with as much room as it was given.
#[derive(Default)]
struct Carrier {
    room: AtomicUsize,
    space: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl Output for Carrier {
    fn write(&self, _: &[u8]) {}

    fn offer(&self, bytes: &[u8]) -> usize {
        let room = self.room.load(SeqCst);
        let taken = room.min(bytes.len());
        self.room.store(room - taken, SeqCst);
        taken
    }

    fn on_space(&self, callback: Box<dyn Fn() + Send + Sync>) {
        *self.space.lock().expect("no panic") = Some(callback);
    }
}

/// And whether somebody came to a carrier, or left.
struct Console(Arc<VirtioConsole>, Arc<Carrier>, AtomicBool);

const PORTS: u16 = 3;

impl Model for Console {
    /// virtio 1.2, 5.3.6.
    fn request(&self, input: &mut Input<'_>) -> Request {
        match input.u8() & 7 {
            0..=2 => {
                let mut given = u32::from(input.u8() & 3).to_le_bytes().to_vec();
                given.extend(input.below(10).to_le_bytes().get(..2).unwrap_or_default());
                given.extend((input.number() as u16).to_le_bytes());
                given.extend(input.some(4));
                Request { queue: 3, given, wanted: 0 }
            }
            3 => Request { queue: 2, given: Vec::new(), wanted: input.pick(&[8, 64, 4096, 7]) },
            what => {
                let port = input.pick(&[0u16, 4, 6]);
                if what & 1 == 0 {
                    return Request {
                        queue: port,
                        given: Vec::new(),
                        wanted: input.number() as u32,
                    };
                }
                let given = vec![input.u8(); input.number() as usize % 0x4000];
                Request { queue: port + 1, given, wanted: 0 }
            }
        }
    }

    fn host(&self, input: &mut Input<'_>) {
        let port = self.0.input(input.below(PORTS.into()) as usize);
        match input.u8() & 7 {
            0..=2 => {
                port.receive(&vec![b'x'; input.number() as usize % 0x2_0000]);
            }
            3 => {
                self.2.store(true, SeqCst);
                port.peer(input.flag());
            }
            4 => self.0.resize(input.u16(), input.u16()),
            _ => {
                self.1.room.store(input.number() as usize % 0x1_0000, SeqCst);
                if let Some(callback) = &*self.1.space.lock().expect("no panic") {
                    callback();
                }
            }
        }
    }

    fn is_as_new(&self) -> bool {
        !self.2.load(SeqCst)
    }
}

pub(super) fn console(data: &[u8]) {
    drive(data, || {
        let carrier = Arc::new(Carrier::default());
        let name = |n: u16| (n > 0).then(|| format!("org.example.{n}"));
        let port = |n| PortConfig { name: name(n), output: carrier.clone(), peer: n == 1 };
        let console = VirtioConsole::multiport((0..PORTS).map(port).collect());
        (Rig::new(console.clone()), Console(console, carrier, false.into()))
    });
}

struct Events(Arc<VirtioInput>);

impl Model for Events {
    /// virtio 1.2, 5.8.6.
    fn request(&self, input: &mut Input<'_>) -> Request {
        if input.u8() & 3 != 0 {
            return Request { queue: 0, given: Vec::new(), wanted: input.pick(&[8, 8, 7, 64]) };
        }
        let mut given = vec![input.u8() & 0x1f, 0];
        given.extend(input.bytes(6));
        given.extend(input.some(16));
        Request { queue: 1, given, wanted: 0 }
    }

    fn host(&self, input: &mut Input<'_>) {
        if input.flag() {
            if let Some(key) = Key::from_code(input.u8().into()) {
                self.0.key(key, input.flag());
            }
            return;
        }
        let event = PointerEvent {
            x: input.u16(),
            y: input.u16(),
            dx: input.number() as i32,
            dy: input.number() as i32,
            wheel: input.number() as i32,
            buttons: Buttons { left: input.flag(), middle: input.flag(), right: input.flag() },
        };
        self.0.point(event);
    }
}

fn events(data: &[u8], kind: Kind) {
    drive(data, || {
        let device = VirtioInput::new(kind);
        (Rig::new(device.clone()), Events(device))
    });
}

pub(super) fn keyboard(data: &[u8]) {
    events(data, Kind::Keyboard);
}

pub(super) fn tablet(data: &[u8]) {
    events(data, Kind::Tablet);
}

/// A source that gives little at a time, fails now and then, and ends.
struct Source(u64);

impl Read for Source {
    fn read(&mut self, data: &mut [u8]) -> std::io::Result<usize> {
        self.0 += 1;
        match self.0 {
            3 => Err(std::io::ErrorKind::Interrupted.into()),
            6 => Err(std::io::ErrorKind::Other.into()),
            40.. => Ok(0),
            _ => {
                let len = data.len().min(100);
                data.iter_mut().take(len).for_each(|byte| *byte = 7);
                Ok(len)
            }
        }
    }
}

struct Bytes;

impl Model for Bytes {
    fn request(&self, input: &mut Input<'_>) -> Request {
        Request { queue: 0, given: input.some(2).to_vec(), wanted: input.number() as u32 }
    }
}

pub(super) fn rng(data: &[u8]) {
    drive(data, || (Rig::new(VirtioRng::new(Source(0))), Bytes));
}

struct Balloon(Arc<VirtioBalloon>);

impl Model for Balloon {
    /// virtio 1.2, 5.5.6.
    fn request(&self, input: &mut Input<'_>) -> Request {
        let queue = input.below(4) as u16;
        let mut given = Vec::new();
        let mut wanted = 0;
        match queue {
            // Pages, of which those of the rings are left alone by most.
            0 | 1 => {
                for _ in 0..input.below(24) {
                    let page =
                        if input.u8() < 0xe0 { 0x80 | u32::from(input.u8()) } else { input.u32() };
                    given.extend(page.to_le_bytes());
                }
                given.extend(input.some(3));
            }
            2 => {
                for _ in 0..input.below(12) {
                    given.extend(u16::from(input.u8() & 0xf).to_le_bytes());
                    given.extend(input.number().to_le_bytes());
                }
                given.extend(input.some(9));
            }
            _ => wanted = input.number() as u32,
        }
        Request { queue, given, wanted }
    }

    fn host(&self, input: &mut Input<'_>) {
        if input.flag() {
            self.0.set_target(input.number());
        } else {
            self.0.ask_statistics(std::time::Duration::ZERO);
        }
    }
}

pub(super) fn balloon(data: &[u8]) {
    drive(data, || {
        let (rig, device) = Rig::with(|memory| VirtioBalloon::new(memory.clone(), RAM));
        (rig, Balloon(device))
    });
}

struct Hot(Arc<VirtioMem>);

const HOT: u64 = 1 << 32;
const BLOCKS: u64 = 16;

impl Model for Hot {
    /// virtio 1.2, 5.15.6.
    fn request(&self, input: &mut Input<'_>) -> Request {
        let mut given = u16::from(input.u8() % 5).to_le_bytes().to_vec();
        given.extend([0; 6]);
        let address = match input.u8() {
            0..=0xdf => HOT + input.below(BLOCKS + 1) * BLOCK,
            0xe0..=0xef => HOT.wrapping_add(input.number()),
            _ => input.u64(),
        };
        given.extend(address.to_le_bytes());
        let count = if input.u8() < 0xe0 { 1 + input.below(4) } else { input.number() };
        given.extend((count as u16).to_le_bytes());
        given.resize(24, 0);
        given.truncate(if input.u8() < 0xf0 { 24 } else { input.below(24) as usize });
        Request { queue: 0, given, wanted: input.pick(&[10, 10, 10, 9, 64]) }
    }

    fn host(&self, input: &mut Input<'_>) {
        self.0.request((input.below(BLOCKS + 2) * BLOCK).saturating_add(input.number()));
    }
}

pub(super) fn mem(data: &[u8]) {
    drive(data, || {
        let (rig, device) = Rig::with(|memory| {
            let config =
                virtio_mem::Config { memory: memory.clone(), address: HOT, size: BLOCKS * BLOCK };
            VirtioMem::new(config)
        });
        device.request(BLOCKS * BLOCK);
        (rig, Hot(device))
    });
}
