//! `xen.h`: numbers of hypercalls (`__HYPERVISOR_*`), and `struct multicall_entry`.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        $($(#[$doc])* pub const $name: u64 = $number;)*

        /// A number's name.
        pub fn name(number: u64) -> Option<&'static str> {
            match number {
                $($number => Some($text),)*
                _ => None,
            }
        }
    };
}

numbers! {
    SET_TRAP_TABLE = 0, "set_trap_table";
    MMU_UPDATE = 1, "mmu_update";
    SET_GDT = 2, "set_gdt";
    STACK_SWITCH = 3, "stack_switch";
    SET_CALLBACKS = 4, "set_callbacks";
    FPU_TASKSWITCH = 5, "fpu_taskswitch";
    PLATFORM_OP = 7, "platform_op";
    SET_DEBUGREG = 8, "set_debugreg";
    GET_DEBUGREG = 9, "get_debugreg";
    UPDATE_DESCRIPTOR = 10, "update_descriptor";
    MEMORY_OP = 12, "memory_op";
    MULTICALL = 13, "multicall";
    UPDATE_VA_MAPPING = 14, "update_va_mapping";
    SET_TIMER_OP = 15, "set_timer_op";
    XEN_VERSION = 17, "xen_version";
    CONSOLE_IO = 18, "console_io";
    GRANT_TABLE_OP = 20, "grant_table_op";
    VM_ASSIST = 21, "vm_assist";
    IRET = 23, "iret";
    VCPU_OP = 24, "vcpu_op";
    SET_SEGMENT_BASE = 25, "set_segment_base";
    MMUEXT_OP = 26, "mmuext_op";
    SCHED_OP = 29, "sched_op";
    CALLBACK_OP = 30, "callback_op";
    EVENT_CHANNEL_OP = 32, "event_channel_op";
    PHYSDEV_OP = 33, "physdev_op";
    HVM_OP = 34, "hvm_op";
    XENPMU_OP = 40, "xenpmu_op";
}

/// `struct multicall_entry`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MulticallEntry {
    pub op: u64,
    pub result: u64,
    pub args: [u64; 6],
}

layout!(MulticallEntry, 64, result @ 8, args @ 16);
