//! `vcpu.h`, and `struct vcpu_guest_context` of `arch-x86/xen.h`.

use crate::{layout, trap::TrapInfo};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VCPUOP_*`.
pub mod op {
    pub const INITIALISE: u64 = 0;
    pub const UP: u64 = 1;
    pub const DOWN: u64 = 2;
    pub const IS_UP: u64 = 3;
    pub const GET_RUNSTATE_INFO: u64 = 4;
    pub const REGISTER_RUNSTATE_MEMORY_AREA: u64 = 5;
    pub const SET_PERIODIC_TIMER: u64 = 6;
    pub const STOP_PERIODIC_TIMER: u64 = 7;
    pub const SET_SINGLESHOT_TIMER: u64 = 8;
    pub const STOP_SINGLESHOT_TIMER: u64 = 9;
    pub const REGISTER_VCPU_INFO: u64 = 10;
    pub const SEND_NMI: u64 = 11;
    pub const REGISTER_VCPU_TIME_MEMORY_AREA: u64 = 13;
}

/// `RUNSTATE_*`.
pub mod runstate {
    pub const RUNNING: u32 = 0;
    /// Ready, and without a processor.
    pub const RUNNABLE: u32 = 1;
    pub const BLOCKED: u32 = 2;
    pub const OFFLINE: u32 = 3;
}

/// `XEN_RUNSTATE_UPDATE`: of [`RunstateInfo::entered_ns`], while the area is written.
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

/// `struct vcpu_register_vcpu_info`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterVcpuInfo {
    pub mfn: u64,
    pub offset: u32,
    pub reserved: u32,
}

/// `struct vcpu_set_singleshot_timer`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// System time.
    pub timeout_ns: u64,
    pub flags: u32,
    pub padding: u32,
}

/// `VCPU_SSHOTTMR_future`: a time that has passed is an error.
pub const TIMER_FUTURE: u32 = 1 << 0;

/// `struct vcpu_runstate_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RunstateInfo {
    pub state: u32,
    pub padding: u32,
    pub entered_ns: u64,
    pub time_ns: [u64; 4],
}

/// `struct cpu_user_regs` of x86-64.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub error_code: u32,
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub padding: u16,
    pub saved_upcall_mask: u8,
    pub padding2: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub es: u64,
    pub ds: u64,
    pub fs: u64,
    pub gs: u64,
}

/// `struct vcpu_guest_context` of x86-64.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GuestContext {
    pub fpu: [u8; 512],
    pub flags: u64,
    pub user_regs: UserRegs,
    pub traps: [TrapInfo; 256],
    pub ldt_base: u64,
    pub ldt_entries: u64,
    pub gdt_frames: [u64; 16],
    pub gdt_entries: u64,
    pub kernel_ss: u64,
    pub kernel_sp: u64,
    pub control: [u64; 8],
    pub debug: [u64; 8],
    pub event_callback: u64,
    pub failsafe_callback: u64,
    pub syscall_callback: u64,
    pub vm_assist: u64,
    pub fs_base: u64,
    pub gs_base_kernel: u64,
    pub gs_base_user: u64,
}

layout!(RegisterVcpuInfo, 16, offset @ 8);
layout!(SetSingleshotTimer, 16, flags @ 8);
layout!(RunstateInfo, 48, entered_ns @ 8, time_ns @ 16);
layout!(UserRegs, 200, rip @ 0x80, cs @ 0x88, saved_upcall_mask @ 0x8c, rflags @ 0x90);
layout!(
    GuestContext, 5168,
    flags @ 0x200, user_regs @ 0x208, traps @ 0x2d0, ldt_base @ 0x12d0, gdt_frames @ 0x12e0,
    gdt_entries @ 0x1360, kernel_ss @ 0x1368, kernel_sp @ 0x1370, control @ 0x1378,
    debug @ 0x13b8, event_callback @ 0x13f8, syscall_callback @ 0x1408, fs_base @ 0x1418,
    gs_base_user @ 0x1428,
);
