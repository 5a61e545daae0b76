//! Requests of the virtio devices that are disks, or have some.

use crate::{
    input::Input,
    rig::{Model, Request, Rig, drive},
};
use ::scsi::{Cd, DiskUnit, Identity, Unit};
use disk::{Memory, Shape};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use virtio_blk::VirtioBlk;
use virtio_scsi::{Address, CONTROL, EVENTS, REQUESTS, VirtioScsi};

const SECTORS: u64 = 256;
const QUEUES: u16 = 2;

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new(Shape { discard: true, ..Shape::of_bytes(SECTORS * 512) }))
}

struct Blk;

impl Model for Blk {
    /// virtio 1.2, 5.2.6.
    fn request(&self, input: &mut Input<'_>) -> Request {
        let kind = input.pick(&[0, 1, 4, 8, 11, 13, 14]);
        let kind = if kind == 14 { input.u32() } else { kind };
        let sector = input.number();
        let mut given = kind.to_le_bytes().to_vec();
        given.extend([0; 4]);
        given.extend(sector.to_le_bytes());
        match kind {
            11 | 13 => {
                for _ in 0..input.below(6) {
                    given.extend(input.number().to_le_bytes());
                    given.extend((input.number() as u32).to_le_bytes());
                    given.extend(u32::from(input.u8() & 3).to_le_bytes());
                }
            }
            1 => given.resize(16 + 512 * input.below(9) as usize, input.u8()),
            _ => {}
        }
        given.extend(input.some(8));
        let wanted = match kind {
            0 => 512 * input.below(9) as u32 + 1,
            8 => 21,
            _ => 1,
        };
        let wanted = if input.u8() < 0xf0 { wanted } else { input.number() as u32 };
        Request { queue: input.below(QUEUES.into()) as u16, given, wanted }
    }
}

pub(super) fn blk(data: &[u8]) {
    drive(data, || {
        let config = virtio_blk::Config { serial: "SERIAL-7".into(), queues: QUEUES };
        (Rig::new(VirtioBlk::new(&config, memory())), Blk)
    });
}

/// And whether units came or went.
struct Adapter(Arc<VirtioScsi>, AtomicBool);

const UNITS: [Address; 3] =
    [Address { target: 0, lun: 0 }, Address { target: 0, lun: 1 }, Address { target: 3, lun: 5 }];

fn unit() -> Unit {
    let identity = Identity { serial: "SERIAL".into(), place: String::new() };
    Unit::Disk(DiskUnit::new(memory(), identity))
}

impl Model for Adapter {
    /// virtio 1.2, 5.6.6.
    fn request(&self, input: &mut Input<'_>) -> Request {
        let address = input.pick(&UNITS);
        let mut given = vec![1, address.target, 0x40, address.lun as u8, 0, 0, 0, 0];
        if input.u8() > 0xe0 {
            given = input.u64().to_le_bytes().to_vec();
        }
        match input.u8() {
            0..=0xcf => {
                given.extend(input.u64().to_le_bytes());
                given.extend([0; 3]);
                let (block, data) = super::cdb::with_data(input);
                given.extend(block);
                given.resize(8 + 8 + 3 + 32, 0);
                given.extend(data);
                let wanted = 108 + if input.flag() { input.number() as u32 % 0x2000 } else { 0 };
                Request { queue: REQUESTS + input.below(QUEUES.into()) as u16, given, wanted }
            }
            0xd0..=0xe7 => {
                // 5.6.6.2: a type, a subtype, the unit, an id; or an asynchronous notification.
                let mut all = u32::from(input.u8() & 3).to_le_bytes().to_vec();
                all.extend((input.number() as u32).to_le_bytes());
                all.extend(given);
                all.extend(input.u64().to_le_bytes());
                Request { queue: CONTROL, given: all, wanted: input.pick(&[1, 5, 16]) }
            }
            _ => Request { queue: EVENTS, given: Vec::new(), wanted: input.pick(&[16, 16, 15]) },
        }
    }

    fn host(&self, input: &mut Input<'_>) {
        let address = Address { target: input.below(5) as u8, lun: input.below(3) as u16 };
        self.1.store(true, SeqCst);
        if input.flag() {
            self.0.unplug(address);
        } else {
            let _ = self.0.plug(address, unit());
        }
    }

    fn is_as_new(&self) -> bool {
        !self.1.load(SeqCst)
    }
}

pub(super) fn scsi(data: &[u8]) {
    drive(data, || {
        let scsi = VirtioScsi::new(QUEUES);
        for (index, address) in UNITS.into_iter().enumerate() {
            let unit = if index == 1 { Unit::Cd(Cd::new(Some(memory()), None)) } else { unit() };
            scsi.plug(address, unit).expect("its place is free");
        }
        (Rig::new(scsi.clone()), Adapter(scsi, false.into()))
    });
}
