//! Rings and registers of an 82540EM, from the driver's side and from the network's.

use super::virtio_net::Wire;
use crate::{
    ground::{Board, ECAM, Ground, Place, RAM, WINDOW, drive},
    input::Input,
};
use nic::Mac;
use std::sync::Arc;

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const SLOT: u64 = ECAM + (1 << 15);
const TX: u64 = 0x1000;
const RX: u64 = 0x2000;
const RING: u64 = 8;
const DATA: u64 = 0x1_0000;

struct Card {
    ground: Ground,
    wire: Arc<Wire>,
}

impl Card {
    fn set(&self, register: u64, value: u32) {
        self.ground.wiring.mmio.write(self.ground.bar(1, 0) + register, &value.to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ground.wiring.memory.write(at, bytes).expect("RAM");
    }

    /// Rings of eight descriptors with buffers of 2 KiB, and both directions on.
    fn start(&self, input: &mut Input<'_>) {
        for (base, at) in [(0x3800, TX), (0x2800, RX)] {
            for (offset, value) in
                [(0, at as u32), (4, 0), (8, RING as u32 * 16), (0x10, 0), (0x18, 0)]
            {
                self.set(base + offset, value);
            }
        }
        for n in 0..RING {
            self.write(RX + n * 16, &(0x4_0000 + n * 0x800).to_le_bytes());
            self.write(RX + n * 16 + 8, &[0; 8]);
        }
        self.set(0x400, 2);
        self.set(0x100, if input.flag() { 1 << 1 | 1 << 15 | 1 << 26 } else { input.u32() | 2 });
        self.set(0xd0, 0xff);
        self.set(0x2818, RING as u32 - 1);
    }

    /// A packet of TCP that is to be cut: a context, and the data.
    fn large(&self, input: &mut Input<'_>) {
        let payload = input.number() as u32 % 0x2000;
        let mut frame = MAC.0.to_vec();
        frame.extend([2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 2, 15, 10, 0, 2, 2, 0, 80, 16, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50]);
        frame.push(input.u8());
        frame.resize(54, 0);
        frame.extend(input.some(16));
        self.write(DATA, &frame);
        let near = |input: &mut Input<'_>, usual: u64| {
            if input.u8() < 0xe8 { usual } else { input.u8().into() }
        };
        let mut low = 0;
        for (at, usual) in [(0, 14), (8, 24), (16, 33), (32, 34), (40, 50), (48, 0)] {
            low |= near(input, usual) << at;
        }
        let command = 0x2000_0000 | 5 << 24 | u64::from(input.u8() & 2) << 24 | u64::from(payload);
        let size = if input.u8() < 0xf0 { 1000 } else { input.number() & 0xffff };
        let high = command | near(input, 54) << 40 | size << 48;
        let index = input.below(RING);
        self.write(TX + 16 * index, &low.to_le_bytes());
        self.write(TX + 16 * index + 8, &high.to_le_bytes());
        let next = (index + 1) % RING;
        let data = u64::from(54 + payload) | 0x2010_0000 | 5 << 24 | 3 << 40;
        self.write(TX + 16 * next, &DATA.to_le_bytes());
        self.write(TX + 16 * next + 8, &data.to_le_bytes());
        self.set(0x3810, index as u32);
        self.set(0x3818, (next as u32 + 1) % RING as u32);
    }

    /// A descriptor of one of the three kinds (8254x manual, 3.3).
    fn transmit(&self, input: &mut Input<'_>) {
        let index = input.below(RING);
        let at = if input.u8() < 0xf0 { DATA + input.below(0x4000) } else { input.address(RAM) };
        let command = input.u8();
        let (low, high) = match input.u8() & 3 {
            // A context: where checksums are, how a packet is cut.
            0 => {
                let low = u64::from(input.u32()) | u64::from(input.u32()) << 32;
                let len = input.number() as u32 & 0xf_ffff;
                (low, u64::from(len | u32::from(command) << 24) | u64::from(input.u32()) << 32)
            }
            kind => {
                let len = input.number() as u32 & if kind == 1 { 0xffff } else { 0xf_ffff };
                let extended = if kind == 1 { 0 } else { 1 << 20 };
                let high = u64::from(len | extended | u32::from(command) << 24);
                (at, high | u64::from(input.u32()) << 32)
            }
        };
        // Understood as extended, mostly.
        let extended = high >> 20 & 1 == 1 && input.u8() < 0xe0;
        let high = if extended { high | 1 << 29 } else { high };
        self.write(TX + 16 * index, &low.to_le_bytes());
        self.write(TX + 16 * index + 8, &high.to_le_bytes());
    }
}

impl Board for Card {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn ports(&self) -> &[u16] {
        &[0xc000, 0xc004]
    }

    fn places(&self) -> Vec<Place> {
        let bar = self.ground.bar(1, 0);
        vec![
            (bar, 0x200),
            (bar + 0x400, 0x20),
            (bar + 0x2800, 0x40),
            (bar + 0x3800, 0x40),
            (bar + 0x5000, 0x400),
            (bar, 0x2_0000),
            (SLOT, 0x100),
        ]
    }

    fn act(&self, input: &mut Input<'_>) {
        match input.u8() & 7 {
            0 => self.start(input),
            1 | 2 => self.transmit(input),
            3 => self.set(0x3818, input.below(RING + 1) as u32),
            4 if input.flag() => self.large(input),
            4 => {
                let frame = super::virtio_net::frame(input, MAC);
                self.write(DATA + input.below(64), &frame);
            }
            5 => self.set(0x2818, input.below(RING + 1) as u32),
            _ => self.wire.act(input),
        }
    }
}

pub(super) fn run(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(RAM);
        let config = pci::Config { ecam: ECAM..ECAM + (1 << 20), window: WINDOW };
        let pci = pci::build(&config, &mut ground.wiring);
        let wire = Arc::new(Wire::default());
        ::e1000::build(MAC, wire.clone(), &pci, &mut ground.wiring);
        pci.assign();
        ground.wiring.mmio.write(SLOT + 4, &[7, 0]);
        Card { ground, wire }
    });
}
