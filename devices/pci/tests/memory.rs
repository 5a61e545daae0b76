//! BARs that are memory, and expansion ROMs.

use device::{
    Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use guest_mem::Memfd;
use pci::{Bar, BarKind, Config, Function, FunctionConfig, PciHost};
use std::sync::Arc;

const ECAM: u64 = 0xe000_0000;
const SIZE: u32 = 0x10_0000;
const COMMAND: u64 = 4;
const BAR: u64 = 0x10;
const ROM: u64 = 0x30;

struct Framebuffer(Arc<Memfd>);

impl Function for Framebuffer {
    fn read(&self, _: usize, _: u64, data: &mut [u8]) {
        data.fill(0x77);
    }
    fn write(&self, _: usize, _: u64, _: &[u8]) {}
    fn memory(&self, bar: usize) -> Option<Arc<Memfd>> {
        (bar == 0).then(|| self.0.clone())
    }
}

struct Board {
    wiring: Wiring,
    pci: Arc<PciHost>,
    memory: Arc<Memfd>,
}

fn board(functions: usize) -> Board {
    let mut wiring = wiring(&FakeTime::default(), &Arc::new(Recorder::default()));
    let config = Config { ecam: ECAM..ECAM + (1 << 20), window: 0xc000_0000..ECAM };
    let pci = pci::build(&config, &mut wiring);
    let memory = Memfd::new(SIZE.into()).unwrap();
    let function = FunctionConfig {
        vendor: 0x1234,
        device: 0x1111,
        class: 0x03_00_00,
        bars: vec![Bar { index: 0, kind: BarKind::Memory32, prefetchable: true, size: SIZE }],
        rom: Some((0..5000u32).map(|i| i as u8).collect()),
        legacy_ports: true,
        ..FunctionConfig::default()
    };
    for _ in 0..functions {
        pci.add(&function, &wiring, |_| Arc::new(Framebuffer(memory.clone())));
    }
    Board { wiring, pci, memory }
}

impl Board {
    fn read(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.wiring.mmio.read(address, &mut data);
        u32::from_le_bytes(data)
    }
    fn config(&self, slot: u64, at: u64) -> u32 {
        self.read(ECAM + (slot << 15) + at)
    }
    fn set(&self, slot: u64, at: u64, value: u32) {
        self.wiring.mmio.write(ECAM + (slot << 15) + at, &value.to_le_bytes());
    }
    /// Where the guest sees the memory as RAM.
    fn seen(&self) -> Vec<u64> {
        self.wiring.memory.layout().regions().iter().map(|region| region.slot.gpa).collect()
    }
}

#[test]
fn a_bar_with_memory_is_ram_while_it_is_decoded() {
    let board = board(1);
    assert!(board.seen().is_empty());
    board.pci.assign();
    let at = board.seen()[0];
    assert_eq!(u64::from(board.config(1, BAR) & !0xf), at);
    board.memory.write_at(8, &[1, 2, 3, 4]).unwrap();
    let mut bytes = [0; 4];
    board.wiring.memory.read(at + 8, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);

    board.set(1, BAR, 0xd000_0000);
    assert_eq!(board.seen(), [0xd000_0000]);
    board.wiring.memory.read(0xd000_0008, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4], "the same memory elsewhere");
    board.set(1, COMMAND, 0);
    assert!(board.seen().is_empty(), "not decoded");
    board.set(1, COMMAND, 3);
    assert_eq!((board.config(1, COMMAND) & 3, board.seen().len()), (3, 1));
    for outside in [0u32, 0x1000_0000, 0xb000_0000, 0xe000_0000, 0xfee0_0000] {
        board.set(1, BAR, outside);
        assert!(board.seen().is_empty(), "{outside:#x} is not the bridge's");
    }
}

#[test]
fn of_two_at_one_place_the_first_is_seen() {
    let board = board(2);
    board.pci.assign();
    assert_eq!(board.seen().len(), 2);
    board.set(2, BAR, 0xd000_0000);
    board.set(1, BAR, 0xd000_0000);
    assert_eq!(board.seen(), [0xd000_0000]);
    assert_eq!(board.read(0xd000_0000), 0x7777_7777, "an access that is not RAM's");
    board.set(1, BAR, 0xc800_0000);
    assert_eq!(board.seen(), [0xc800_0000, 0xd000_0000], "and then the other");
}

#[test]
fn what_is_seen_follows_reset_and_restore() {
    let first = board(1);
    first.pci.assign();
    first.set(1, BAR, 0xd100_0000);
    let saved = fake::save(&first.wiring);
    let second = board(1);
    fake::restore(&second.wiring, &saved).unwrap();
    assert_eq!(second.seen(), [0xd100_0000]);
    second.wiring.devices.iter().for_each(|device| device.reset());
    assert!(second.seen().is_empty());
}

#[test]
fn a_rom_answers_when_it_is_enabled() {
    let board = board(1);
    board.set(1, ROM, u32::MAX);
    assert_eq!(board.config(1, ROM), 0xffff_e001, "8 KiB");
    board.set(1, COMMAND, 2);
    board.set(1, ROM, 0xd000_0000);
    assert_eq!(board.read(0xd000_0000), u32::MAX, "not enabled");
    board.set(1, ROM, 0xd000_0001);
    assert_eq!(board.read(0xd000_0104), 0x0706_0504);
    board.wiring.mmio.write(0xd000_0104, &[9; 4]);
    assert_eq!(board.read(0xd000_0104), 0x0706_0504, "it is a ROM");
    assert_eq!(board.read(0xd000_1f00), u32::MAX, "behind its end");
    board.pci.assign();
    assert_eq!(board.config(1, ROM) & 1, 0, "firmware enables it when it wants it");
}
