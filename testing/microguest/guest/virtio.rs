//! Drivers' side of virtio 1.2 over PCI: negotiation (3.1.1, 4.1) and split queues (2.7).

use crate::{
    apic,
    hardware::{Vector, claim_page, load, store},
    ioapic,
    numbers::same,
    pci::Function,
};

const VENDOR: u16 = 0x1af4;
/// Device ID of a modern device of type 0 (4.1.2).
const MODERN: u16 = 0x1040;
const VENDOR_SPECIFIC: u32 = 9;
const VERSION_1: u32 = 1;
const ACKNOWLEDGE_DRIVER: u8 = 3;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 0x40;

/// Registers of the common configuration (4.1.4.3).
mod common {
    pub const DEVICE_SELECT: u64 = 0;
    pub const DEVICE_FEATURES: u64 = 4;
    pub const DRIVER_SELECT: u64 = 8;
    pub const DRIVER_FEATURES: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const STATUS: u64 = 20;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY: u64 = 30;
    pub const DESCRIPTORS: u64 = 32;
    pub const AVAILABLE: u64 = 40;
    pub const USED: u64 = 48;
}

/// How a device's interrupts come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interrupts {
    Messages,
    Pin,
}

pub struct Device {
    common: u64,
    isr: u64,
    pub config: u64,
    notify: u64,
    multiplier: u64,
    interrupts: Interrupts,
    vector: Vector,
    /// Interrupts whose ends the local APIC has yet to hear of.
    owed: u32,
}

/// Whether there is a device of a type.
pub fn is_there(kind: u16) -> bool {
    Function::find(VENDOR, MODERN + kind).is_some()
}

impl Device {
    /// Resets the first device of a type and takes it, without any feature but what `wanted`
    /// has of the lower 32. All its interrupts are one vector of one processor.
    pub fn take(
        kind: u16,
        wanted: u32,
        interrupts: Interrupts,
        vector: u8,
        processor: u8,
    ) -> Option<Self> {
        let function = Function::find(VENDOR, MODERN + kind)?;
        function.enable();
        let mut device = Self {
            common: 0,
            isr: 0,
            config: 0,
            notify: 0,
            multiplier: 0,
            interrupts,
            vector: Vector::new(vector),
            owed: 0,
        };
        let ours = |(_, head): &(u8, u32)| head & 0xff == VENDOR_SPECIFIC;
        for (at, head) in function.capabilities().filter(ours) {
            let place =
                function.bar(function.read(at + 4) as u8) + u64::from(function.read(at + 8));
            match head >> 24 {
                1 => device.common = place,
                2 => {
                    device.notify = place;
                    device.multiplier = function.read(at + 16).into();
                }
                3 => device.isr = place,
                4 => device.config = place,
                _ => {}
            }
        }
        device.set_status(0);
        while device.status() != 0 {}
        device.set_status(ACKNOWLEDGE_DRIVER);
        for (half, features) in [(0u32, wanted), (1, VERSION_1)] {
            device.put(common::DEVICE_SELECT, half);
            let offered: u32 = device.get(common::DEVICE_FEATURES);
            same("features of a device of type", kind, offered & features, features);
            device.put(common::DRIVER_SELECT, half);
            device.put(common::DRIVER_FEATURES, features);
        }
        device.set_status(ACKNOWLEDGE_DRIVER | FEATURES_OK);
        let agreed = device.status() & FEATURES_OK;
        same("agreement with a device of type", kind, agreed, FEATURES_OK);
        match interrupts {
            Interrupts::Messages => function.use_messages(2, vector, processor),
            Interrupts::Pin => ioapic::lead(function.line(), vector, processor, true),
        }
        device.put(common::CONFIG_VECTOR, 0u16);
        Some(device)
    }

    fn get<T: Copy>(&self, register: u64) -> T {
        load(self.common + register)
    }

    fn put<T: Copy>(&self, register: u64, value: T) {
        store(self.common + register, value);
    }

    fn status(&self) -> u8 {
        self.get(common::STATUS)
    }

    fn set_status(&self, status: u8) {
        self.put(common::STATUS, status);
    }

    /// A queue of [`SIZE`] descriptors.
    pub fn queue(&self, index: u16) -> Ring {
        self.put(common::QUEUE_SELECT, index);
        let most: u16 = self.get(common::QUEUE_SIZE);
        assert!(most >= SIZE, "a queue is too small");
        let base = claim_page();
        self.put(common::QUEUE_SIZE, SIZE);
        self.put(common::QUEUE_VECTOR, 1u16);
        let parts = [common::DESCRIPTORS, common::AVAILABLE, common::USED];
        for (register, at) in parts.into_iter().zip([base, base + AVAILABLE, base + USED]) {
            self.put(register, at as u32);
            self.put(register + 4, 0u32);
        }
        let doorbell: u16 = self.get(common::QUEUE_NOTIFY);
        let doorbell = self.notify + u64::from(doorbell) * self.multiplier;
        self.put(common::QUEUE_ENABLE, 1u16);
        Ring { base, doorbell, index, available: 0, used: 0 }
    }

    /// Queues have been made.
    pub fn ready(&self) {
        self.set_status(ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Whether an interrupt has come that the device is the cause of. Of what it has done nothing
    /// is looked at without one, so that none may be lost. [`Self::end`] is to follow.
    pub fn interrupted(&mut self) -> bool {
        let came = self.vector.fresh();
        if came == 0 {
            return false;
        }
        self.owed += came;
        assert!(self.status() & NEEDS_RESET == 0, "a device needs a reset");
        match self.interrupts {
            Interrupts::Messages => true,
            // Reading takes the pin back (4.1.4.5). It may come once more than there was cause,
            // where the local APIC heard of the end of another interrupt first.
            Interrupts::Pin => load::<u8>(self.isr) & 1 != 0,
        }
    }

    /// What was done for the interrupts is done.
    pub fn end(&mut self) {
        apic::end(core::mem::take(&mut self.owed));
    }
}

/// Descriptors of a queue.
pub const SIZE: u16 = 16;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// What a descriptor describes; the device writes to it or reads.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub at: u64,
    pub length: u32,
    pub written: bool,
}

/// A split queue in one page.
pub struct Ring {
    base: u64,
    doorbell: u64,
    index: u16,
    available: u16,
    used: u16,
}

impl Ring {
    /// Gives the device a chain, whose descriptors are those from `first` on.
    pub fn submit(&mut self, first: u16, buffers: &[Buffer]) {
        for (id, (buffer, left)) in (first..).zip(buffers.iter().zip((0..buffers.len()).rev())) {
            let at = self.base + u64::from(id) * 16;
            let flags = if buffer.written { WRITE } else { 0 } | if left > 0 { NEXT } else { 0 };
            store(at, buffer.at);
            store(at + 8, buffer.length);
            store(at + 12, flags);
            store(at + 14, id + 1);
        }
        store(self.base + AVAILABLE + 4 + u64::from(self.available % SIZE) * 2, first);
        self.available = self.available.wrapping_add(1);
        store(self.base + AVAILABLE + 2, self.available);
        store(self.doorbell, self.index);
    }

    /// What the device is done with next: the first descriptor, and how much it has written.
    pub fn completed(&mut self) -> Option<(u16, u32)> {
        let index: u16 = load(self.base + USED + 2);
        if index == self.used {
            return None;
        }
        let ahead = self.available.wrapping_sub(self.used);
        assert!(index.wrapping_sub(self.used) <= ahead, "more is used than was available");
        let at = self.base + USED + 4 + u64::from(self.used % SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        Some((load::<u32>(at) as u16, load(at + 4)))
    }
}
