//! Saved state of a device's transport.

use crate::{
    core::{Core, NO_VECTOR, isr},
    lock,
    regs::{QueueRegs, Regs, status},
};
use saved_state::{Error, Schema, malformed};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::SeqCst;
use virtio_queue::{Queue as Ring, QueueT};

/// Its instance is the transport's number for it: the PCI slot, or one of the window's places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioState {
    /// The device ID: a block device's state is no network device's.
    pub device_type: u16,
    pub status: u8,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    /// What the driver accepted.
    pub features: u64,
    pub queue_select: u16,
    pub config_generation: u8,
    pub config_vector: u16,
    pub isr: u8,
    pub queues: Vec<QueueState>,
}

impl Schema for VirtioState {
    const KIND: &'static str = "virtio";
    const VERSION: u16 = 1;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    pub size: u16,
    pub enabled: bool,
    pub descriptors: u64,
    pub driver: u64,
    pub device: u64,
    pub vector: u16,
    /// How far the device has read the driver's ring, and written its own.
    pub next_available: u16,
    pub next_used: u16,
}

impl Core {
    /// No queue is being served.
    pub(crate) fn save(&self) -> VirtioState {
        let regs = lock(&self.regs);
        let queue = |(regs, slot): (&QueueRegs, &crate::core::QueueSlot)| {
            let ring = lock(&slot.ring);
            let position = |of: fn(&Ring) -> u16| ring.as_ref().map_or(0, of);
            QueueState {
                size: regs.size,
                enabled: regs.enabled,
                descriptors: regs.addresses[0],
                driver: regs.addresses[1],
                device: regs.addresses[2],
                vector: slot.vector.load(SeqCst),
                next_available: position(QueueT::next_avail),
                next_used: position(QueueT::next_used),
            }
        };
        VirtioState {
            device_type: self.device.device_type(),
            status: regs.status,
            device_feature_select: regs.device_select,
            driver_feature_select: regs.driver_select,
            features: regs.features,
            queue_select: regs.queue_select,
            config_generation: regs.generation,
            config_vector: self.config_vector.load(SeqCst),
            isr: *lock(&self.isr),
            queues: regs.queues.iter().zip(&self.queues).map(queue).collect(),
        }
    }

    /// Whether a device of this kind can have been in this state; its registers and rings.
    pub(crate) fn check(&self, state: &VirtioState) -> Result<(Regs, Vec<Option<Ring>>), Error> {
        let refuse = |reason: &str| Err(malformed::<VirtioState>(reason));
        let mut regs = Regs::new(&self.device.queue_sizes());
        if state.device_type != self.device.device_type() || state.queues.len() != regs.queues.len()
        {
            return refuse("it is of another device");
        }
        let negotiated = state.status & status::FEATURES_OK != 0;
        if state.status & !status::ALL != 0 || state.isr & !(isr::QUEUE | isr::CONFIG) != 0 {
            return refuse("a register has bits that are not there");
        }
        if state.status & status::DRIVER_OK != 0 && !negotiated {
            return refuse("the driver is ready without features");
        }
        if negotiated && !self.accepts(state.features) {
            return refuse("the driver has features that this device does not offer");
        }
        let vectors = state.queues.iter().map(|queue| queue.vector).chain([state.config_vector]);
        if vectors.into_iter().any(|v| v != NO_VECTOR && v >= self.vectors()) {
            return refuse("it uses a vector that is not there");
        }
        regs.status = state.status;
        regs.device_select = state.device_feature_select;
        regs.driver_select = state.driver_feature_select;
        regs.features = state.features;
        regs.queue_select = state.queue_select;
        regs.generation = state.config_generation;
        let mut rings = Vec::new();
        for (queue, saved) in regs.queues.iter_mut().zip(&state.queues) {
            if !saved.size.is_power_of_two() || saved.size > queue.max {
                return refuse("a queue has a size that it cannot have");
            }
            queue.size = saved.size;
            queue.enabled = saved.enabled;
            queue.addresses = [saved.descriptors, saved.driver, saved.device];
            let ring = match (saved.enabled, negotiated) {
                (false, _) => None,
                (true, false) => return refuse("a queue is enabled without features"),
                (true, true) => match queue.ring(self, state.features) {
                    Some(mut ring) => {
                        ring.set_next_avail(saved.next_available);
                        ring.set_next_used(saved.next_used);
                        Some(ring)
                    }
                    None => return refuse("a queue is not where memory is"),
                },
            };
            rings.push(ring);
        }
        Ok((regs, rings))
    }

    /// Takes over what was checked. Nothing is served before the device is resumed.
    pub(crate) fn take_over(&self, state: &VirtioState, regs: Regs, rings: Vec<Option<Ring>>) {
        let mut now = lock(&self.regs);
        self.live.store(false, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
        for ((slot, ring), saved) in self.queues.iter().zip(rings).zip(&state.queues) {
            *lock(&slot.ring) = ring;
            slot.vector.store(saved.vector, SeqCst);
        }
        self.config_vector.store(state.config_vector, SeqCst);
        // The wire is the transport's to restore.
        *lock(&self.isr) = state.isr;
        *now = regs;
        let needs = status::DRIVER_OK | status::NEEDS_RESET;
        if now.status & needs == status::DRIVER_OK {
            self.device.activate(now.features);
            self.live.store(true, SeqCst);
            self.kick_all();
        }
    }
}
