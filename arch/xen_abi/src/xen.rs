//! `xen.h` and `arch-x86/xen.h`: pages that the hypervisor and a domain share, and the hypervisor's
//! part of the address space.

use crate::layout;
use std::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HYPERVISOR_VIRT_START` to `HYPERVISOR_VIRT_END`.
pub const HYPERVISOR_VIRT: Range<u64> = 0xffff_8000_0000_0000..0xffff_8800_0000_0000;
/// The entries of an L4 table that are the hypervisor's.
pub const HYPERVISOR_SLOTS: Range<usize> = 256..272;
/// `__MACH2PHYS_VIRT_START` to `__MACH2PHYS_VIRT_END`.
pub const MACH2PHYS_VIRT: Range<u64> = 0xffff_8000_0000_0000..0xffff_8040_0000_0000;

/// vCPUs whose information is in [`SharedInfo`]: `XEN_LEGACY_MAX_VCPUS`.
pub const LEGACY_VCPUS: usize = 32;

/// `struct vcpu_time_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while it is being written.
    pub version: u32,
    pub padding: u32,
    pub tsc_timestamp: u64,
    pub system_time: u64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    pub flags: u8,
    pub padding2: [u8; 2],
}

/// `XEN_PVCLOCK_TSC_STABLE_BIT`.
pub const TSC_STABLE: u8 = 1 << 0;

/// `struct vcpu_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuInfo {
    pub upcall_pending: u8,
    pub upcall_mask: u8,
    pub padding: [u8; 6],
    pub pending_sel: u64,
    pub cr2: u64,
    pub padding2: u64,
    pub time: VcpuTimeInfo,
}

/// `struct shared_info`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedInfo {
    pub vcpu: [VcpuInfo; LEGACY_VCPUS],
    pub pending: [u64; 64],
    pub mask: [u64; 64],
    pub wc_version: u32,
    pub wc_sec: u32,
    pub wc_nsec: u32,
    pub wc_sec_hi: u32,
    pub max_pfn: u64,
    pub frame_list_list: u64,
    pub nmi_reason: u64,
    pub p2m_cr3: u64,
    pub p2m_vaddr: u64,
    pub p2m_generation: u64,
}

layout!(VcpuTimeInfo, 32, tsc_timestamp @ 8, tsc_to_system_mul @ 0x18, flags @ 0x1d);
layout!(VcpuInfo, 64, pending_sel @ 8, cr2 @ 0x10, time @ 0x20);
layout!(
    SharedInfo, 0xc40,
    pending @ 0x800, mask @ 0xa00, wc_version @ 0xc00, wc_sec_hi @ 0xc0c, max_pfn @ 0xc10,
    p2m_vaddr @ 0xc30, p2m_generation @ 0xc38,
);
