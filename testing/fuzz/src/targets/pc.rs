//! Registers of the board's parts: interrupt controllers, timers, ports, screen, firmware's devices.

use crate::{
    ground::{Board, ECAM, Ground, Place, WINDOW, drive},
    input::Input,
};
use ::chipset::{Chipset, Config};
use byte_stream::{Input as _, Null};
use disk::{Disk, Memory, Shape};
use display::{Frame, Key, Keyboard as _, Pointer as _, PointerEvent, Screen};
use std::sync::Arc;

struct Timers {
    ground: Ground,
    chipset: Chipset,
}

const CHIPSET: &[u16] = &[
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x92, 0xcf9,
    0x600, 0x602, 0x604, 0x608, 0x505, 0xf4, 0x80, 0xe9, 0x402,
];

impl Board for Timers {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn ports(&self) -> &[u16] {
        CHIPSET
    }

    fn places(&self) -> Vec<Place> {
        vec![
            (::chipset::ioapic::ADDRESS, 0x20),
            (::chipset::hpet::ADDRESS, 0x160),
            (::chipset::hpet::ADDRESS, ::chipset::hpet::SIZE),
        ]
    }

    fn act(&self, input: &mut Input<'_>) {
        match input.u8() & 7 {
            0 | 1 => {
                let pending = self.chipset.pic.pending();
                assert_eq!(self.chipset.pic.ack().is_some(), pending, "what is pending is there");
            }
            2 => self.chipset.ioapic.eoi(input.u8()),
            3 => self.chipset.pm.power_button(),
            4 => {
                // A timer of the HPET is set, as an operating system does, and let run.
                let timer = ::chipset::hpet::ADDRESS + 0x100 + 0x20 * input.below(4);
                let set = |at: u64, value: u64| {
                    self.ground.wiring.mmio.write(at, &value.to_le_bytes());
                };
                set(timer, u64::from(input.u16()) | 0x44);
                set(timer + 8, input.number());
                set(timer + 8, input.number());
                set(::chipset::hpet::ADDRESS + 0x10, u64::from(input.u8() & 3));
                self.chipset.pm.sleep_button();
            }
            _ => {
                let register = input.below(0x40) as u8;
                let mmio = &self.ground.wiring.mmio;
                mmio.write(::chipset::ioapic::ADDRESS, &[register, 0, 0, 0]);
                mmio.write(::chipset::ioapic::ADDRESS + 0x10, &input.u32().to_le_bytes());
            }
        }
    }
}

pub(super) fn chipset(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(crate::ground::RAM);
        let config = Config {
            memory_low: 512 << 20,
            debug_console: Some(Arc::new(Null)),
            firmware_log: Some(Arc::new(Null)),
            ..Config::default()
        };
        let chipset = ::chipset::build(&config, &mut ground.wiring);
        Timers { ground, chipset }
    });
}

/// A serial port, keyboard and mouse, and a screen.
struct Desk {
    ground: Ground,
    uart: Arc<uart::Uart>,
    i8042: Arc<i8042::I8042>,
    vga: Arc<vga::Vga>,
}

const DESK: &[u16] = &[
    0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x60, 0x64, 0x60, 0x64, 0x3b4, 0x3b5,
    0x3ba, 0x3c0, 0x3c1, 0x3c2, 0x3c4, 0x3c5, 0x3c6, 0x3c7, 0x3c8, 0x3c9, 0x3ca, 0x3cc, 0x3ce,
    0x3cf, 0x3d4, 0x3d5, 0x3da, 0x1ce, 0x1cf, 0x1d0,
];

impl Board for Desk {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn ends_with_reset(&self) -> bool {
        false
    }

    fn ports(&self) -> &[u16] {
        DESK
    }

    fn places(&self) -> Vec<Place> {
        vec![(0xa_0000, 0x2_0000), (self.ground.bar(1, 2), 0x1000), (self.ground.bar(1, 2), 0x520)]
    }

