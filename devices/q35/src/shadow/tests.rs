use super::*;
use crate::{Config, build};
use device::fake::{FakeTime, Recorder, restore, save, wiring};
use guest_mem::GuestMem;
use proptest::prelude::*;

struct Board {
    wiring: Wiring,
}

fn board(rom: bool) -> Board {
    let mut wiring = wiring(&FakeTime::default(), &Arc::new(Recorder::default()));
    let ram = Memfd::new(1 << 20).unwrap();
    ram.write_at(AREA.start, &vec![0xaa; 0x4_0000]).unwrap();
    let mem = Memfd::new(0x4_0000).unwrap();
    mem.write_at(0, &vec![0x55; 0x4_0000]).unwrap();
    mem.write_at(0x3_fff0, &[0xea]).unwrap();
    let config = Config {
        ecam: 0xb000_0000..0xc000_0000,
        window: 0xc000_0000..0xe000_0000,
        pm_base: 0x600,
        ram,
        rom: rom.then(|| Rom { mem, offset: 0x2_0000, len: 0x2_0000 }),
    };
    build(&config, &mut wiring);
    Board { wiring }
}

impl Board {
    fn pam(&self, register: usize, value: u8) {
        self.wiring.mmio.write(0xb000_0000 + (0x90 + register) as u64, &[value]);
    }

    /// As a vCPU does.
    fn read(&self, at: u64) -> u8 {
        let (memory, mut byte) = (&self.wiring.memory, [0]);
        if memory.read(at, &mut byte).is_err() {
            self.wiring.mmio.read(at, &mut byte);
        }
        byte[0]
    }

    fn write(&self, at: u64, value: u8) {
        let layout = self.wiring.memory.layout();
        if layout.find(at).is_some_and(|(region, _)| region.slot.writable) {
            GuestMem::write(&self.wiring.memory, at, &[value]).unwrap();
        } else {
            self.wiring.mmio.write(at, &[value]);
        }
    }
}

#[test]
fn firmware_starts_from_rom_and_moves_to_ram() {
    let board = board(true);
    assert_eq!([0xf_fff0, 0xe_0000, 0xd_ffff].map(|at| board.read(at)), [0xea, 0x55, 0xff]);
    board.write(0xf_fff0, 1);
    assert_eq!(board.read(0xf_fff0), 0xea, "ROM");
    board.pam(0, 0x20);
    board.write(0xf_fff0, 0xeb);
    assert_eq!(board.read(0xf_fff0), 0xea, "written to the RAM below");
    board.pam(0, 0x30);
    assert_eq!((board.read(0xf_fff0), board.read(0xf_0000)), (0xeb, 0xaa));
    board.write(0xf_0000, 2);
    board.pam(0, 0x10);
    board.write(0xf_0000, 3);
    assert_eq!(board.read(0xf_0000), 2, "locked");
}

#[test]
fn each_half_of_a_register_is_a_segment() {
    let board = board(false);
    for at in AREA.step_by(0x4000) {
        assert_eq!(board.read(at), 0xaa, "open from the start");
    }
    board.pam(2, 0x03);
    assert_eq!(
        [0xc_8000, 0xc_bfff, 0xc_c000, 0xc_7fff].map(|at| board.read(at)),
        [0xaa, 0xaa, 0xff, 0xaa]
    );
    board.pam(6, 0x30);
    assert_eq!([0xe_8000, 0xe_c000, 0xe_ffff].map(|at| board.read(at)), [0xff, 0xaa, 0xaa]);
}

#[test]
fn a_reset_and_a_restore_lay_memory_out_again() {
    let board = board(true);
    let start = save(&board.wiring);
    board.pam(0, 0x30);
    let moved = save(&board.wiring);
    restore(&board.wiring, &start).unwrap();
    assert_eq!(board.read(0xf_fff0), 0xea);
    restore(&board.wiring, &moved).unwrap();
    assert_eq!(board.read(0xf_fff0), 0xaa);
    board.wiring.devices.iter().for_each(|device| device.reset());
    assert_eq!(board.read(0xf_fff0), 0xea);
}

#[test]
fn ram_moves_whatever_of_it_is_seen() {
    let first = board(true);
    first.pam(0, 0x30);
    first.pam(1, 0x33);
    for at in [0xc_0000, 0xc_4000, 0xf_0000] {
        first.write(at, 0x77);
    }
    // Hidden below the ROM, and open for reading only.
    first.pam(0, 0);
    first.pam(1, 0x31);
    let second = board(true);
    second.pam(1, 0x33);
    assert_eq!(second.read(0xc_0000), 0xaa);
    restore(&second.wiring, &save(&first.wiring)).unwrap();
    assert_eq!([0xc_0000, 0xc_4000, 0xf_0000].map(|at| second.read(at)), [0x77, 0x77, 0x55]);
    second.write(0xc_0000, 1);
    assert_eq!(second.read(0xc_0000), 0x77, "locked");
    second.pam(0, 0x30);
    assert_eq!((second.read(0xf_0000), second.read(0xf_0001)), (0x77, 0xaa));
}

#[test]
fn system_management_is_taken() {
    let board = board(true);
    let mut data = [0; 4];
    board.wiring.pio.read(0x630, &mut data);
    assert_eq!(data, [0x20, 0, 0, 0]);
    board.wiring.mmio.write(0xb000_009d, &[0x4a]);
    board.wiring.mmio.read(0xb000_009d, &mut data[..1]);
    assert_eq!(data[0], 2);
}

proptest! {
    /// Whatever is written to the registers, each address is what its bits say.
    #[test]
    fn memory_follows_the_registers(writes in prop::collection::vec((0usize..9, any::<u8>()), 1..40)) {
        let board = board(true);
        let mut registers = [0u8; 7];
        for (register, value) in writes {
            board.pam(register, value);
            if let Some(known) = registers.get_mut(register) {
                *known = value & if register == 0 { 0x30 } else { 0x33 };
            }
            for at in AREA.step_by(0x4000) {
                let bits = access(&registers, segment_of(at));
                let want = match (bits & READ, at) {
                    (0, 0xe_0000..) => 0x55,
                    (0, _) => 0xff,
                    _ => 0xaa,
                };
                prop_assert_eq!(board.read(at), want, "{:#x}", at);
            }
        }
    }
}
