//! A virtio device and its driver, which does what an input says.

use crate::input::Input;
use std::sync::Arc;
use virtio::{
    VirtioDevice,
    fake::{Board, ECAM, Inline, RAM, SIZE, buffer, driver, table},
    feature::VERSION_1,
};

/// Behind the BAR.
const CONFIG: u64 = 0x2000;
/// Of the device in slot 1.
const PCI: u64 = ECAM + (1 << 15);
/// What a device is asked for in its answer lies so far behind what it is given, and the table of
/// an indirect chain behind that.
const ANSWER: u64 = 0x4000;
const INDIRECT: u64 = 0xc000;
/// Things that are done with one input.
const STEPS: usize = 128;
/// Of those, what is done with the state, which takes longest.
const MOVES: u32 = 3;

/// A request that is right, or nearly.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) queue: u16,
    /// At most 16 KiB.
    pub(crate) given: Vec<u8>,
    /// At most 32 KiB.
    pub(crate) wanted: u32,
}

/// What is special about a type of device.
pub(crate) trait Model {
    fn request(&self, input: &mut Input<'_>) -> Request;

    /// Something that the device's other side does.
    fn host(&self, _input: &mut Input<'_>) {}

    /// Whether the device is still made as it was when it was new, so that its state fits one that is.
    fn is_as_new(&self) -> bool {
        true
    }
}

/// A device on its board.
pub(crate) struct Rig {
    board: Board,
    inline: Arc<Inline>,
    features: u64,
}

impl Rig {
    pub(crate) fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let inline = Inline::new(device);
        Self { board: Board::new(inline.clone()), inline, features: 0 }
    }

    /// For a device that is given the board's memory.
    pub(crate) fn with<D: VirtioDevice + 'static>(
        make: impl FnOnce(&Arc<guest_mem::GuestMem>) -> Arc<D>,
    ) -> (Self, Arc<D>) {
        let mut made = None;
        let board = Board::with(|memory| {
            let device = make(memory);
            let inline = Inline::new(device.clone());
            made = Some((inline.clone(), device));
            inline
        });
        let (inline, device) = made.expect("it was made");
        (Self { board, inline, features: 0 }, device)
    }

    /// A driver that starts over, with features of its choice.
    fn start(&mut self, features: u64) {
        self.features = features;
        let board = &self.board;
        // The BAR may be elsewhere by now.
        board.pci.assign();
        board.enable(true);
        board.set_status(0);
        board.clear_rings();
        let _ = board.try_start(features, true);
    }

    fn needs_reset(&self) -> bool {
        self.board.status() & 0x40 != 0
    }

    fn describe(&self, input: &mut Input<'_>, queue: u16) {
        let (index, at) = (input.below(SIZE.into()) as u16, input.address(RAM));
        let (len, flags) = (input.number() as u32, input.u8() & 7);
        self.board.describe(queue, index, at, len, flags.into(), input.below(10) as u16);
    }

    /// Puts a request into memory in pieces, as a chain or as one that is indirect, and rings.
    fn submit(&self, input: &mut Input<'_>, request: &Request) {
        let Request { queue, ref given, wanted } = *request;
        let queue = queue % self.board.queues();
        let given = given.get(..given.len().min(0x4000)).unwrap_or_default();
        let wanted = wanted.min(0x8000);
        let at = buffer(queue);
        self.board.memory.write(at, given).expect("RAM");
        let mut pieces = split(input, at, given.len() as u32, 0);
        pieces.extend(split(input, at + ANSWER, wanted, 2));
        let indirect = input.u8() & 3 == 0;
        let count = pieces.len() as u16;
        for (index, (at_piece, len, flags)) in (0..).zip(pieces) {
            let more = u16::from(index + 1 < count);
            if indirect {
                let mut bytes = at_piece.to_le_bytes().to_vec();
                bytes.extend(len.to_le_bytes());
                bytes.extend((flags | more).to_le_bytes());
                bytes.extend((index + 1).to_le_bytes());
                self.board
                    .memory
                    .write(at + INDIRECT + 16 * u64::from(index), &bytes)
                    .expect("RAM");
            } else {
                self.board.describe(queue, index, at_piece, len, flags | more, index + 1);
            }
        }
        if indirect {
            self.board.describe(queue, 0, at + INDIRECT, 16 * u32::from(count), 4, 0);
        }
        self.board.offer(queue, 0);
        self.board.ring(queue);
    }

    /// Registers of the transport, or of PCI's configuration space.
    fn register(&self, input: &mut Input<'_>) {
        let len = input.width(&[1, 2, 4, 8]);
        let base = match input.u8() & 7 {
            0..=3 => self.board.bar + input.below(0x40),
            4 => self.board.bar + 0x4000 + input.below(0x140),
            5 => self.board.bar + input.below(0x8000),
            _ => PCI + input.below(0x100),
        };
        let at = base / len as u64 * len as u64;
        self.board.write(at, input.number(), len);
        self.board.read(at, len);
    }

