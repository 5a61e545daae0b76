//! Devices of the board, and a guest that writes to their registers what an input says.

use crate::input::Input;
use device::{
    Clock, LineRef, Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use guest_mem::{Change, Memfd, Slot};
use std::{ops::Range, sync::Arc};

/// Bytes of memory, from address 0 on.
pub(crate) const RAM: u64 = 1 << 20;
pub(crate) const ECAM: u64 = 0xb000_0000;
pub(crate) const WINDOW: Range<u64> = 0xc000_0000..0xfec0_0000;
/// Things that are done with one input.
const STEPS: usize = 256;
/// Of those, what is done with the state, which takes longest.
const MOVES: u32 = 3;
const PAGE: u64 = 4096;

/// A board without devices, with memory.
pub(crate) struct Ground {
    pub(crate) wiring: Wiring,
    pub(crate) time: FakeTime,
    pub(crate) sink: Arc<Recorder>,
    pub(crate) ram: Arc<Memfd>,
}

impl Ground {
    /// Its lines end in one that remembers, unless a chipset makes others.
    pub(crate) fn new() -> Self {
        let mut time = FakeTime::default();
        time.epoch_ns = 1_700_000_000_000_000_000;
        let sink = Arc::new(Recorder::default());
        let mut wiring = wiring(&time, &sink);
        wiring.irqs = (0..24).map(|_| sink.clone() as LineRef).collect();
        let ram = Memfd::new(RAM).expect("memory");
        Self { wiring, time, sink, ram }
    }

    /// The memory where it is in most machines; a host bridge of a PC lays it out itself at its end.
    pub(crate) fn map(&self, len: u64) {
        let slot = Slot { id: 0, gpa: 0, mem: self.ram.clone(), offset: 0, len, writable: true };
        self.wiring.memory.update(&[Change::Map(slot)], |_, _| Ok(())).expect("a slot");
    }

    fn pause(&self) {
        self.wiring.devices.iter().for_each(|device| device.pause());
    }

    pub(crate) fn resume(&self) {
        self.wiring.devices.iter().for_each(|device| device.resume());
    }

    pub(crate) fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.wiring.mmio.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where a function's BAR is now.
    pub(crate) fn bar(&self, slot: u64, index: u64) -> u64 {
        u64::from(self.read(ECAM + (slot << 15) + 0x10 + 4 * index) & !0xf)
    }
}

/// A part of the address space that is written to.
pub(crate) type Place = (u64, u64);

/// What is special about a board.
pub(crate) trait Board {
    fn ground(&self) -> &Ground;

    /// Ports that are there.
    fn ports(&self) -> &[u16] {
        &[]
    }

    /// Where registers are in memory, and how many bytes of them.
    fn places(&self) -> Vec<Place> {
        Vec::new()
    }

    /// Something that makes sense, or that others than the vCPU do.
    fn act(&self, _input: &mut Input<'_>) {}

    /// Waits until nothing is under way.
    fn settle(&self) {}

    /// Whether it ends with a reset, which with much memory takes long.
    fn ends_with_reset(&self) -> bool {
        true
    }

    /// Whether the board is made as it was when it was new, so that its state fits one that is.
    fn is_as_new(&self) -> bool {
        true
    }
}

/// Lets a guest do what the input says. `make` builds the board anew for each that is wanted.
pub(crate) fn drive<B: Board>(data: &[u8], make: impl Fn() -> B) {
    let mut input = Input::new(data);
    let mut board = make();
    board.ground().resume();
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
            tamper(board.ground(), &mut input);
        } else if what >= 0x1e {
            let other = make();
            let fits = board.is_as_new();
            move_to(&board, if fits { &other } else { &board });
            if fits && what == 0x1f {
                board = other;
            }
        } else {
            step(&board, what, &mut input);
        }
        board.settle();
        let ground = board.ground();
        ground.sink.take_messages();
        ground.sink.take_power();
        ground.sink.take_edges();
    }
    if board.ends_with_reset() {
        reset(board.ground());
        board.settle();
    }
}

