//! The adapter as a driver uses it, and as a hostile guest does.

use ahci::{Ahci, Plug};
use device::{
    Device, Wiring,
    fake::{FakeTime, Recorder, restore, save, wiring},
};
use disk::{Disk, Memory, Shape};
use guest_mem::{Change, Memfd, Slot};
use pci::PciHost;
use proptest::prelude::*;
use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

const RAM: u64 = 1 << 20;
const ECAM: u64 = 0xb000_0000;
const WINDOW: u64 = 0xc000_0000;
const LIST: u64 = 0x1000;
const RECEIVED: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const DATA: u64 = 0x1_0000;
const DISK: u64 = 1 << 20;
/// The adapter's command register, and bits of it.
const COMMAND: u64 = ECAM + (1 << 15) + 4;
const MEMORY: u8 = 2;
const MASTER: u8 = 4;

/// A disk at port 0, a CD drive at port 1, nothing at the others.
struct Board<D = Memory> {
    wiring: Wiring,
    _pci: Arc<PciHost>,
    ahci: Arc<Ahci>,
    disk: Arc<D>,
    pin: Arc<Recorder>,
}

fn board() -> Board {
    board_with(Arc::new(Memory::new(Shape::of_bytes(DISK))))
}

fn board_with<D: Disk + 'static>(disk: Arc<D>) -> Board<D> {
    let sink = Arc::new(Recorder::default());
    let mut wiring = wiring(&FakeTime::default(), &sink);
    let pin = Arc::new(Recorder::default());
    wiring.irqs = (0..24).map(|_| pin.clone() as device::LineRef).collect();
    let mem = Memfd::new(RAM).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
    wiring.memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
    let config = pci::Config { ecam: ECAM..ECAM + (1 << 20), window: WINDOW..WINDOW + (1 << 28) };
    let pci = pci::build(&config, &mut wiring);
    let disc = Memory::new(Shape::of_bytes(64 * 2048));
    disc.write(16 * 2048, b"\x01CD001").unwrap();
    let plugs = vec![
        Plug::Disk { disk: disk.clone(), serial: "S1".into() },
        Plug::Cd(Some(Arc::new(disc))),
    ];
    let ahci = ahci::build(plugs, &pci, &mut wiring).unwrap();
    pci.assign();
    wiring.mmio.write(COMMAND, &[MEMORY | MASTER, 0]);
    wiring.devices.iter().for_each(|device| device.resume());
    Board { wiring, _pci: pci, ahci, disk, pin }
}

impl<D> Board<D> {
    fn base(&self) -> u64 {
        let mut bar = [0; 4];
        self.wiring.mmio.read(ECAM + (1 << 15) + 0x24, &mut bar);
        u64::from(u32::from_le_bytes(bar) & !0xf)
    }

    fn get(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        self.wiring.mmio.read(self.base() + register, &mut value);
        u32::from_le_bytes(value)
    }

    fn put(&self, register: u64, value: u32) {
        self.wiring.mmio.write(self.base() + register, &value.to_le_bytes());
    }

    fn port(&self, port: u64, register: u64) -> u32 {
        self.get(0x100 + 0x80 * port + register)
    }

    fn set(&self, port: u64, register: u64, value: u32) {
        self.put(0x100 + 0x80 * port + register, value);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.wiring.memory.write(at, bytes).unwrap();
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.wiring.memory.read(at, &mut bytes).unwrap();
        bytes
    }

    /// As a driver does: interrupts on, lists, received structures, start.
    fn start(&self, port: u64) {
        self.put(4, 1 << 31 | 2);
        self.set(port, 0, LIST as u32);
        self.set(port, 8, RECEIVED as u32);
        self.set(port, 0x14, 0x7dc0_00ff);
        self.set(port, 0x18, 0x17);
    }

    /// Issues a command in slot 3 with these regions, and waits for its end: status and error.
    fn command(&self, port: u64, fis: &[u8], packet: &[u8], flags: u32, len: &[u32]) -> (u8, u8) {
        let mut header = (5 | flags | (len.len() as u32) << 16).to_le_bytes().to_vec();
        header.extend(0u32.to_le_bytes());
        header.extend(TABLE.to_le_bytes());
        self.write(LIST + 3 * 32, &header);
        let mut table = vec![0; 0x80];
        table[..fis.len()].copy_from_slice(fis);
        table[0x40..0x40 + packet.len()].copy_from_slice(packet);
        let mut at = DATA;
        for len in len {
            table.extend(at.to_le_bytes());
            table.extend(0u32.to_le_bytes());
            table.extend((len - 1).to_le_bytes());
            at += u64::from(*len);
        }
        self.write(TABLE, &table);
        self.set(port, 0x38, 1 << 3);
        self.wait(|| self.port(port, 0x20) & 0x80 == 0);
        let tfd = self.port(port, 0x20);
        (tfd as u8, (tfd >> 8) as u8)
    }

    fn wait(&self, done: impl Fn() -> bool) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < limit, "the drive hangs");
            std::thread::yield_now();
        }
    }
}