    /// The device's own configuration, at any place.
    fn config(&self, input: &mut Input<'_>) {
        let (at, len) = (input.below(0x110), input.width(&[1, 2, 4, 8]));
        if input.flag() {
            self.board.write(self.board.bar + CONFIG + at, input.number(), len);
        }
        self.board.read(self.board.bar + CONFIG + at, len);
    }

    /// A part of memory near a queue becomes noise.
    fn poke(&self, input: &mut Input<'_>, queue: u16) {
        let at = table(queue) + input.below(0x3100);
        self.board.memory.write(at, input.some(32)).expect("RAM");
    }

    /// The state comes back as somebody made it: it is refused and nothing changes, or the device goes
    /// on with what it was given.
    fn tamper(&self, input: &mut Input<'_>) {
        let before = self.board.save();
        let mut parts = before.clone();
        crate::tamper::tamper(input, &mut parts);
        if self.board.restore(&parts).is_err() {
            crate::same(&self.board.save(), &before);
        }
        self.board.resume();
    }

    /// The state goes into a device that is new, and out of it again.
    fn move_to(&self, other: &Self) {
        let parts = self.board.save();
        if !std::ptr::eq(self, other) {
            self.board.copy_memory_to(&other.board);
        }
        other.board.restore(&parts).expect("what was saved is restored");
        crate::same(&other.board.save(), &parts);
        self.board.resume();
        other.board.resume();
    }
}

/// Up to three pieces of a buffer.
fn split(input: &mut Input<'_>, at: u64, len: u32, flags: u16) -> Vec<(u64, u32, u16)> {
    let (mut pieces, mut from) = (Vec::new(), 0);
    let cuts = input.u8();
    for _ in 0..if cuts < 0xa0 { 0 } else { cuts & 3 } {
        let here = input.number() as u32 % (len - from + 1);
        pieces.push((at + u64::from(from), here, flags));
        from += here;
    }
    if from < len {
        pieces.push((at + u64::from(from), len - from, flags));
    }
    pieces
}

/// Lets a driver do what the input says. `make` builds the device anew for each that is wanted.
pub(crate) fn drive<M: Model>(data: &[u8], make: impl Fn() -> (Rig, M)) {
    let mut input = Input::new(data);
    let (mut rig, mut model) = make();
    let all = rig.inline.features() | virtio::feature::TRANSPORT;
    rig.start(all);
    let mut moves = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let what = input.u8() & 0x1f;
        moves += u32::from(what >= 0x1d);
        if what >= 0x1d && moves > MOVES {
            continue;
        }
        if what == 0x1d {
            rig.tamper(&mut input);
        } else if what >= 0x1e {
            let (other, at_other) = make();
            let fits = model.is_as_new();
            rig.move_to(if fits { &other } else { &rig });
            other.inline.settle();
            if fits && what == 0x1f {
                (rig, model) = (Rig { features: rig.features, ..other }, at_other);
            }
        } else {
            step(&mut rig, &model, what, all, &mut input);
        }
        rig.inline.settle();
        if rig.needs_reset() && input.flag() {
            rig.start(rig.features);
            rig.inline.settle();
        }
    }
    rig.board.pause();
    rig.board.wiring.devices.iter().for_each(|device| device.reset());
    rig.board.resume();
    rig.start(all);
    rig.inline.settle();
    assert!(!rig.needs_reset(), "a reset device works");
}

fn step(rig: &mut Rig, model: &impl Model, what: u8, all: u64, input: &mut Input<'_>) {
    if what < 10 {
        let request = model.request(input);
        return rig.submit(input, &request);
    }
    let queue = input.below(rig.board.queues().into()) as u16;
    match what {
        10..=13 => model.host(input),
        14 | 15 => rig.describe(input, queue),
        16 | 17 => {
            rig.board.offer(queue, input.below(u64::from(SIZE) + 1) as u16);
            rig.board.ring(queue);
        }
        18 => rig.board.ring(queue),
        19 => {
            let index = input.u16().to_le_bytes();
            rig.board.memory.write(driver(queue) + 2, &index).expect("RAM");
            rig.board.ring(queue);
        }
        20 | 21 => rig.config(input),
        22 => rig.poke(input, queue),
        23..=25 => rig.register(input),
        26 => rig.start(VERSION_1 | (all & input.u64())),
        27 => rig.start(all),
        28 if input.flag() => rig.board.pause(),
        _ => rig.board.resume(),
    }
}
