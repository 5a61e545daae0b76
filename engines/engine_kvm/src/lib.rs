//! The engine over /dev/kvm.
//!
//! Interrupt controllers are split: local APICs are the kernel's, the PIC and the IOAPIC are
//! the machine's. Messages go in by [`engine::Vm::signal_msi`] and irqfds; the end of a
//! level-triggered interrupt comes back as a callback; the PIC's interrupt is pulled, and an
//! interrupt window asked for while it waits. Halted vCPUs wait in the kernel.
//!
//! Guests that have no ring 0, as Xen's paravirtual ones, run with a small one of ours: see `shim`.
//!
//! What this crate needs `unsafe` for is in [`sys`]: ioctls that kvm-ioctls lacks, the shared
//! `kvm_run` page, and the signal that ends KVM_RUN.

mod clock;
mod cpuid;
mod debug;
mod dirty;
mod doorbell;
mod events;
mod gate;
mod held;
mod kick;
mod lapic;
mod msrs;
mod open;
mod probe;
mod routes;
mod shim;
mod state;
mod sys;
mod vcpu;
mod vm;

pub use open::KvmEngine;
pub use probe::{HostKvm, probe};

use engine::Error;

/// Maps the error of an ioctl that fails only by the host's fault.
fn os(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |e| Error::Os { call, source: std::io::Error::from_raw_os_error(e.errno()) }
}

/// Maps the error of an ioctl that loads saved state: what the kernel calls invalid is the
/// state's fault.
fn refused(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |e| match e.errno() {
        libc::EINVAL => Error::State(format!("{call} refuses it")),
        _ => os(call)(e),
    }
}