/// READ or WRITE DMA EXT, or another with the same fields.
fn fis(command: u8, lba: u32, count: u16) -> Vec<u8> {
    let [a, b, c, d] = lba.to_le_bytes();
    let [n, m] = count.to_le_bytes();
    vec![0x27, 0x80, command, 0, a, b, c, 0x40, d, 0, 0, 0, n, m]
}

const WRITE: u32 = 1 << 6;

#[test]
fn drives_are_found_by_their_signatures() {
    let board = board();
    assert_eq!((board.get(0x0c), board.get(0) & 0x1f), (0x3f, 5));
    assert_eq!([0, 1, 2].map(|port| board.port(port, 0x28)), [0x113, 0x113, 0]);
    assert_eq!([0, 1, 2].map(|port| board.port(port, 0x24)), [0x101, 0xeb14_0101, u32::MAX]);
    board.set(0, 0x2c, 1);
    assert_eq!((board.port(0, 0x28), board.port(0, 0x20)), (0, 0x7f));
    board.set(0, 0x2c, 0);
    assert_eq!((board.port(0, 0x28), board.port(0, 0x20)), (0x113, 0x150));
    assert_eq!(board.port(0, 0x30), 1 << 26, "a device was found");
}

#[test]
fn a_disk_is_identified_read_and_written() {
    let board = board();
    board.start(0);
    assert_eq!(board.command(0, &fis(0xec, 0, 0), &[], 0, &[512]), (0x50, 0));
    let identity = board.read(DATA, 512);
    assert_eq!(identity.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(&identity[20..24], b"1S  ", "the serial number, bytes swapped");
    assert_eq!(identity[200..204], [0, 8, 0, 0], "2048 sectors");
    assert_eq!(board.read(LIST + 3 * 32 + 4, 4), [0, 2, 0, 0], "512 bytes were moved");
    assert_eq!(
        (board.read(RECEIVED + 0x20, 1), board.read(RECEIVED + 0x40, 1)),
        (vec![0x5f], vec![0x34])
    );
    assert!(board.pin.level());
    board.set(0, 0x10, u32::MAX);
    board.put(8, u32::MAX);
    assert!(!board.pin.level());

    let data: Vec<u8> = (0..3 * 512).map(|i| ((i * 7) >> 3) as u8).collect();
    board.write(DATA, &data);
    assert_eq!(board.command(0, &fis(0x35, 5, 3), &[], WRITE, &[512, 1000, 24]), (0x50, 0));
    let mut stored = vec![0; data.len()];
    board.disk.read(5 * 512, &mut stored).unwrap();
    assert_eq!(stored, data);
    board.write(DATA, &vec![0; data.len()]);
    assert_eq!(board.command(0, &fis(0x25, 5, 3), &[], 0, &[1536]), (0x50, 0));
    assert_eq!(board.read(DATA, 1536), data);
    assert_eq!(board.command(0, &fis(0xea, 0, 0), &[], 0, &[]), (0x50, 0));
    assert_eq!(board.disk.flushes(), 1);
}

#[test]
fn what_fails_stops_the_port_until_it_is_started_again() {
    let board = board();
    board.start(0);
    assert_eq!(board.command(0, &fis(0x25, 2047, 2), &[], 0, &[1024]), (0x51, 0x10));
    assert_eq!(board.port(0, 0x10) & 1 << 30, 1 << 30);
    assert_eq!(board.port(0, 0x38), 1 << 3, "not done");
    board.set(0, 0x18, 0x16);
    board.wait(|| board.port(0, 0x18) & 1 << 15 == 0);
    assert_eq!(board.port(0, 0x38), 0);
    board.set(0, 0x18, 0x17);
    assert_eq!(board.command(0, &fis(0x25, 2047, 1), &[], 0, &[512]), (0x50, 0));
    // Fewer bytes of memory than of data.
    assert_eq!(board.command(0, &fis(0x25, 0, 2), &[], 0, &[512]), (0x51, 4));
}

#[test]
fn a_cd_is_read_by_packets() {
    let board = board();
    board.start(1);
    let packet = |packet: &[u8], len: &[u32]| {
        board.set(1, 0x18, 0x16);
        board.wait(|| board.port(1, 0x18) & 1 << 15 == 0);
        board.set(1, 0x18, 0x17);
        board.command(1, &[0x27, 0x80, 0xa0, 1], packet, 1 << 5, len)
    };
    assert_eq!(packet(&[0x25], &[8]), (0x51, 0x64), "a new disc");
    assert_eq!(packet(&[0x25], &[8]), (0x50, 0));
    assert_eq!(board.read(DATA, 8), [0, 0, 0, 63, 0, 0, 8, 0]);
    assert_eq!(packet(&[0x28, 0, 0, 0, 0, 16, 0, 0, 1], &[2048]), (0x50, 0));
    assert_eq!(board.read(DATA, 6), *b"\x01CD001");
    assert_eq!(packet(&[0x28, 0, 0, 0, 0, 64, 0, 0, 1], &[2048]), (0x51, 0x54));
    assert_eq!(board.command(1, &fis(0xec, 0, 0), &[], 0, &[512]).0, 0x51, "not an ATA disk");
}

#[test]
fn commands_wait_while_the_machine_is_paused_and_go_on_in_another() {
    let board = board();
    board.start(0);
    board.ahci.pause();
    board.write(DATA, &[0x77; 512]);
    // Without waiting for its end, which does not come.
    let saved = std::thread::scope(|scope| {
        let command = scope.spawn(|| board.command(0, &fis(0x35, 1, 1), &[], WRITE, &[512]));
        board.wait(|| board.port(0, 0x38) != 0);
        let saved = save(&board.wiring);
        board.ahci.resume();
        assert_eq!(command.join().unwrap(), (0x50, 0));
        saved
    });
    let other = self::board();
    other.ahci.pause();
    other.write(0, &board.read(0, DATA as usize + 512));
    restore(&other.wiring, &saved).unwrap();
    assert_eq!(other.port(0, 0x38), 1 << 3);
    other.ahci.resume();
    other.wait(|| other.port(0, 0x38) == 0);
    let mut stored = [0; 512];
    other.disk.read(512, &mut stored).unwrap();
    assert_eq!(stored, [0x77; 512]);
}

/// A disk of sevens, whose reads tell that they begin, and then wait to be let go.
struct Slow {
    begun: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
}

impl Disk for Slow {
    fn shape(&self) -> Shape {
        Shape::of_bytes(DISK)
    }

    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), disk::Error> {
        self.begun.lock().unwrap().send(()).unwrap();
        self.go.lock().unwrap().recv().unwrap();
        data.fill(7);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), disk::Error> {
        Ok(())
    }

    fn flush(&self) -> Result<(), disk::Error> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<(), disk::Error> {
        Ok(())
    }
}

