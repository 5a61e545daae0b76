//! What is on its way into the guest, and what the vCPU waits for.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// CR2 of a page fault, DR6's new bits of a debug exception: committed when the exception
    /// is injected, not before.
    pub payload: u64,
}

/// An exception is *pending* while an intercept may still take it, *injected* once nothing but
/// its delivery is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Raised {
    #[default]
    None,
    Pending(Exception),
    Injected(Exception),
}

/// Blocks interrupts for one instruction (SDM volume 3, 6.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shadow {
    #[default]
    None,
    Sti,
    MovSs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    pub exception: Raised,
    /// Acknowledged and not delivered: the host has forgotten it.
    pub interrupt: Option<u8>,
    /// `interrupt` or `exception` is INT n, INT3, INTO or INT1 of this length, whose handler
    /// returns behind it.
    pub soft_len: Option<u8>,
    pub nmi_injected: bool,
    pub nmi_pending: bool,
    pub nmi_masked: bool,
    pub shadow: Shadow,
    /// Latched SIPI vector, taken when the vCPU waits for one.
    pub sipi: Option<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    #[default]
    Running,
    Halted,
    /// INIT was received and not yet acted on; KVM's KVM_MP_STATE_INIT_RECEIVED.
    Init,
    WaitForSipi,
}
