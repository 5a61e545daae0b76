//! What Xen knows of a vCPU, beside its registers.

use crate::{Domain, descriptors::Descriptors, memory::Memory};
use engine::Roots;
use std::array;
use x86_defs::exception::NMI;
use xen_abi::{
    trap::TrapInfo,
    vcpu::{GuestContext, RunstateInfo},
};

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
    /// An NMI is to be delivered.
    pub nmi: bool,
    pub runstate: RunstateInfo,
    /// Linear addresses, of its kernel's, where copies of that and of the time are kept; 0 for none.
    pub runstate_area: u64,
    pub time_area: u64,
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
    /// Its handler has not returned yet.
    pub nmi_masked: bool,
    pub gdt_frames: Vec<u64>,
    pub ldt_frames: Vec<u64>,
    /// As the guest sees it.
    pub cr4: u64,
    pub debug: [u64; 8],
    /// IA32_SPEC_CTRL, which does nothing.
    pub spec_ctrl: u64,
    /// How long its thread had waited for a processor of the host's in all, when it was looked at
    /// last.
    pub run_delay: Option<u64>,
}

impl Vcpu {
    pub fn descriptors<'a>(&'a self, memory: &'a Memory) -> Descriptors<'a> {
        Descriptors { memory, gdt: &self.gdt_frames }
    }

    pub fn roots(&self) -> Roots {
        Roots { kernel: self.kernel_root, program: self.user_root }
    }

    /// Whether an NMI waits that the kernel can be entered for now.
    pub fn takes_nmi(&self, domain: &Domain) -> bool {
        let waits = domain.known.get(self.id as usize).is_some_and(|known| known.nmi);
        waits && !self.nmi_masked && self.handler(NMI).address != 0
    }

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
            nmi_masked: false,
            gdt_frames: Vec::new(),
            ldt_frames: Vec::new(),
            cr4: 0,
            debug: [0; 8],
            spec_ctrl: 0,
            run_delay: None,
        }
    }
}
