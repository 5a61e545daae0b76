//! The machine's own saved state.

use crate::clock::GuestClock;
use device::Clock;
use saved_state::Schema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClockState {
    pub(crate) guest_ns: u64,
}

impl Schema for ClockState {
    const KIND: &'static str = "clock";
    const VERSION: u16 = 1;
}

impl ClockState {
    pub(crate) fn of(clock: &GuestClock) -> Self {
        Self { guest_ns: clock.now_ns() }
    }
}
