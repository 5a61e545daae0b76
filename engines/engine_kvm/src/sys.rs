//! Everything of this crate that needs `unsafe`, in safe functions.

mod ioctl;
mod ring;
mod run_page;
mod signal;

pub(crate) use ioctl::{
    IrqfdRequest, XsaveArea, clear_ioeventfd, come_and_go, get_sregs2, get_xsave2, irqfd, map_slot,
    rdtsc, set_ioeventfd, set_mce, set_sregs2, set_tsc_offset, set_xsave, tsc_offset,
};
pub(crate) use ring::{DirtyRing, reset_rings};
pub(crate) use run_page::{KvmExit, RunPage, decode};
pub(crate) use signal::{current_thread, install_handler, send, unblock};
