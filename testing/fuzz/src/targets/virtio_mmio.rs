//! The registers of a virtio device that is in memory, and a driver that makes rings there.

use crate::{
    ground::{Board, Ground, Place, RAM, drive},
    input::Input,
};
use disk::{Memory, Shape};
use std::sync::Arc;
use virtio::{MmioWindow, VirtioDevice, fake::Inline};
use virtio_blk::{Config, VirtioBlk};

const AT: u64 = 0xfec1_0000;
const GSI: u32 = 16;
/// Queues, so far apart.
const RINGS: u64 = 0x1_0000;
const STRIDE: u64 = 0x4000;
const DATA: u64 = 0x8_0000;
const QUEUES: u16 = 2;
const SIZE: u32 = 8;

/// Those that a driver writes.
const REGISTERS: [u64; 17] = [
    0x14, 0x20, 0x24, 0x30, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
    0x100,
];

struct Mmio {
    ground: Ground,
    inline: Arc<Inline>,
}

impl Mmio {
    fn set(&self, register: u64, value: u32) {
        self.ground.wiring.mmio.write(AT + register, &value.to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ground.wiring.memory.write(at, bytes).expect("RAM");
    }

    /// The driver's way to a device that works (virtio 1.2, 4.2.3.1), which it may leave.
    fn start(&self, input: &mut Input<'_>) {
        let features = self.inline.features() | virtio::feature::TRANSPORT;
        let features = if input.flag() { features } else { features & input.u64() };
        self.set(0x70, 0);
        self.set(0x70, 3);
        for half in 0..2 {
            self.set(0x24, half);
            self.set(0x20, (features >> (32 * half)) as u32);
        }
        self.set(0x70, 11);
        for queue in 0..QUEUES {
            let at = RINGS + STRIDE * u64::from(queue);
            self.write(at, &[0; 0x3000]);
            self.set(0x30, queue.into());
            self.set(0x38, if input.u8() < 0xe0 { SIZE } else { input.number() as u32 });
            for (register, offset) in [(0x80, 0), (0x90, 0x1000), (0xa0, 0x2000)] {
                let address = if input.u8() < 0xf0 { at + offset } else { input.address(RAM) };
                self.set(register, address as u32);
                self.set(register + 4, (address >> 32) as u32);
            }
            self.set(0x44, 1);
        }
        self.set(0x70, if input.u8() < 0xf0 { 15 } else { input.u8().into() });
    }

    /// A request of the disk, and the doorbell.
    fn request(&self, input: &mut Input<'_>) {
        let queue = input.below(u64::from(QUEUES) + 1);
        let at = RINGS + STRIDE * (queue % u64::from(QUEUES));
        let mut header = u32::from(input.pick(&[0u8, 1, 4, 8, 11, 13, 2])).to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(input.number().to_le_bytes());
        self.write(DATA, &header);
        let data = (DATA + 0x1000, input.pick(&[512u32, 512, 4096, 20, 0]), input.u16() & 2);
        let pieces = [(DATA, 16, 0), data, (DATA + 0x800, 1, 2)];
        for (index, (address, len, flags)) in (0u16..).zip(pieces) {
            let next = flags | u16::from(index < 2);
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            bytes.extend((index + 1).to_le_bytes());
            self.write(at + 16 * u64::from(index), &bytes);
        }
        let mut index = [0; 2];
        self.ground.wiring.memory.read(at + 0x1002, &mut index).expect("RAM");
        let index = u16::from_le_bytes(index);
        self.write(at + 0x1004 + 2 * u64::from(index % SIZE as u16), &[0, 0]);
        self.write(at + 0x1002, &index.wrapping_add(1).to_le_bytes());
        self.set(0x50, queue as u32);
    }
}

impl Board for Mmio {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn places(&self) -> Vec<Place> {
        vec![(AT, 0x100), (AT, 0x100), (AT + 0x100, 0x80), (AT, 0x1000)]
    }

    fn act(&self, input: &mut Input<'_>) {
        match input.u8() & 7 {
            0 | 1 => self.start(input),
            // Interrupts are acknowledged.
            2 => self.set(0x64, input.u8().into()),
            // A register that there is, and what they all say then.
            3 | 4 => {
                self.set(input.pick(&REGISTERS), input.number() as u32);
                (0..0x110).step_by(4).for_each(|register| _ = self.ground.read(AT + register));
            }
            _ => self.request(input),
        }
    }

    fn settle(&self) {
        self.inline.settle();
    }
}

pub(super) fn run(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(RAM);
        let disk = Arc::new(Memory::new(Shape { discard: true, ..Shape::of_bytes(64 << 10) }));
        let config = Config { serial: "S1".into(), queues: QUEUES };
        let inline = Inline::new(VirtioBlk::new(&config, disk));
        let mut window = MmioWindow::new(AT..AT + 0x1000, GSI..GSI + 1);
        window.build(inline.clone(), &mut ground.wiring).expect("threads");
        Mmio { ground, inline }
    });
}
