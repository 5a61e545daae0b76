//! Page walks and the software TLB.
//!
//! [`Paging`] is what the control registers say of translation; [`walk()`] goes through the
//! tables in guest memory as the processor does, sets accessed and dirty bits, and says what
//! may be done with the page; [`Tlb`] remembers the outcome as offsets into the arena, so that
//! most accesses cost one compare. [`inspect`] looks without leaving a trace, for debuggers.

mod changes;
mod paging;
mod phys;
mod reverse;
mod tlb;
mod walk;

pub use changes::Changes;
pub use paging::{Features, Mode, Paging};
pub use phys::Phys;
pub use tlb::{Held, Place, Tlb};
pub use walk::{PageFault, Translation, inspect, is_as_fetched, load_pdptes, walk};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

/// With whose rights (SDM volume 3, 4.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Privilege {
    /// A supervisor-mode access to which SMAP applies: implicit ones, and explicit ones while
    /// RFLAGS.AC is clear.
    #[default]
    Supervisor,
    /// An explicit supervisor-mode access while RFLAGS.AC is set.
    SupervisorAc,
    User,
    /// Of a guest whose kernel runs at level 3, as its programs do, but with page tables of its own
    /// (Xen's PV guests): the kernel's accesses, with a user's rights. Such a vCPU has none of
    /// [`Self::SupervisorAc`].
    Deprivileged,
}

impl Privilege {
    pub const fn is_user(self) -> bool {
        matches!(self, Self::User | Self::Deprivileged)
    }

    /// All address spaces have the same upper half, as if its pages were global.
    pub const fn shares_upper(self) -> bool {
        matches!(self, Self::Deprivileged)
    }

    /// The TLB's plane.
    pub const fn plane(self) -> usize {
        match self {
            Self::Supervisor => 0,
            Self::SupervisorAc | Self::Deprivileged => 1,
            Self::User => 2,
        }
    }
}

#[cfg(test)]
mod tests;
