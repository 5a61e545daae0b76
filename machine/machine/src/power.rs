//! What the guest asked of its machine, noted at once and acted on by the owner.

use crate::owner::Request;
use device::{PowerEvent, PowerSink};
use std::sync::{
    atomic::{AtomicBool, Ordering::SeqCst},
    mpsc::Sender,
};

/// Every vCPU that makes a callback while a request stands stops at the next boundary.
#[derive(Debug)]
pub(crate) struct PowerGate {
    requested: AtomicBool,
    owner: Sender<Request>,
}

impl PowerGate {
    pub(crate) fn new(owner: Sender<Request>) -> Self {
        Self { requested: AtomicBool::new(false), owner }
    }

    pub(crate) fn requested(&self) -> bool {
        self.requested.load(SeqCst)
    }

    /// The owner has dealt with it.
    pub(crate) fn clear(&self) {
        self.requested.store(false, SeqCst);
    }
}

impl PowerSink for PowerGate {
    fn request(&self, event: PowerEvent) {
        // Nothing follows from this one, and it must not stand before one that matters.
        if event == PowerEvent::GuestCrashLoaded {
            return;
        }
        // Only the first counts: the machine stops for it.
        if !self.requested.swap(true, SeqCst) {
            // Without an owner the machine is being torn down.
            drop(self.owner.send(Request::Power(event)));
        }
    }
}
