//! A device, a driver with rings of 256 descriptors, and a watch on the device's thread.

use guest_mem::{Change, GuestMem, Memfd, Slot};
use std::{
    hint::black_box,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};
use virtio::{
    GuestError, Handle, Queue, Served, VirtioDevice,
    fake::{Board, RAM, device, driver, table},
    feature,
};
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};

const SIZE: u16 = 256;
const DATA: u64 = 0x6_0000;
const HEADERS: u64 = 0xf_0000;
const STATUS: u64 = 0xf_8000;
/// A frame with virtio's header before it.
const HEADER: u32 = 12;
const FRAME: u32 = 14 + 1500;
const BUFFER: u64 = 2048;
const BLOCK: u64 = 4096;
const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// A disk with so many sectors: header, 4 KiB, status.
    Read { sectors: u64 },
    /// A frame of the guest's, in one piece.
    Sent,
    /// A buffer for one.
    Wanted,
}

/// The driver's side of one queue.
pub(super) struct Side {
    memory: Arc<GuestMem>,
    queue: u16,
    next: u16,
    random: u64,
}

impl Side {
    pub(super) fn new(memory: &Arc<GuestMem>, queue: u16) -> Self {
        Self { memory: memory.clone(), queue, next: 0, random: 1 }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes).expect("RAM");
    }

    fn describe(&self, index: u16, at: u64, len: u32, flags: u16) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((index + 1).to_le_bytes());
        self.write(table(self.queue) + 16 * u64::from(index), &bytes);
    }

    /// Puts requests into the ring. The driver wants to hear of the last.
    pub(super) fn offer(&mut self, shape: Shape, count: u16) {
        let at = driver(self.queue);
        for request in 0..count {
            let head = self.request(shape, request);
            let place = at + 4 + 2 * u64::from(self.next.wrapping_add(request) % SIZE);
            self.write(place, &head.to_le_bytes());
        }
        let wanted = self.next.wrapping_add(count - 1);
        self.write(at + 4 + 2 * u64::from(SIZE), &wanted.to_le_bytes());
        self.next = self.next.wrapping_add(count);
        self.write(at + 2, &self.next.to_le_bytes());
    }

    fn request(&mut self, shape: Shape, request: u16) -> u16 {
        let (this, receives) = (u64::from(request), u64::from(self.queue == 0));
        match shape {
            Shape::Read { sectors } => {
                self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1);
                let sector = (self.random >> 33) % (sectors / 8) * 8;
                let header = [0u64.to_le_bytes(), sector.to_le_bytes()].concat();
                self.write(HEADERS + 16 * this, &header);
                self.write(STATUS + this, &[0xff]);
                let first = 3 * request;
                self.describe(first, HEADERS + 16 * this, 16, NEXT);
                self.describe(first + 1, DATA + BLOCK * this, BLOCK as u32, NEXT | WRITE);
                self.describe(first + 2, STATUS + this, 1, WRITE);
                first
            }
            Shape::Sent => {
                let at = DATA + BUFFER * this;
                self.write(at, &[0; HEADER as usize]);
                self.describe(request, at, HEADER + FRAME, 0);
                request
            }
            Shape::Wanted => {
                let at = DATA + BUFFER * (64 * receives + this);
                self.describe(request, at, HEADER + FRAME, WRITE);
                request
            }
        }
    }

    fn used(&self) -> u16 {
        self.half(device(self.queue) + 2)
    }

    pub(super) fn done(&self) -> bool {
        self.used() == self.next
    }

    fn half(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes).expect("RAM");
        u16::from_le_bytes(bytes)
    }

    #[cfg(test)]
    fn byte(&self, at: u64) -> Option<u8> {
        let mut byte = [0];
        self.memory.read(at, &mut byte).ok().map(|()| byte[0])
    }
}

/// Starts a device's driver, with long rings.
pub(super) fn start(board: &Board, features: u64) {
    board.enable(true);
    assert!(board.negotiate(features | feature::TRANSPORT), "features");
    for queue in 0..board.queues() {
        for (at, value, len) in [
            (22, queue.into(), 2),
            (24, SIZE.into(), 2),
            (26, u64::from(queue) + 1, 2),
            (32, table(queue), 8),
            (40, driver(queue), 8),
            (48, device(queue), 8),
            (28, 1, 2),
        ] {
            board.write(board.bar + at, value, len);
        }
    }
    board.set_status(1 | 2 | 4 | 8);
}

/// What a device's thread has done: nanoseconds, requests.
type Turn = (u64, u16);

/// A device whose thread is watched.
struct Timed<D> {
    inner: Arc<D>,
    memory: Arc<GuestMem>,
    tell: Mutex<Sender<Turn>>,
}

