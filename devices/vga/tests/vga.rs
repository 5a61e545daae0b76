//! The adapter on a board, as drivers and as hostile guests use it.

use device::{
    Device, Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use display::{Frame, Screen};
use pci::{Config, PciHost};
use proptest::prelude::*;
use std::sync::Arc;
use vga::Vga;

const ECAM: u64 = 0xe000_0000;

struct Board {
    wiring: Wiring,
    vga: Arc<Vga>,
    pci: Arc<PciHost>,
}

fn board() -> Board {
    let mut wiring = wiring(&FakeTime::default(), &Arc::new(Recorder::default()));
    let config = Config { ecam: ECAM..ECAM + (1 << 20), window: 0xc000_0000..ECAM };
    let pci = pci::build(&config, &mut wiring);
    let rom: Arc<[u8]> = vec![0x55, 0xaa, 3].into();
    let vga = vga::build(Some(rom), &pci, &mut wiring).unwrap();
    pci.assign();
    Board { wiring, vga, pci }
}

impl Board {
    fn out(&self, port: u16, value: u8) {
        self.wiring.pio.write(port, &[value]);
    }
    fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.wiring.pio.read(port, &mut data);
        data[0]
    }
    fn dispi(&self, index: u16, value: u16) {
        self.wiring.pio.write(0x1ce, &index.to_le_bytes());
        self.wiring.pio.write(0x1cf, &value.to_le_bytes());
    }
    fn dispi_read(&self, index: u16) -> u16 {
        let mut data = [0; 2];
        self.wiring.pio.write(0x1ce, &index.to_le_bytes());
        self.wiring.pio.read(0x1cf, &mut data);
        u16::from_le_bytes(data)
    }
    fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.wiring.mmio.read(at, &mut data);
        u32::from_le_bytes(data)
    }
    fn bar(&self, index: u64) -> u64 {
        u64::from(self.read(ECAM + (1 << 15) + 0x10 + 4 * index) & !0xf)
    }
    fn frame(&self) -> Frame {
        let mut frame = Frame::default();
        self.vga.render(&mut frame);
        frame
    }
}

#[test]
fn firmware_and_drivers_find_it() {
    let board = board();
    assert_eq!(board.read(ECAM + (1 << 15)), 0x1111_1234);
    assert_eq!(board.read(ECAM + (1 << 15) + 8) >> 8, 0x03_0000);
    assert_eq!(board.dispi_read(0), 0xb0c5);
    let registers = board.bar(2);
    assert_eq!(board.read(registers), 0xffff_ff00, "EDID");
    assert_eq!((board.read(registers + 0x600), board.read(registers + 0x604)), (8, 0x1e1e_1e1e));
    board.wiring.mmio.write(registers + 0x502, &800u16.to_le_bytes());
    assert_eq!((board.dispi_read(1), board.read(registers + 0x502) as u16), (800, 800));
    // Its BAR of 16 MiB is a slot.
    let layout = board.wiring.memory.layout();
    assert_eq!(layout.regions()[0].slot.gpa, board.bar(0));
}

#[test]
fn registers_are_indexed() {
    let board = board();
    board.out(0x3c2, 0x67);
    assert_eq!((board.inb(0x3cc), board.inb(0x3b4)), (0x67, 0xff), "at 0x3dx, not 0x3bx");
    board.wiring.pio.write(0x3d4, &[0x0e, 0x12]);
    assert_eq!((board.inb(0x3d4), board.inb(0x3d5)), (0x0e, 0x12));
    // The first seven are protected, but for one bit.
    for (index, value) in [(0x11, 0x80), (0, 1), (7, 0xff)] {
        board.wiring.pio.write(0x3d4, &[index, value]);
    }
    let crtc = |index| {
        board.out(0x3d4, index);
        board.inb(0x3d5)
    };
    assert_eq!((crtc(0), crtc(7)), (0, 0x10));
    board.inb(0x3da);
    board.out(0x3c0, 3);
    board.out(0x3c0, 0x7f);
    assert_eq!((board.inb(0x3c0), board.inb(0x3c1)), (3, 0x3f));
    board.out(0x3c8, 255);
    [1, 2, 3, 4, 5, 6].iter().for_each(|value| board.out(0x3c9, *value));
    board.out(0x3c7, 255);
    assert_eq!([(); 6].map(|()| board.inb(0x3c9)), [1, 2, 3, 4, 5, 6], "then colour 0");
    // Both kinds of retrace begin and end, for those who wait.
    let status: Vec<u8> = (0..64).map(|_| board.inb(0x3da)).collect();
    assert!([0, 1, 9].iter().all(|value| status.contains(value)));
}

#[test]
fn text_is_shown() {
    let board = board();
    assert_eq!((board.frame().width(), board.frame().pixels()[0]), (640, 0), "no firmware yet");
    board.vga.start_text();
    let blank = board.frame();
    assert_eq!((blank.width(), blank.height()), (720, 400));
    board.wiring.mmio.write(0xb_8000 + 160, b"H\x0fi\x0f");
    let text = board.frame();
    let changed = (0..400).filter(|y| text.row(*y, 0, 720) != blank.row(*y, 0, 720));
    let rows: Vec<u16> = changed.collect();
    assert!(rows.iter().all(|y| (16..32).contains(y)) && rows.len() > 6, "{rows:?}");
    let mut bytes = [0; 2];
    board.wiring.mmio.read(0xb_8000 + 162, &mut bytes);
    assert_eq!(&bytes, b"i\x0f");
}

