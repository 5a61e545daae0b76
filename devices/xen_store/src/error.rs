//! What a request is refused for, as its reply says it.

/// The names of `xsd_errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Invalid,
    Access,
    Exists,
    NoEntry,
    NoSpace,
    NotImplemented,
    TooBig,
    Again,
    Busy,
}

impl Error {
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "EINVAL",
            Self::Access => "EACCES",
            Self::Exists => "EEXIST",
            Self::NoEntry => "ENOENT",
            Self::NoSpace => "ENOSPC",
            Self::NotImplemented => "ENOSYS",
            Self::TooBig => "E2BIG",
            Self::Again => "EAGAIN",
            Self::Busy => "EBUSY",
        }
    }
}
