//! A debugger outside the guest.

/// What a vCPU is watched for. The guest's own debug registers are not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDebug {
    /// Return [`Exit::Debug`](crate::Exit::Debug) after every instruction.
    pub single_step: bool,
    /// At most [`Caps::breakpoints`](crate::Caps::breakpoints).
    pub breakpoints: Vec<Breakpoint>,
}

/// At a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakpoint {
    pub address: u64,
    pub kind: BreakpointKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakpointKind {
    /// Before the instruction executes. The vCPU has RFLAGS.RF set then, so that running it
    /// again executes the instruction.
    Execute,
    /// After a write to any of `len` bytes (1, 2, 4 or 8, aligned).
    Write { len: u8 },
    /// After a read or write.
    Access { len: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugExit {
    Step,
    Breakpoint {
        address: u64,
    },
    /// The data breakpoint at this address was touched.
    Watchpoint {
        address: u64,
    },
}
