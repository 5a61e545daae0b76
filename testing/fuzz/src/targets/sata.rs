//! Commands of a SATA adapter: tables in memory, disks and a CD drive.

use crate::{
    ground::{Board, ECAM, Ground, Place, RAM, WINDOW, drive},
    input::Input,
};
use ::ahci::{Ahci, Plug};
use disk::{Disk, Memory, Shape};
use std::sync::Arc;

const LIST: u64 = 0x1000;
const RECEIVED: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const DATA: u64 = 0x1_0000;
const SECTORS: u64 = 256;

struct Adapter {
    ground: Ground,
    ahci: Arc<Ahci>,
}

/// ATA commands that a disk knows, and that of packets.
const COMMANDS: [u8; 24] = [
    0x25, 0x35, 0xc8, 0xca, 0x20, 0x30, 0x24, 0x34, 0xec, 0xa1, 0xa0, 0xa0, 0xa0, 0xef, 0xe7, 0xea,
    0x06, 0x60, 0x61, 0x2f, 0xb0, 0xf8, 0x27, 0xe0,
];

impl Adapter {
    fn set(&self, register: u64, value: u32) {
        let at = self.ground.bar(1, 5) + register;
        self.ground.wiring.mmio.write(at, &value.to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ground.wiring.memory.write(at, bytes).expect("RAM");
    }

    /// As a driver does: interrupts on, lists, received structures, start.
    fn start(&self, port: u64) {
        let base = 0x100 + 0x80 * port;
        self.set(4, 1 << 31 | 2);
        self.set(base + 0x18, 0x16);
        self.set(base, LIST as u32 + 0x400 * port as u32);
        self.set(base + 8, RECEIVED as u32 + 0x100 * port as u32);
        self.set(base + 0x14, 0x7dc0_00ff);
        self.set(base + 0x18, 0x17);
    }

    /// The CD drive is asked for blocks, in pieces of memory that they fit into.
    fn read_blocks(&self, input: &mut Input<'_>) {
        self.start(1);
        let (first, count) = (input.below(66) as u32, 1 + input.below(20) as u16);
        let [a, b, c, d] = first.to_be_bytes();
        let [m, n] = count.to_be_bytes();
        let packet = match input.u8() & 1 {
            0 => [0x28, 0, a, b, c, d, 0, m, n, 0, 0, 0],
            _ => [0xa8, 0, a, b, c, d, 0, 0, m, n, 0, 0],
        };
        let mut table = vec![0x27, 0x80, 0xa0, input.u8() & 1];
        table.resize(0x40, 0);
        table.extend(packet);
        table.resize(0x80, 0);
        let (mut at, mut left, mut regions) = (DATA, u32::from(count) * 2048, 0u32);
        while left > 0 && regions < 8 {
            let len = match input.pick(&[0, 2048, 512, 2]) {
                0 => left,
                len => left.min(len),
            };
            let len = if regions == 7 { left } else { len };
            table.extend(at.to_le_bytes());
            table.extend(0u32.to_le_bytes());
            table.extend((len - 1).to_le_bytes());
            (at, left, regions) = (at + u64::from(len), left - len, regions + 1);
        }
        self.write(TABLE, &table);
        let mut header = (5 | 1 << 5 | regions << 16).to_le_bytes().to_vec();
        header.extend(0u32.to_le_bytes());
        header.extend(TABLE.to_le_bytes());
        self.write(LIST + 0x400, &header);
        self.set(0x180 + 0x38, 1);
    }

    /// A command that is right, or nearly.
    fn command(&self, input: &mut Input<'_>) {
        let (port, slot) = (input.below(3), u64::from(input.u8() & 3));
        if input.u8() < 0xc0 {
            self.start(port);
        }
        let packet = super::cdb::some(input);
        let command = if port == 1 && input.flag() { 0xa0 } else { input.pick(&COMMANDS) };
        let [a, b, c, d, e, f, ..] = input.number().to_le_bytes();
        let [n, m, ..] = (input.number() as u16).to_le_bytes();
        let kind = if input.u8() < 0xf0 { 0x27 } else { input.u8() };
        let flags = if input.u8() < 0xe0 { 0x80 } else { input.u8() };
        let mut table =
            vec![kind, flags, command, input.u8(), a, b, c, 0x40, d, e, f, 0, n, m, 0, 0];
        table[15] = input.u8() & 4;
        table.resize(0x40, 0);
        table.extend(packet);
        table.resize(0x80, 0);
        let regions = input.below(5) as u32;
        for _ in 0..regions {
            let address =
                if input.u8() < 0xe0 { DATA + input.below(0x1000) } else { input.address(RAM) };
            let len = input.pick(&[511, 511, 2047, 0x3fff, 0]);
            let len = if len == 0 { input.number() as u32 } else { len };
            table.extend(address.to_le_bytes());
            table.extend(0u32.to_le_bytes());
            table.extend(len.to_le_bytes());
        }
        let at = TABLE + 0x100 * slot;
        self.write(at, &table);
        let count = if input.u8() < 0xf0 { regions } else { input.u16().into() };
        let first = 5 | u32::from(input.u8() & 0x60) | count << 16;
        let mut header = first.to_le_bytes().to_vec();
        header.extend(0u32.to_le_bytes());
        header.extend(if input.u8() < 0xf0 { at } else { input.address(RAM) }.to_le_bytes());
        self.write(LIST + 0x400 * port + 32 * slot, &header);
        if input.flag() {
            self.set(0x100 + 0x80 * port + 0x34, 1 << slot);
        }
        self.set(0x100 + 0x80 * port + 0x38, 1 << slot);
    }
}

impl Board for Adapter {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn places(&self) -> Vec<Place> {
        let bar = self.ground.bar(1, 5);
        vec![(bar, 0x30), (bar + 0x100, 0x180), (bar, 0x1000), (ECAM + (1 << 15), 0x100)]
    }

    fn act(&self, input: &mut Input<'_>) {
        match input.u8() {
            0..=0x2f => self.read_blocks(input),
            _ => self.command(input),
        }
    }

    fn settle(&self) {
        self.ahci.settle();
    }
}

pub(super) fn run(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(RAM);
        let config = pci::Config { ecam: ECAM..ECAM + (1 << 20), window: WINDOW };
        let pci = pci::build(&config, &mut ground.wiring);
        let disk = Arc::new(Memory::new(Shape { discard: true, ..Shape::of_bytes(SECTORS * 512) }));
        let disc = Memory::new(Shape::of_bytes(64 * 2048));
        disc.write(16 * 2048, b"\x01CD001").expect("a disk");
        let plugs = vec![
            Plug::Disk { disk, serial: "S1".into() },
            Plug::Cd(Some(Arc::new(disc))),
            Plug::Cd(None),
        ];
        let ahci = ahci::build(plugs, &pci, &mut ground.wiring).expect("threads");
        pci.assign();
        ground.wiring.mmio.write(ECAM + (1 << 15) + 4, &[6, 0]);
        Adapter { ground, ahci }
    });
}