impl<D: VirtioDevice> VirtioDevice for Timed<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn device_type(&self) -> u16 {
        self.inner.device_type()
    }
    fn class(&self) -> u32 {
        self.inner.class()
    }
    fn queue_sizes(&self) -> Vec<u16> {
        self.inner.queue_sizes()
    }
    fn features(&self) -> u64 {
        self.inner.features()
    }
    fn attach(&self, handle: Handle) {
        self.inner.attach(handle);
    }
    fn activate(&self, features: u64) {
        self.inner.activate(features);
    }
    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        let side = Side::new(&self.memory, index);
        let (before, start) = (side.used(), Instant::now());
        let served = self.inner.serve(index, queue);
        let elapsed = start.elapsed().as_nanos() as u64;
        let tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has measured enough has gone.
        let _ = tell.send((elapsed, side.used().wrapping_sub(before)));
        served
    }
}

/// Takes requests and hands them back.
pub(super) struct Empty;

impl VirtioDevice for Empty {
    fn name(&self) -> &'static str {
        "empty"
    }
    fn device_type(&self) -> u16 {
        2
    }
    fn class(&self) -> u32 {
        0x01_00_00
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![SIZE]
    }
    fn serve(&self, _: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while let Some(chain) = queue.pop()? {
            let room = chain.writable.len() as u32;
            queue.complete(black_box(chain), room)?;
            queue.signal()?;
        }
        Ok(Served::Drained)
    }
}

/// A disk in memory.
#[cfg(test)]
pub(super) fn block(bytes: u64) -> Arc<virtio_blk::VirtioBlk> {
    let disk = Arc::new(disk::Memory::new(disk::Shape::of_bytes(bytes)));
    virtio_blk::VirtioBlk::new(&virtio_blk::Config { queues: 1, ..Default::default() }, disk)
}

/// A device on its board.
pub(super) struct Bed {
    board: Board,
    side: Side,
    told: Receiver<Turn>,
}

impl Bed {
    pub(super) fn timed<D: VirtioDevice + 'static>(inner: Arc<D>) -> Self {
        let (tell, told) = channel();
        let features = inner.features();
        let board = Board::with(|memory| {
            Arc::new(Timed { inner, memory: memory.clone(), tell: tell.into() })
        });
        start(&board, features);
        let side = Side::new(&board.memory, 0);
        Self { board, side, told }
    }

    /// Nanoseconds of a request, of so many at once.
    pub(super) fn batch(&mut self, queue: u16, shape: Shape, count: u16) -> f64 {
        self.side.offer(shape, count);
        self.board.ring(queue);
        let (mut elapsed, mut requests) = (0, 0);
        while requests < count {
            let (ns, done) = self.told.recv().expect("a thread");
            elapsed += ns;
            requests += done;
        }
        self.board.sink.take_messages();
        elapsed as f64 / f64::from(count)
    }

    /// The status of each of the last requests.
    #[cfg(test)]
    pub(super) fn answers(&self, count: u16) -> Vec<Option<u8>> {
        (0..u64::from(count)).map(|this| self.side.byte(STATUS + this)).collect()
    }
}

/// A ring's own part, on a thread of its own.
pub(super) struct Split {
    side: Side,
    go: Sender<u16>,
    told: Receiver<u64>,
}

impl Split {
    pub(super) fn new() -> Self {
        let memory = GuestMem::new(RAM).expect("memory");
        let mem = Memfd::new(RAM).expect("memory");
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).expect("a slot");
        let mut ring = Ring::new(SIZE).expect("a size");
        let half = |at: u64| Some(at as u32);
        ring.set_size(SIZE);
        ring.set_desc_table_address(half(table(0)), Some(0));
        ring.set_avail_ring_address(half(driver(0)), Some(0));
        ring.set_used_ring_address(half(device(0)), Some(0));
        ring.set_event_idx(true);
        ring.set_ready(true);
        let (go, goes) = channel();
        let (tell, told) = channel();
        let of_thread = memory.clone();
        thread::spawn(move || {
            while let Ok(count) = goes.recv() {
                let rings = of_thread.rings();
                let start = Instant::now();
                for _ in 0..count {
                    let mut iter = ring.iter(&rings).expect("a ring");
                    let chain = black_box(iter.next()).expect("a request");
                    let head = chain.head_index();
                    ring.add_used(&rings, head, 1).expect("a ring");
                    black_box(ring.needs_notification(&rings).expect("a ring"));
                }
                if tell.send(start.elapsed().as_nanos() as u64).is_err() {
                    return;
                }
            }
        });
        Self { side: Side::new(&memory, 0), go, told }
    }

    pub(super) fn batch(&mut self, shape: Shape, count: u16) -> f64 {
        self.side.offer(shape, count);
        self.go.send(count).expect("a thread");
        let elapsed = self.told.recv().expect("a thread");
        assert!(self.side.done(), "all are handed back");
        elapsed as f64 / f64::from(count)
    }
}
