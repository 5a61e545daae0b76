//! `event_channel.h`: ports on which domains and the hypervisor notify each other.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `EVTCHNOP_*`: operations of the hypercall.
pub mod op {
    pub const BIND_INTERDOMAIN: u64 = 0;
    pub const BIND_VIRQ: u64 = 1;
    pub const BIND_PIRQ: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const SEND: u64 = 4;
    pub const STATUS: u64 = 5;
    pub const ALLOC_UNBOUND: u64 = 6;
    pub const BIND_IPI: u64 = 7;
    pub const BIND_VCPU: u64 = 8;
    pub const UNMASK: u64 = 9;
    pub const RESET: u64 = 10;
    pub const INIT_CONTROL: u64 = 11;
    pub const EXPAND_ARRAY: u64 = 12;
    pub const SET_PRIORITY: u64 = 13;
}

/// `VIRQ_*` (`xen.h`): interrupts of the hypervisor's own.
pub mod virq {
    pub const TIMER: u32 = 0;
    pub const DEBUG: u32 = 1;
    /// Those of one vCPU each are below it.
    pub const COUNT: u32 = 24;
}

/// Ports of the two-level interface: 64 words of 64.
pub const PORTS_2LEVEL: u32 = 4096;

/// `struct evtchn_bind_virq`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindVirq {
    pub virq: u32,
    pub vcpu: u32,
    pub port: u32,
}

/// `struct evtchn_bind_ipi`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindIpi {
    pub vcpu: u32,
    pub port: u32,
}

/// `struct evtchn_bind_vcpu`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindVcpu {
    pub port: u32,
    pub vcpu: u32,
}

/// `struct evtchn_alloc_unbound`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AllocUnbound {
    pub domain: u16,
    pub remote_domain: u16,
    pub port: u32,
}

/// `struct evtchn_status`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Status {
    pub domain: u16,
    pub padding: u16,
    pub port: u32,
    pub status: u32,
    pub vcpu: u32,
    /// What the port is bound to, by its status.
    pub bound: [u32; 2],
}

/// `EVTCHNSTAT_*`.
pub mod status {
    pub const CLOSED: u32 = 0;
    pub const UNBOUND: u32 = 1;
    pub const INTERDOMAIN: u32 = 2;
    pub const PIRQ: u32 = 3;
    pub const VIRQ: u32 = 4;
    pub const IPI: u32 = 5;
}

/// The FIFO-based interface: an array of words, one for each port, which are linked in queues, one for
/// each vCPU and priority.
pub mod fifo {
    pub const PENDING: u32 = 1 << 31;
    pub const MASKED: u32 = 1 << 30;
    /// It is in a queue.
    pub const LINKED: u32 = 1 << 29;
    /// The hypervisor is about to change the link.
    pub const BUSY: u32 = 1 << 28;
    /// The port that follows in the queue, 0 for none.
    pub const LINK: u32 = PORTS - 1;
    pub const LINK_BITS: u8 = 17;
    /// Ports that a word can name.
    pub const PORTS: u32 = 1 << LINK_BITS;
    /// Priorities, of which 0 is the highest.
    pub const QUEUES: usize = 16;
    pub const PRIORITY_DEFAULT: u8 = 7;
    pub const PRIORITY_MIN: u8 = 15;
}

/// `struct evtchn_fifo_control_block`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FifoControlBlock {
    /// Queues that have become non-empty.
    pub ready: u32,
    pub reserved: u32,
    pub head: [u32; fifo::QUEUES],
}

/// `struct evtchn_init_control`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitControl {
    pub control_frame: u64,
    pub offset: u32,
    pub vcpu: u32,
    pub link_bits: u8,
    pub padding: [u8; 7],
}

/// `struct evtchn_set_priority`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetPriority {
    pub port: u32,
    pub priority: u32,
}

layout!(FifoControlBlock, 72, head @ 8);
layout!(InitControl, 24, offset @ 8, vcpu @ 12, link_bits @ 16);
layout!(SetPriority, 8, priority @ 4);
layout!(BindVirq, 12);
layout!(BindIpi, 8);
layout!(BindVcpu, 8);
layout!(AllocUnbound, 8, port @ 4);
layout!(Status, 24, port @ 4, status @ 8, vcpu @ 12, bound @ 16);
