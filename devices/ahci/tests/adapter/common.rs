//! A board with an adapter, and a driver of it.

use ahci::{Ahci, Plug};
use device::{
    Wiring,
    fake::{FakeTime, Recorder, wiring},
};
use disk::{Disk, Memory, Shape};
use guest_mem::{Change, Memfd, Slot};
use pci::PciHost;
use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender},
    },
    time::{Duration, Instant},
};

pub const RAM: u64 = 1 << 20;
pub const ECAM: u64 = 0xb000_0000;
pub const WINDOW: u64 = 0xc000_0000;
pub const LIST: u64 = 0x1000;
pub const RECEIVED: u64 = 0x2000;
pub const TABLE: u64 = 0x3000;
pub const DATA: u64 = 0x1_0000;
pub const DISK: u64 = 1 << 20;
/// The adapter's command register, and bits of it.
pub const COMMAND: u64 = SPACE + 4;
/// Its configuration space.
pub const SPACE: u64 = ECAM + (1 << 15);
/// Registers of a port.
pub const SACT: u64 = 0x34;
pub const CI: u64 = 0x38;
pub const MEMORY: u8 = 2;
pub const MASTER: u8 = 4;

/// A disk at port 0, a CD drive at port 1, nothing at the others.
pub struct Board<D = Memory> {
    pub wiring: Wiring,
    _pci: Arc<PciHost>,
    pub ahci: Arc<Ahci>,
    pub disk: Arc<D>,
    pub pin: Arc<Recorder>,
    pub sink: Arc<Recorder>,
}

pub fn board() -> Board {
    board_with(Arc::new(Memory::new(Shape::of_bytes(DISK))))
}

pub fn board_with<D: Disk + 'static>(disk: Arc<D>) -> Board<D> {
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
    Board { wiring, _pci: pci, ahci, disk, pin, sink }
}

impl<D> Board<D> {
    pub fn base(&self) -> u64 {
        let mut bar = [0; 4];
        self.wiring.mmio.read(ECAM + (1 << 15) + 0x24, &mut bar);
        u64::from(u32::from_le_bytes(bar) & !0xf)
    }

    pub fn get(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        self.wiring.mmio.read(self.base() + register, &mut value);
        u32::from_le_bytes(value)
    }

    pub fn put(&self, register: u64, value: u32) {
        self.wiring.mmio.write(self.base() + register, &value.to_le_bytes());
    }

    pub fn port(&self, port: u64, register: u64) -> u32 {
        self.get(0x100 + 0x80 * port + register)
    }

    pub fn set(&self, port: u64, register: u64, value: u32) {
        self.put(0x100 + 0x80 * port + register, value);
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.wiring.memory.write(at, bytes).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.wiring.memory.read(at, &mut bytes).unwrap();
        bytes
    }

    /// As a driver does: interrupts on, lists, received structures, start.
    pub fn start(&self, port: u64) {
        self.put(4, 1 << 31 | 2);
        self.set(port, 0, LIST as u32);
        self.set(port, 8, RECEIVED as u32);
        self.set(port, 0x14, 0x7dc0_00ff);
        self.set(port, 0x18, 0x17);
    }

    /// Issues a command in slot 3 with these regions, and waits for its end: status and error.
    pub fn command(
        &self,
        port: u64,
        fis: &[u8],
        packet: &[u8],
        flags: u32,
        len: &[u32],
    ) -> (u8, u8) {
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

    pub fn wait(&self, done: impl Fn() -> bool) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < limit, "the drive hangs");
            std::thread::yield_now();
        }
    }
}

/// READ or WRITE DMA EXT, or another with the same fields.
pub fn fis(command: u8, lba: u32, count: u16) -> Vec<u8> {
    let [a, b, c, d] = lba.to_le_bytes();
    let [n, m] = count.to_le_bytes();
    vec![0x27, 0x80, command, 0, a, b, c, 0x40, d, 0, 0, 0, n, m]
}

/// A disk of sevens, whose reads tell that they begin, and then wait to be let go.
pub struct Slow {
    begun: Mutex<Sender<()>>,
    go: Mutex<Receiver<()>>,
}

impl Slow {
    pub fn new(begun: Sender<()>, go: Receiver<()>) -> Arc<Self> {
        Arc::new(Self { begun: begun.into(), go: go.into() })
    }
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
