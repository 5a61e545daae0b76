//! Doorbells: ioeventfds that unregister when dropped.

use crate::{sys, vm::Inner};
use engine::{Doorbell, DoorbellAddress, Error, Handle};
use kvm_bindings::{kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_pio};
use std::{
    fmt,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

struct Bell {
    vm: Arc<Inner>,
    arg: kvm_ioeventfd,
    /// `arg` has its number.
    _event: OwnedFd,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("at", &self.arg.addr).finish_non_exhaustive()
    }
}

pub(crate) fn register(
    vm: &Arc<Inner>,
    at: &Doorbell,
    event: BorrowedFd<'_>,
) -> Result<Handle, Error> {
    if !matches!(at.len, 0 | 1 | 2 | 4 | 8) || at.len == 0 && at.datamatch.is_some() {
        return Err(Error::Unsupported("a doorbell of this width"));
    }
    let event = event.try_clone_to_owned().map_err(|source| Error::Os { call: "dup", source })?;
    let (addr, port) = match at.at {
        DoorbellAddress::Port(port) => (u64::from(port), true),
        DoorbellAddress::Mmio(gpa) => (gpa, false),
    };
    let matching = u32::from(at.datamatch.is_some()) << kvm_ioeventfd_flag_nr_datamatch;
    let arg = kvm_ioeventfd {
        datamatch: at.datamatch.unwrap_or(0),
        addr,
        len: at.len,
        fd: event.as_raw_fd(),
        flags: matching | u32::from(port) << kvm_ioeventfd_flag_nr_pio,
        ..Default::default()
    };
    sys::set_ioeventfd(&vm.fd, &arg)?;
    Ok(Box::new(Bell { vm: vm.clone(), arg, _event: event }))
}

impl Drop for Bell {
    fn drop(&mut self) {
        // It was registered with these values, so the kernel knows it; if not, it is gone,
        // which is what is wanted.
        drop(sys::clear_ioeventfd(&self.vm.fd, &self.arg));
    }
}
