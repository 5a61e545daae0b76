//! What a driver sets up, whatever the transport is, and the common configuration structure of PCI
//! (4.1.4.3).

use crate::{
    core::{Core, NO_VECTOR},
    feature,
};
use std::sync::atomic::Ordering::SeqCst;
use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::GuestAddress;

/// Device status bits (2.1).
pub(crate) mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 0x40;
    pub const FAILED: u8 = 0x80;
    /// What a driver may set.
    pub const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
    pub const ALL: u8 = DRIVERS | NEEDS_RESET;
}

/// Offsets of the registers.
mod at {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const NUM_QUEUES: u64 = 18;
    pub const STATUS: u64 = 20;
    pub const GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    /// Descriptor table, driver area, device area: 8 bytes each.
    pub const QUEUE_ADDRESSES: u64 = 32;
    pub const END: u64 = 56;
}

/// What the driver has set up of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueRegs {
    pub(crate) max: u16,
    pub(crate) size: u16,
    pub(crate) enabled: bool,
    /// Descriptor table, driver area, device area.
    pub(crate) addresses: [u64; 3],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Regs {
    pub(crate) status: u8,
    pub(crate) device_select: u32,
    pub(crate) driver_select: u32,
    pub(crate) features: u64,
    pub(crate) queue_select: u16,
    pub(crate) generation: u8,
    pub(crate) queues: Vec<QueueRegs>,
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl Regs {
    pub(crate) fn new(sizes: &[u16]) -> Self {
        let queue = |&max: &u16| QueueRegs { max, size: max, enabled: false, addresses: [0; 3] };
        Self {
            status: 0,
            device_select: 0,
            driver_select: 0,
            features: 0,
            queue_select: 0,
            generation: 0,
            queues: sizes.iter().map(queue).collect(),
        }
    }

    /// True if the driver has to be told (2.1.2).
    pub(crate) fn set_needs_reset(&mut self) -> bool {
        let first = self.status & status::NEEDS_RESET == 0;
        self.status |= status::NEEDS_RESET;
        first && self.status & status::DRIVER_OK != 0
    }

    pub(crate) fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    pub(crate) fn queue(&self) -> Option<&QueueRegs> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The half of the offered features that is selected.
    pub(crate) fn offered(&self, core: &Core) -> u32 {
        half(core.offered(), self.device_select)
    }

    /// The registers as bytes.
    fn image(&self, core: &Core) -> [u8; at::END as usize] {
        let mut image = [0; at::END as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = at as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(at::DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(at::DEVICE_FEATURE, &self.offered(core).to_le_bytes());
        put(at::DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(at::DRIVER_FEATURE, &half(self.features, self.driver_select).to_le_bytes());
        put(at::CONFIG_VECTOR, &core.config_vector.load(SeqCst).to_le_bytes());
        put(at::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(at::STATUS, &[self.status]);
        put(at::GENERATION, &[self.generation]);
        put(at::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that is not there has size 0 (4.1.4.3).
        let Some(queue) = self.queue() else { return image };
        let vector = core.vector(self.queue_select).map_or(NO_VECTOR, |v| v.load(SeqCst));
        put(at::QUEUE_SIZE, &queue.size.to_le_bytes());
        put(at::QUEUE_VECTOR, &vector.to_le_bytes());
        put(at::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
        put(at::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
        for (index, address) in (0..).zip(queue.addresses) {
            put(at::QUEUE_ADDRESSES + 8 * index, &address.to_le_bytes());
        }
        image
    }

    pub(crate) fn read(&self, core: &Core, offset: u64, data: &mut [u8]) {
        let image = self.image(core);
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// A driver accesses each register by its own width, or a 64-bit one by halves (4.1.3.1);
    /// other writes do nothing.
    pub(crate) fn write(&mut self, core: &Core, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (at::DEVICE_FEATURE_SELECT, 4) => self.device_select = value as u32,
            (at::DRIVER_FEATURE_SELECT, 4) => self.driver_select = value as u32,
            (at::DRIVER_FEATURE, 4) => self.accept(value as u32),
            (at::CONFIG_VECTOR, 2) => {
                core.config_vector.store(core.valid_vector(value as u16), SeqCst);
            }
            (at::STATUS, 1) => self.set_status(core, value as u8),
            (at::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (at::QUEUE_VECTOR, 2) => {
                if let Some(vector) = core.vector(self.queue_select) {
                    vector.store(core.valid_vector(value as u16), SeqCst);
                }
            }
            (at::QUEUE_ENABLE, 2) if value == 1 => self.enable_queue(core),
            (at::QUEUE_SIZE, 2) => self.set_size(value as u32),
            (at::QUEUE_ADDRESSES..at::END, 4 | 8) if offset.is_multiple_of(data.len() as u64) => {
                let index = ((offset - at::QUEUE_ADDRESSES) / 8) as usize;
                let shift = offset % 8 * 8;
                let mask = if data.len() == 8 { u64::MAX } else { 0xffff_ffff << shift };
                self.set_address(index, value << shift, mask);
            }
            _ => {}
        }
    }

    pub(crate) fn accept(&mut self, half: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let half = u64::from(half);
        match self.driver_select {
            0 => self.features = self.features >> 32 << 32 | half,
            1 => self.features = self.features & 0xffff_ffff | half << 32,
            _ => {}
        }
    }

    pub(crate) fn set_status(&mut self, core: &Core, value: u8) {
        if value == 0 {
            core.reset(self);
            return;
        }
        let mut new = value & status::DRIVERS & !self.status;
        if new & status::FEATURES_OK != 0 && !core.accepts(self.features) {
            // The driver reads back that it was refused (3.1.1).
            new &= !status::FEATURES_OK;
        }
        if (self.status | new) & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.status |= new;
        if new & status::DRIVER_OK != 0 && self.status & status::NEEDS_RESET == 0 {
            core.device.activate(self.features);
            core.live.store(true, SeqCst);
            core.kick_all();
        }
    }

    /// Changes what a queue is set up with, which is fixed once it is enabled.
    pub(crate) fn set_queue(&mut self, change: impl FnOnce(&mut QueueRegs)) {
        let selected = self.queues.get_mut(usize::from(self.queue_select));
        if let Some(queue) = selected.filter(|queue| !queue.enabled) {
            change(queue);
        }
    }

    pub(crate) fn set_size(&mut self, size: u32) {
        self.set_queue(|queue| {
            if size.is_power_of_two() && size <= queue.max.into() {
                // No larger than another of its type.
                queue.size = size as u16;
            }
        });
    }

    /// Of the descriptor table, the driver area, the device area: the bits of the mask.
    pub(crate) fn set_address(&mut self, part: usize, value: u64, mask: u64) {
        self.set_queue(|queue| {
            if let Some(address) = queue.addresses.get_mut(part) {
                *address = *address & !mask | value & mask;
            }
        });
    }

    /// The selected queue is used no more when this returns, and may be set up anew.
    pub(crate) fn disable_queue(&mut self, core: &Core) {
        let index = usize::from(self.queue_select);
        if let (Some(queue), Some(slot)) = (self.queues.get_mut(index), core.queues.get(index)) {
            *crate::lock(&slot.ring) = None;
            queue.enabled = false;
        }
    }

    pub(crate) fn enable_queue(&mut self, core: &Core) {
        let index = usize::from(self.queue_select);
        let negotiated = self.status & status::FEATURES_OK != 0;
        let (Some(queue), Some(slot)) = (self.queues.get_mut(index), core.queues.get(index)) else {
            return;
        };
        if queue.enabled || !negotiated {
            return;
        }
        match queue.ring(core, self.features) {
            Some(ring) => {
                *crate::lock(&slot.ring) = Some(ring);
                queue.enabled = true;
            }
            None => core.needs_reset(self),
        }
    }
}

impl QueueRegs {
    /// The queue as the driver set it up; `None` if its parts are not aligned, or not memory.
    pub(crate) fn ring(&self, core: &Core, features: u64) -> Option<Ring> {
        let [table, driver, device] = self.addresses.map(GuestAddress);
        let mut ring = Ring::new(self.max).ok()?;
        ring.try_set_size(self.size).ok()?;
        ring.try_set_desc_table_address(table).ok()?;
        ring.try_set_avail_ring_address(driver).ok()?;
        ring.try_set_used_ring_address(device).ok()?;
        ring.set_event_idx(features & feature::EVENT_IDX != 0);
        ring.set_ready(true);
        // `virtio-queue` takes an available ring at 0 for one that is not set up.
        (driver.0 != 0 && ring.is_valid(&core.memory.rings())).then_some(ring)
    }
}

impl Core {
    pub(crate) fn offered(&self) -> u64 {
        self.device.features() | feature::TRANSPORT
    }

    /// Whether a driver may have accepted these features.
    pub(crate) fn accepts(&self, features: u64) -> bool {
        features & !self.offered() == 0 && features & feature::VERSION_1 != 0
    }

    /// Messages: one for configuration, one for each queue.
    pub(crate) fn vectors(&self) -> u16 {
        self.queues.len() as u16 + 1
    }

    pub(crate) fn valid_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors() { vector } else { NO_VECTOR }
    }

    fn vector(&self, queue: u16) -> Option<&std::sync::atomic::AtomicU16> {
        self.queues.get(usize::from(queue)).map(|slot| &slot.vector)
    }
}