fn reset(ground: &Ground) {
    ground.pause();
    ground.wiring.devices.iter().for_each(|device| device.reset());
    ground.resume();
}

/// An access as the processor makes one: it does not cross a page.
fn access(ground: &Ground, input: &mut Input<'_>, at: u64, writes: bool) {
    let len = input.width(&[1, 2, 4, 8]).min((PAGE - at % PAGE) as usize);
    if writes {
        let value = if input.flag() { input.number() } else { input.u64() };
        ground.wiring.mmio.write(at, &value.to_le_bytes()[..len]);
    } else {
        ground.wiring.mmio.read(at, &mut [0; 8][..len]);
    }
}

fn place(board: &impl Board, input: &mut Input<'_>) -> Option<u64> {
    let places = board.places();
    if places.is_empty() {
        return None;
    }
    let (base, len) = input.pick(&places);
    let offset = input.below(len);
    // Registers are aligned mostly.
    Some(base.wrapping_add(if input.u8() < 0xe0 { offset & !3 } else { offset }))
}

fn port(board: &impl Board, input: &mut Input<'_>) -> u16 {
    match board.ports() {
        [] => input.u16(),
        ports if input.u8() < 0xf0 => input.pick(ports),
        _ => input.u16(),
    }
}

fn step(board: &impl Board, what: u8, input: &mut Input<'_>) {
    let ground = board.ground();
    match what {
        0..=6 => {
            let (port, len) = (port(board, input), input.pick(&[1, 1, 1, 2, 4]));
            ground.wiring.pio.write(port, &input.u32().to_le_bytes()[..len]);
        }
        7 | 8 => {
            let (port, len) = (port(board, input), input.pick(&[1, 1, 1, 2, 4]));
            ground.wiring.pio.read(port, &mut [0; 4][..len]);
        }
        9..=14 => {
            if let Some(at) = place(board, input) {
                access(ground, input, at, true);
            }
        }
        15 | 16 => {
            if let Some(at) = place(board, input) {
                access(ground, input, at, false);
            }
        }
        17 => ground.time.advance(u64::from(input.u16())),
        18 => ground.time.advance(1_000 * u64::from(input.u16())),
        19 => {
            if let Some(line) = ground.wiring.irqs.get(input.below(24) as usize) {
                line.set(input.flag());
            }
        }
        20 => {
            let at = input.below(0xa_0000 - 64);
            ground.wiring.memory.write(at, input.some(64)).expect("RAM");
        }
        21 => reset(ground),
        22 => ground.pause(),
        23 => ground.resume(),
        _ => board.act(input),
    }
}

/// The state goes into a board that is new, and out of it again.
fn move_to(from: &impl Board, to: &impl Board) {
    let (from, to) = (from.ground(), to.ground());
    from.pause();
    let parts = fake::save(&from.wiring);
    if !std::ptr::eq(from, to) {
        let mut bytes = vec![0; RAM as usize];
        from.ram.read_at(0, &mut bytes).expect("RAM");
        to.ram.write_at(0, &bytes).expect("RAM");
        to.time.advance(from.time.now_ns() - to.time.now_ns());
        to.pause();
    }
    fake::restore(&to.wiring, &parts).expect("what was saved is restored");
    crate::same(&fake::save(&to.wiring), &parts);
    from.resume();
    to.resume();
}

/// The state comes back as somebody made it: it is refused and nothing changes, or the devices go on with
/// what they were given.
fn tamper(ground: &Ground, input: &mut Input<'_>) {
    ground.pause();
    let before = fake::save(&ground.wiring);
    let mut parts = before.clone();
    crate::tamper::tamper(input, &mut parts);
    if fake::restore(&ground.wiring, &parts).is_err() {
        crate::same(&fake::save(&ground.wiring), &before);
    }
    ground.resume();
}
