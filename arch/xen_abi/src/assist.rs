//! `xen.h`: what a domain asks for by `vm_assist`.

/// `VMASST_CMD_*`.
pub const ENABLE: u64 = 0;
pub const DISABLE: u64 = 1;

/// `VMASST_TYPE_runstate_update_flag`: copies of a vCPU's run states are marked while they are
/// written.
pub const RUNSTATE_UPDATE_FLAG: u64 = 5;