#[test]
fn a_linear_mode_shows_the_framebuffer() {
    let board = board();
    board.vga.start_text();
    board.wiring.mmio.write(0xb_8000, b"X\x0f");
    let text = board.frame();
    [(1, 640), (2, 480), (3, 32), (4, 0x41)].iter().for_each(|(i, v)| board.dispi(*i, *v));
    let at = board.bar(0);
    board.wiring.memory.write(at + 640 * 4 * 5 + 8, &[1, 2, 3, 0]).unwrap();
    let frame = board.frame();
    assert_eq!((frame.width(), frame.height(), frame.row(5, 2, 3)), (640, 480, &[0x03_0201][..]));
    // The same through the window, by banks of 64 KiB.
    board.dispi(5, 1);
    board.wiring.mmio.write(0xa_0000, &[9, 9, 9, 0]);
    assert_eq!(board.frame().row(25, 384, 385), [0x09_0909]);
    // And in other depths.
    [(4, 0), (3, 16), (4, 0xc1)].iter().for_each(|(i, v)| board.dispi(*i, *v));
    assert_eq!(board.frame().row(10, 4, 5), [0x00_4108], "kept, and read as 5-6-5");
    board.dispi(4, 0);
    assert_eq!(board.frame(), text, "the text is still there");
    board.dispi(4, 0x41);
    assert!(board.frame().pixels().iter().all(|pixel| *pixel == 0), "cleared");
}

#[test]
fn what_is_saved_is_what_is_shown() {
    let first = board();
    first.vga.start_text();
    first.wiring.mmio.write(0xb_8000, b"A\x1f");
    let at = first.bar(0);
    first.wiring.memory.write(at + 0x12_3456, &[7; 9]).unwrap();
    let saved = fake::save(&first.wiring);
    let second = board();
    second.wiring.memory.write(at + 0x100, &[1]).unwrap();
    fake::restore(&second.wiring, &saved).unwrap();
    assert_eq!(second.frame(), first.frame());
    assert_eq!(fake::save(&second.wiring), saved);
    [&first, &second].iter().for_each(|board| board.dispi(4, 0xc1));
    assert_eq!(second.frame(), first.frame());
    second.vga.reset();
    assert_eq!(second.frame().width(), 640);
    second.pci.assign();
    let mut bytes = [1; 4];
    second.wiring.memory.read(at + 0x12_3456, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4]);
}

/// What a guest can do to it.
#[derive(Clone, Debug)]
enum Act {
    Out(u16, Vec<u8>),
    In(u16, usize),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Dispi(u16, u16),
    Frame,
}

fn act() -> impl Strategy<Value = Act> {
    let port = prop_oneof![0x3b0u16..=0x3bb, 0x3c0u16..=0x3df, 0x1ceu16..=0x1d0];
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..=2),
        proptest::collection::vec(any::<u8>(), 4)
    ];
    // The window, and both BARs where `assign` puts them, registers most of all.
    let memory = prop_oneof![
        0xa_0000u64..0xb_fff8,
        0xc000_0000u64..0xc0ff_fff8,
        0xc100_0000u64..0xc100_0ff8,
        0xc100_0400u64..0xc100_0420,
        0xc100_0500u64..0xc100_0516,
    ];
    prop_oneof![
        4 => (port.clone(), data.clone()).prop_map(|(port, data)| Act::Out(port, data)),
        // Modes that show something.
        1 => Just(Act::Out(0x3c0, vec![0x20])),
        1 => (0u8..10, any::<u8>()).prop_map(|(i, v)| Act::Out(0x3ce, vec![i, v])),
        1 => (0u8..32, any::<u8>()).prop_map(|(i, v)| Act::Out(0x3d4, vec![i, v])),
        1 => (port, 1usize..=4).prop_map(|(port, len)| Act::In(port, len)),
        2 => (memory.clone(), data).prop_map(|(at, data)| Act::Write(at, data)),
        1 => (memory, 1usize..=8).prop_map(|(at, len)| Act::Read(at, len)),
        2 => (0u16..12, prop_oneof![any::<u16>(), 0u16..3000, Just(0x41)])
            .prop_map(|(index, value)| Act::Dispi(index, value)),
        1 => Just(Act::Frame),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_guest_harms_it(text: bool, acts in proptest::collection::vec(act(), 1..120)) {
        let board = board();
        if text {
            board.vga.start_text();
        }
        for act in acts {
            match act {
                Act::Out(port, data) => board.wiring.pio.write(port, &data),
                Act::In(port, len) => board.wiring.pio.read(port, &mut [0; 4][..len]),
                Act::Write(at, data) => board.wiring.mmio.write(at, &data),
                Act::Read(at, len) => board.wiring.mmio.read(at, &mut [0; 8][..len]),
                Act::Dispi(index, value) => board.dispi(index, value),
                Act::Frame => drop(board.frame()),
            }
        }
        let frame = board.frame();
        prop_assert!(!frame.pixels().is_empty() && frame.pixels().len() <= display::PIXELS_MAX);
        let saved = fake::save(&board.wiring);
        let other = self::board();
        fake::restore(&other.wiring, &saved).unwrap();
        prop_assert_eq!(other.frame(), frame);
        prop_assert_eq!(fake::save(&other.wiring), saved);
    }
}
