//! A board with a chipset and nothing else.
#![allow(dead_code, reason = "each test file uses a part")]

use byte_stream::Output;
use chipset::{Chipset, Config};
use device::{
    Wiring,
    fake::{self, FakeTime, Recorder, wiring},
};
use saved_state::{Error, Part};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Text(Mutex<Vec<u8>>);

impl Output for Text {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

pub struct Board {
    pub wiring: Wiring,
    pub chipset: Chipset,
    pub time: FakeTime,
    pub sink: Arc<Recorder>,
    text: Arc<Text>,
}

impl Board {
    pub fn new() -> Self {
        let (mut time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
        time.epoch_ns = 1_700_000_000_000_000_000;
        let text = Arc::new(Text::default());
        let mut wiring = wiring(&time, &sink);
        let config = Config {
            memory_low: 512 << 20,
            debug_console: Some(text.clone()),
            ..Config::default()
        };
        let chipset = chipset::build(&config, &mut wiring);
        Self { wiring, chipset, time, sink, text }
    }

    pub fn out(&self, port: u16, value: u8) {
        self.wiring.pio.write(port, &[value]);
    }

    pub fn input(&self, port: u16) -> u8 {
        let mut data = [0];
        self.wiring.pio.read(port, &mut data);
        data[0]
    }

    pub fn ioapic(&self, register: u8, value: u32) {
        self.wiring.mmio.write(chipset::ioapic::ADDRESS, &[register, 0, 0, 0]);
        self.wiring.mmio.write(chipset::ioapic::ADDRESS + 0x10, &value.to_le_bytes());
    }

    /// Unmasks a pin as an edge.
    pub fn route(&self, pin: u8, vector: u8) {
        self.ioapic(0x10 + 2 * pin, vector.into());
    }

    pub fn text(&self) -> Vec<u8> {
        self.text.0.lock().unwrap().clone()
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
