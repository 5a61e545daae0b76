//! `errno.h`: errors of hypercalls, which return them negated.

/// An error of a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// Operation not permitted.
    Perm = 1,
    /// No such entity.
    NoEnt = 2,
    /// No such domain or vCPU.
    Srch = 3,
    /// I/O error.
    Io = 5,
    /// Arguments too long.
    TooBig = 7,
    /// Try again.
    Again = 11,
    /// Out of memory.
    NoMem = 12,
    /// Permission denied.
    Acces = 13,
    /// Bad address.
    Fault = 14,
    /// Busy.
    Busy = 16,
    /// Exists.
    Exist = 17,
    /// Invalid argument.
    Inval = 22,
    /// No space.
    NoSpc = 28,
    /// Not implemented.
    NoSys = 38,
    /// The time has passed.
    Time = 62,
    /// Not supported.
    OpNotSupp = 95,
}

impl Errno {
    /// What a hypercall returns.
    pub const fn result(self) -> u64 {
        (-(self as i32) as i64).cast_unsigned()
    }
}
