//! A bus of APICs that remembers whom it woke.
#![allow(dead_code, reason = "each test file uses a part")]

use device::{Msi, MsiSink, fake::FakeTime};
use local_apic::{ApicBus, LocalApic, Parts, Pending, TscClock};
use std::sync::{Arc, Mutex};

/// Three ticks of the TSC for each nanosecond.
pub struct Tsc;

impl TscClock for Tsc {
    fn tsc_to_ns(&self, _: u32, tsc: u64) -> u64 {
        tsc.div_ceil(3)
    }
}

pub struct Board {
    pub bus: Arc<ApicBus>,
    pub time: FakeTime,
    pub woken: Arc<Mutex<Vec<u32>>>,
    pub ended: Arc<Mutex<Vec<u8>>>,
}

pub const EOI: u64 = 0xb0;
pub const SVR: u64 = 0xf0;

impl Board {
    /// All APICs enabled by software, unlike after reset.
    pub fn new(vcpus: u32) -> Self {
        let board = Self::fresh(vcpus);
        for apic in board.bus.apics() {
            put(apic, SVR, 0x1ff);
        }
        board
    }

    pub fn fresh(vcpus: u32) -> Self {
        let time = FakeTime::default();
        let (woken, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let to = woken.clone();
        let bus = ApicBus::new(Parts {
            vcpus,
            clock: Arc::new(time.clone()),
            timers: Arc::new(time.clone()),
            tsc: Arc::new(Tsc),
            wake: Box::new(move |id| to.lock().unwrap().push(id)),
        });
        let to = ended.clone();
        bus.on_eoi(Box::new(move |vector| to.lock().unwrap().push(vector)));
        Self { bus, time, woken, ended }
    }

    pub fn apic(&self, id: u32) -> &LocalApic {
        self.bus.apic(id).unwrap()
    }

    /// A message to one APIC, or to a logical destination.
    pub fn msi(&self, dest: u64, data: u32) {
        self.bus.send(Msi { address: 0xfee0_0000 | dest << 12, data });
    }

    pub fn woken(&self) -> Vec<u32> {
        std::mem::take(&mut self.woken.lock().unwrap())
    }
}

pub fn put(apic: &LocalApic, offset: u64, value: u32) {
    apic.mmio_write(offset, &value.to_le_bytes());
}

pub fn get(apic: &LocalApic, offset: u64) -> u32 {
    let mut data = [0; 4];
    apic.mmio_read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Takes the next interrupt of the APIC's own.
pub fn take(apic: &LocalApic) -> Option<u8> {
    assert_eq!(apic.pending(false), apic.pending(false), "asking changes nothing");
    let what = apic.pending(false)?;
    assert_eq!(what, Pending::Interrupt);
    apic.ack(what, || None)
}
