//! Traffic with a virtio disk: several requests at a time, writes, reads of what was written and
//! flushes; in the end all of it is read once more.

use crate::{
    hardware::{claim_page, load, store},
    numbers::same,
    pattern,
    virtio::{Buffer, Device, Interrupts, Ring},
};

pub const TYPE: u16 = 2;
/// VIRTIO_BLK_F_FLUSH (5.2.3).
const FLUSH: u32 = 1 << 9;
const SECTOR: u32 = 512;
/// Sectors that are written to; each slot has its own, so that no two requests meet.
const SECTORS: u32 = 64;
/// Requests at a time.
const SLOTS: u32 = 4;
/// Where in a slot's page its parts are.
const STATUS: u64 = 16;
const DATA: u64 = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Write { number: u32, sector: u32 },
    Read { sector: u32 },
    Flush,
}

#[derive(Clone, Copy)]
struct Slot {
    page: u64,
    request: Option<Request>,
}

pub struct Disk {
    device: Device,
    ring: Ring,
    slots: [Slot; SLOTS as usize],
    /// Where the numbers are that each sector was last written with; 0 if none was.
    written: u64,
    begun: u32,
    pub done: u32,
    requests: u32,
    /// Requests that may be begun.
    pub allowed: u32,
}

impl Disk {
    /// `requests` and then one for each sector.
    pub fn start(requests: u32, interrupts: Interrupts, vector: u8, cpu: u8) -> Option<Self> {
        let device = Device::take(TYPE, FLUSH, interrupts, vector, cpu)?;
        let ring = device.queue(0);
        device.ready();
        let slots = core::array::from_fn(|_| Slot { page: claim_page(), request: None });
        let written = claim_page();
        Some(Self { device, ring, slots, written, begun: 0, done: 0, requests, allowed: 0 })
    }

    pub fn is_done(&self) -> bool {
        self.done == self.requests + SECTORS
    }

    pub fn step(&mut self) {
        if self.device.interrupted() {
            while let Some((first, length)) = self.ring.completed() {
                self.complete(first, length);
            }
        }
        self.device.end();
        for slot in 0..SLOTS {
            let free = self.slots[slot as usize].request.is_none();
            // Before all is read, all is written.
            let waits = self.begun == self.requests && self.done < self.begun;
            if free && !waits && self.allowed > 0 && self.begun < self.requests + SECTORS {
                self.begin(slot);
            }
        }
    }

    fn choose(&self, number: u32, slot: u32) -> Request {
        if let Some(sector) = number.checked_sub(self.requests) {
            return Request::Read { sector };
        }
        let place = pattern::mix(u64::from(number) + 1) >> 8;
        let sector = (place % u64::from(SECTORS / SLOTS)) as u32 * SLOTS + slot;
        match number % 8 {
            2 | 5 => Request::Read { sector },
            7 => Request::Flush,
            _ => Request::Write { number: number + 1, sector },
        }
    }

    fn begin(&mut self, index: u32) {
        let request = self.choose(self.begun, index);
        let slot = &mut self.slots[index as usize];
        let page = slot.page;
        let (kind, sector, data) = match request {
            Request::Read { sector } => (0u32, sector, Some(true)),
            Request::Write { number, sector } => {
                pattern::fill(page + DATA, number, sector, SECTOR);
                (1, sector, Some(false))
            }
            Request::Flush => (4, 0, None),
        };
        store(page, kind);
        store(page + 4, 0u32);
        store(page + 8, u64::from(sector));
        store(page + STATUS, 0xffu8);
        let header = Buffer { at: page, length: 16, written: false };
        let status = Buffer { at: page + STATUS, length: 1, written: true };
        let first = (index * 3) as u16;
        match data {
            Some(written) => {
                let data = Buffer { at: page + DATA, length: SECTOR, written };
                self.ring.submit(first, &[header, data, status]);
            }
            None => self.ring.submit(first, &[header, status]),
        }
        slot.request = Some(request);
        self.begun += 1;
        self.allowed -= 1;
    }

    fn complete(&mut self, first: u16, length: u32) {
        let slot = &mut self.slots[usize::from(first / 3)];
        let Some(request) = slot.request.take() else { panic!("a request is done twice") };
        let status: u8 = load(slot.page + STATUS);
        same("status of a request of slot", first / 3, status, 0u8);
        let data = slot.page + DATA;
        let wanted = match request {
            Request::Read { sector } => {
                match self.number(sector) {
                    0 => same("empty sector", sector, load::<u64>(data), 0u64),
                    number => pattern::check("sector", data, number, sector, SECTOR),
                }
                SECTOR + 1
            }
            Request::Write { number, sector } => {
                store(self.written + u64::from(sector) * 4, number);
                1
            }
            Request::Flush => 1,
        };
        same("bytes that the disk has written to slot", first / 3, length, wanted);
        self.done += 1;
    }

    fn number(&self, sector: u32) -> u32 {
        load(self.written + u64::from(sector) * 4)
    }

    /// Of what must be on the disk, sector after sector.
    pub fn sum(&self) -> u64 {
        let mut sum = 0u64;
        for sector in 0..SECTORS {
            match self.number(sector) {
                0 => (0..SECTOR / 8).for_each(|_| sum = add(sum, 0)),
                number => pattern::words(number, sector, SECTOR).for_each(|w| sum = add(sum, w)),
            }
        }
        sum
    }
}

/// FNV-1a's step, with words for bytes.
fn add(sum: u64, word: u64) -> u64 {
    (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3)
}
