//! The machine's own saved state.

use crate::clock::GuestClock;
use device::Clock;
use saved_state::{Part, Reader, Schema};
use serde::{Deserialize, Serialize};
use vcpu_state::Tsc;

/// The frequency of a saved machine's TSC; `None` if that is not in the state.
pub fn tsc_khz(saved: &[Part]) -> Option<u32> {
    let tsc = |part: &&Part| part.kind == Tsc::KIND && part.instance == 0;
    let part = saved.iter().find(tsc)?.clone();
    let tsc: Tsc = Reader::new(vec![part]).ok()?.take(0).ok()?;
    (tsc.khz != 0).then_some(tsc.khz)
}

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
