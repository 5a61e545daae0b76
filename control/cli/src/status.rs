//! The exit statuses of `sarang`, which scripts may rely on.

/// How a run ended, for whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The guest powered off, or the command did what it was asked.
    PoweredOff,
    /// The host is at fault: no engine, no memory, a file that cannot be read.
    HostError,
    /// The options are at fault.
    BadArguments,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest ended by a fault of its own: a triple fault, or a failure that it reported.
    GuestError,
    /// The time that `--timeout` gives was over.
    TimedOut,
    /// The operator quit without waiting for the guest.
    Quit,
}

impl Status {
    /// The number that the process exits with.
    pub fn code(self) -> i32 {
        match self {
            Self::PoweredOff => 0,
            Self::HostError => 1,
            Self::BadArguments => 2,
            Self::GuestPanic => 3,
            Self::GuestError => 4,
            Self::TimedOut => 5,
            Self::Quit => 6,
        }
    }
}

/// The same for `--help`.
pub const HELP: &str = "\
Exit status:
  0  the guest powered off
  1  host error: no usable engine, an unreadable file, no memory
  2  bad arguments
  3  the guest's kernel panicked
  4  the guest ended by a triple fault, or reported a failure
  5  the time given by --timeout was over
  6  the operator quit (Ctrl-A x, `quit`, or a second SIGTERM)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_tells_every_status() {
        use Status::*;
        let all = [PoweredOff, HostError, BadArguments, GuestPanic, GuestError, TimedOut, Quit];
        for status in all {
            assert!(HELP.contains(&format!("\n  {}  ", status.code())), "{status:?}");
        }
        assert_eq!(HELP.lines().count(), 1 + all.len());
    }
}
