//! Saved state.

use saved_state::Schema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HpetState {
    /// General configuration and interrupt status.
    pub config: u64,
    pub status: u64,
    /// The counter while it stands; its difference to guest time in ticks while it counts.
    pub base: u64,
    pub timers: Vec<TimerState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimerState {
    pub config: u64,
    pub comparator: u64,
    pub period: u64,
    /// Guest time, in ticks, of its next match; none while the counter stands.
    pub due: Option<u64>,
}

impl Schema for HpetState {
    const KIND: &'static str = "hpet";
    const VERSION: u16 = 1;
}
