//! A board with a bus and functions that answer with where they were asked.
#![allow(dead_code, reason = "each test file uses a part")]

use device::{
    Device, LineRef, Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use pci::{
    Bar, BarKind, Capability, Config, Function, FunctionConfig, MsixConfig, PciHost, Requester,
};
use saved_state::{Error, Part};
use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

pub const ECAM: u64 = 0xe000_0000;
pub const WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;

/// BAR, offset, bytes.
type Access = (usize, u64, Vec<u8>);

pub struct Echo {
    slot: u8,
    pub requester: Arc<Requester>,
    written: Mutex<Vec<Access>>,
    windows: Mutex<Vec<(u32, Vec<u8>)>>,
}

impl Echo {
    pub fn written(&self) -> Vec<Access> {
        self.written.lock().unwrap().clone()
    }
    pub fn windows(&self) -> Vec<(u32, Vec<u8>)> {
        self.windows.lock().unwrap().clone()
    }
}

impl Function for Echo {
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let word = u64::from(self.slot) << 24 | (bar as u64) << 20 | offset;
        data.iter_mut().zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        let mut written = self.written.lock().unwrap();
        if written.len() < 16 {
            written.push((bar, offset, data.to_vec()));
        }
    }
    fn read_window(&self, capability: &[u8], data: &mut [u8; 4]) {
        data.copy_from_slice(&capability[4..8]);
    }
    fn write_window(&self, capability: &[u8], data: &[u8]) {
        let field = u32::from_le_bytes(capability[4..8].try_into().unwrap());
        let mut windows = self.windows.lock().unwrap();
        if windows.len() < 16 {
            windows.push((field, data.to_vec()));
        }
    }
}

pub struct Board {
    pub wiring: Wiring,
    pub pci: Arc<PciHost>,
    pub functions: Vec<Arc<Echo>>,
    pub lines: Vec<Arc<Recorder>>,
    pub sink: Arc<Recorder>,
}

fn function() -> FunctionConfig {
    FunctionConfig {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_80_00,
        bars: vec![
            Bar { index: 0, kind: BarKind::Memory32, prefetchable: false, size: 0x4000 },
            Bar { index: 1, kind: BarKind::Io, prefetchable: false, size: 32 },
            Bar { index: 4, kind: BarKind::Memory64, prefetchable: true, size: 0x1_0000 },
        ],
        msix: Some(MsixConfig { vectors: 2, bar: 0, table: 0x1000, pba: 0x2000 }),
        capabilities: vec![Capability {
            id: 9,
            body: vec![0; 10],
            writable: vec![0, 0, 0xff, 0xff, 0xff, 0xff],
            window: true,
        }],
        interrupt_pin: true,
        ..FunctionConfig::default()
    }
}

impl Board {
    /// With so many functions, their BARs placed.
    pub fn new(functions: u8) -> Self {
        let board = Self::without_firmware(functions);
        board.pci.assign();
        board
    }

    pub fn without_firmware(functions: u8) -> Self {
        let sink = Arc::new(Recorder::default());
        let mut wiring = wiring(&FakeTime::default(), &sink);
        let lines: Vec<_> = (0..24).map(|_| Arc::new(Recorder::default())).collect();
        wiring.irqs = lines.iter().map(|line| line.clone() as LineRef).collect();
        let config = Config { ecam: ECAM..ECAM + (256 << 20), window: WINDOW };
        let pci = pci::build(&config, &mut wiring);
        let add = |n| {
            pci.add(&function(), &wiring, |requester| {
                let (written, windows) = Default::default();
                Arc::new(Echo { slot: n + 1, requester, written, windows })
            })
        };
        let functions = (0..functions).map(add).collect();
        Self { wiring, pci, functions, lines, sink }
    }

    pub fn pci(&self) -> &dyn Device {
        &*self.pci
    }

    pub fn read(&self, address: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.wiring.mmio.read(address, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        self.wiring.mmio.write(address, data);
    }

    pub fn config(&self, slot: u64, at: u64) -> u32 {
        self.read(ECAM + (slot << 15) + at, 4) as u32
    }

    pub fn config_write(&self, slot: u64, at: u64, value: u32) {
        self.write(ECAM + (slot << 15) + at, &value.to_le_bytes());
    }

    fn select(&self, slot: u32, at: u32) {
        self.wiring.pio.write(0xcf8, &(1 << 31 | slot << 11 | at).to_le_bytes());
    }

    pub fn port_config(&self, slot: u32, at: u32) -> u32 {
        self.select(slot, at);
        let mut data = [0; 4];
        self.wiring.pio.read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn port_config_write(&self, slot: u32, at: u32, value: u32) {
        self.select(slot, at);
        self.wiring.pio.write(0xcfc, &value.to_le_bytes());
    }

    pub fn save(&self) -> Vec<Part> {
        fake::save(&self.wiring)
    }

    pub fn restore(&self, parts: &[Part]) -> Result<(), Error> {
        fake::restore(&self.wiring, parts)
    }

    pub fn reset(&self) {
        self.wiring.devices.iter().for_each(|device| device.reset());
    }
}