#[test]
fn memory_is_left_alone_once_the_guest_says_so() {
    let ((begins, begun), (go, gone)) = (channel(), channel());
    let board = board_with(Arc::new(Slow { begun: begins.into(), go: gone.into() }));
    board.start(0);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| board.command(0, &fis(0x25, 0, 1), &[], 0, &[512]));
        begun.recv().unwrap();
        let forbids = scope.spawn(|| {
            board.wiring.mmio.write(COMMAND, &[MEMORY, 0]);
            board.read(DATA, 512)
        });
        // Time to return too early.
        std::thread::sleep(Duration::from_millis(200));
        go.send(()).unwrap();
        let seen = forbids.join().unwrap();
        assert_eq!(reads.join().unwrap(), (0x50, 0));
        assert!(board.read(DATA, 512) == seen, "memory was written later");
    });
    // What is issued now waits.
    board.set(0, 0x38, 1 << 3);
    assert_eq!(board.port(0, 0x20) & 0x80, 0x80);
    assert!(begun.try_recv().is_err());
    go.send(()).unwrap();
    board.wiring.mmio.write(COMMAND, &[MEMORY | MASTER, 0]);
    board.wait(|| board.port(0, 0x38) == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Noise in registers, lists and tables: everything is answered, and the port can be started
    /// again and serves.
    #[test]
    fn noise_is_survived(
        registers in prop::collection::vec((0u64..0x300, any::<u32>()), 0..40),
        memory in prop::collection::vec((0u64..0x4000, prop::collection::vec(any::<u8>(), 1..64)), 0..40),
        commands in prop::collection::vec(
            (0u64..2, any::<[u8; 16]>(), any::<[u8; 12]>(), 0u32..0xffff, 0usize..4, any::<bool>()), 1..20),
    ) {
        let board = board();
        for (register, value) in &registers {
            board.put(register & !3, *value);
        }
        for (at, bytes) in &memory {
            board.write(*at, bytes);
        }
        (0..6).for_each(|port| board.set(port, 0x38, u32::MAX));
        // Nothing hangs: a stop comes to an end.
        board.put(4, 1 << 31 | 1);
        board.wait(|| board.get(4) & 1 == 0);
        for (port, mut fis, packet, flags, regions, tame) in commands {
            board.set(port, 0x18, 0x16);
            board.wait(|| board.port(port, 0x18) & 1 << 15 == 0);
            board.start(port);
            if tame {
                fis[..2].copy_from_slice(&[0x27, 0x80]);
                fis[2] = [0x25, 0x35, 0xec, 0xa0, 0xa1, 0x06, 0xc8, 0xef][usize::from(fis[2] & 7)];
                fis[6..12].copy_from_slice(&[0, 0x40, 0, 0, 0, 0]);
            }
            let lengths = vec![4096; regions];
            board.command(port, &fis, &packet, flags & 0xffe0, &lengths);
            board.ahci.pause();
            let saved = save(&board.wiring);
            restore(&board.wiring, &saved).unwrap();
            board.ahci.resume();
        }
        board.put(4, 1 << 31 | 1);
        board.wait(|| board.get(4) & 1 == 0);
        board.start(0);
        prop_assert_eq!(board.command(0, &fis(0x25, 0, 1), &[], 0, &[512]), (0x50, 0));
    }
}
