//! What Xen knows of a vCPU, beside its registers.

use std::array;
use xen_abi::{trap::TrapInfo, vcpu::GuestContext};

/// Where the kernel is entered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Callback {
    pub address: u64,
    pub masks_events: bool,
}

/// Why a vCPU waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    #[default]
    None,
    /// For any event (`SCHEDOP_block`).
    Event,
    /// For these ports, whether they are masked or not (`SCHEDOP_poll`), 0 for none; until this
    /// system time, or 0.
    Ports([u32; 8], u64),
}

/// What others need to know of a vCPU, too.
#[derive(Debug, Default)]
pub struct Known {
    pub up: bool,
    /// It has been told what to start with, or runs.
    pub initialised: bool,
    /// What it starts with.
    pub start: Option<Box<GuestContext>>,
    /// Guest-physical address of its information.
    pub info: u64,
    pub info_registered: bool,
    pub wait: Wait,
    /// System time at which its timer fires.
    pub timer: Option<u64>,
}

/// What only its own thread touches.
#[derive(Debug)]
pub struct Vcpu {
    pub id: u32,
    /// The kernel runs, not a program.
    pub in_kernel: bool,
    /// L4 tables, by address; 0 for none.
    pub kernel_root: u64,
    pub user_root: u64,
    pub kernel_sp: u64,
    pub kernel_ss: u64,
    /// The base of GS that is not in use: the program's while the kernel runs.
    pub other_gs: u64,
    pub traps: [TrapInfo; 256],
    pub event: Callback,
    pub failsafe: Callback,
    pub syscall: Callback,
    pub syscall32: Callback,
    pub sysenter: Callback,
    pub nmi: Callback,
    pub gdt_frames: Vec<u64>,
    pub ldt_frames: Vec<u64>,
    /// As the guest sees it.
    pub cr4: u64,
    pub debug: [u64; 8],
}

impl Vcpu {
    pub fn new(id: u32) -> Self {
        Self {
            id,
            in_kernel: true,
            kernel_root: 0,
            user_root: 0,
            kernel_sp: 0,
            kernel_ss: 0,
            other_gs: 0,
            traps: array::from_fn(|_| TrapInfo::default()),
            event: Callback::default(),
            failsafe: Callback::default(),
            syscall: Callback::default(),
            syscall32: Callback::default(),
            sysenter: Callback::default(),
            nmi: Callback::default(),
            gdt_frames: Vec::new(),
            ldt_frames: Vec::new(),
            cr4: 0,
            debug: [0; 8],
        }
    }
}