    fn act(&self, input: &mut Input<'_>) {
        match input.u8() & 7 {
            0 => {
                self.uart.receive(input.some(40));
            }
            1 => self.uart.send_break(),
            2 => {
                if let Some(key) = Key::from_code(input.u8().into()) {
                    self.i8042.key(key, input.flag());
                }
            }
            3 => self.i8042.point(PointerEvent {
                dx: input.number() as i32,
                dy: input.number() as i32,
                wheel: input.number() as i32,
                ..PointerEvent::default()
            }),
            // A mode that can be seen, dots in it, and a look.
            4 => {
                let (width, height) = (8 * (1 + input.below(40)), 1 + input.below(100));
                let depth = input.pick(&[8, 15, 15, 16, 24, 32]);
                let enable = input.pick(&[0x41, 0x41, 0xc1, 1]);
                for (index, value) in [
                    (4u16, 0),
                    (1, width as u16),
                    (2, height as u16),
                    (3, depth),
                    (4, enable),
                    (8, input.below(3) as u16),
                    (9, input.below(3) as u16),
                ] {
                    self.ground.wiring.pio.write(0x1ce, &index.to_le_bytes());
                    self.ground.wiring.pio.write(0x1cf, &value.to_le_bytes());
                }
                let at = self.ground.bar(1, 0) + 2 * input.below(width * height);
                let _ = self.ground.wiring.memory.write(at, &input.u64().to_le_bytes());
                self.vga.render(&mut Frame::default());
            }
            // Any mode of the display interface.
            5 => {
                for index in [4u16, 1, 2, 3, 5, 6, 7, 8, 9, 4] {
                    let value = match index {
                        1 | 2 => (input.number() as u16) & 0x1ff,
                        3 => input.pick(&[4, 8, 15, 16, 24, 32]),
                        4 => input.pick(&[0x41, 0x61, 0xc1, 1, 0]),
                        _ => input.number() as u16,
                    };
                    self.ground.wiring.pio.write(0x1ce, &index.to_le_bytes());
                    self.ground.wiring.pio.write(0x1cf, &value.to_le_bytes());
                }
            }
            // An indexed register.
            6 => {
                let (index, last) =
                    input.pick(&[(0x3c4, 5), (0x3ce, 9), (0x3d4, 0x19), (0x3c0, 0x15)]);
                let register = input.below(last) as u8;
                self.ground.wiring.pio.write(index, &[register]);
                let data = if index == 0x3c0 { index } else { index + 1 };
                self.ground.wiring.pio.write(data, &[input.u8()]);
            }
            _ => {
                let mut frame = Frame::default();
                self.vga.render(&mut frame);
            }
        }
    }
}

pub(super) fn desk(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(0xa_0000);
        let config = pci::Config { ecam: ECAM..ECAM + (1 << 20), window: WINDOW };
        let pci = pci::build(&config, &mut ground.wiring);
        let rom: Arc<[u8]> = vec![0x55, 0xaa, 3].into();
        let vga = vga::build(Some(rom), &pci, &mut ground.wiring).expect("memory");
        let uart = uart::build(&uart::Config::COM1, Arc::new(Null), &mut ground.wiring);
        let i8042 = i8042::build(true, &mut ground.wiring);
        pci.assign();
        Desk { ground, uart, i8042, vga }
    });
}

/// What firmware asks, and where it keeps its variables.
struct Firmware(Ground);

/// A chip of four blocks.
const FLASH: u64 = 0xffc0_0000;
const FLASH_SIZE: usize = 4 * flash::BLOCK;

impl Board for Firmware {
    fn ground(&self) -> &Ground {
        &self.0
    }

    fn ports(&self) -> &[u16] {
        &[0x510, 0x511, 0x514, 0x518]
    }

    fn places(&self) -> Vec<Place> {
        vec![(FLASH, 0x120), (FLASH, FLASH_SIZE as u64)]
    }

    fn act(&self, input: &mut Input<'_>) {
        let ground = &self.0;
        if input.flag() {
            // A command of the chip, at one place.
            let at = FLASH + input.below(FLASH_SIZE as u64);
            if input.u8() < 0x40 {
                // Several bytes at once: how many less one, the bytes, and that they are meant.
                let bytes = input.some(12);
                let count = (bytes.len() as u8).wrapping_sub(1);
                ground.wiring.mmio.write(at, &[0xe8]);
                ground.wiring.mmio.write(at, &[count]);
                for (offset, byte) in (0..).zip(bytes) {
                    ground
                        .wiring
                        .mmio
                        .write((at + offset).min(FLASH + FLASH_SIZE as u64 - 1), &[*byte]);
                }
                ground.wiring.mmio.write(at, &[0xd0]);
                return;
            }
            for _ in 0..input.below(6) {
                let value =
                    input.pick(&[0x10, 0x40, 0x20, 0xd0, 0xe8, 0x50, 0x70, 0x90, 0x98, 0xff, 0]);
                let value = if value == 0 { input.u8() } else { value };
                ground.wiring.mmio.write(at, &[value]);
            }
            return;
        }
        // A command in memory: control, length, address, most significant byte first.
        let at = input.address(0xc_0000);
        let control = u32::from(input.pick(&[0u16, 0x19, 0x20, 0x21, 5, 0xffff])) << 16
            | u32::from(input.u8() & 0x1f);
        let mut command = control.to_be_bytes().to_vec();
        command.extend((input.number() as u32).to_be_bytes());
        command.extend(input.address(0xc_0000).to_be_bytes());
        let _ = ground.wiring.memory.write(at, &command);
        ground.wiring.pio.write(0x514, &((at >> 32) as u32).to_be_bytes());
        ground.wiring.pio.write(0x518, &(at as u32).to_be_bytes());
    }
}

pub(super) fn firmware(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(crate::ground::RAM);
        let mut items = fw_cfg::Items::default();
        items.set(fw_cfg::key::CPUS, &[4, 0]);
        items.file("etc/one", *b"0123456789").expect("a name");
        items.file("etc/large", vec![7; 100_000]).expect("a name");
        fw_cfg::build(items, &mut ground.wiring);
        let store = Arc::new(Memory::new(Shape::of_bytes(FLASH_SIZE as u64)));
        let contents = vec![0x5a; FLASH_SIZE];
        store.write(0, &contents).expect("a disk");
        let config = flash::Config { at: FLASH, contents, store: Some(store) };
        flash::build(config, &mut ground.wiring);
        Firmware(ground)
    });
}
