//! Layouts and numbers of Xen's public interface for x86-64 paravirtualized guests, as the headers
//! of `xen/include/public` name them. Each module names its header.
//!
//! Facts only. A layout is a struct of exactly the header's bytes: sizes and offsets are checked
//! when the crate is compiled.

pub mod assist;
pub mod blkif;
pub mod callback;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod hypercall;
pub mod memory;
pub mod mmu;
pub mod netif;
pub mod ring;
pub mod sched;
pub mod start_info;
pub mod trap;
pub mod vcpu;
pub mod version;
pub mod xen;
pub mod xenbus;
pub mod xs_wire;

/// A domain's number (`domid_t`, `xen.h`).
pub type DomainId = u16;

/// The caller itself (`DOMID_SELF`, `xen.h`).
pub const DOMID_SELF: DomainId = 0x7ff0;

/// Pages of devices (`DOMID_IO`, `xen.h`).
pub const DOMID_IO: DomainId = 0x7ff1;

/// Checks a struct's size and its fields' offsets.
macro_rules! layout {
    ($type:ty, $size:literal $(, $field:ident @ $offset:literal)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}
pub(crate) use layout;
