//! `elfnote.h`: what a kernel's ELF file says of itself to a domain builder.

/// The notes' owner.
pub const OWNER: &[u8] = b"Xen";

/// `XEN_ELFNOTE_ENTRY`: the virtual address of the entry.
pub const ENTRY: u64 = 1;
/// `XEN_ELFNOTE_HYPERCALL_PAGE`: the virtual address of a page for call stubs.
pub const HYPERCALL_PAGE: u64 = 2;
/// `XEN_ELFNOTE_VIRT_BASE`: where pseudo-physical address 0 is mapped.
pub const VIRT_BASE: u64 = 3;
/// `XEN_ELFNOTE_PADDR_OFFSET`: what the file's physical addresses are relative to.
pub const PADDR_OFFSET: u64 = 4;
/// `XEN_ELFNOTE_XEN_VERSION`.
pub const XEN_VERSION: u64 = 5;
/// `XEN_ELFNOTE_GUEST_OS`.
pub const GUEST_OS: u64 = 6;
/// `XEN_ELFNOTE_GUEST_VERSION`.
pub const GUEST_VERSION: u64 = 7;
/// `XEN_ELFNOTE_LOADER`.
pub const LOADER: u64 = 8;
/// `XEN_ELFNOTE_PAE_MODE`.
pub const PAE_MODE: u64 = 9;
/// `XEN_ELFNOTE_FEATURES`: names with `!` for those that it requires.
pub const FEATURES: u64 = 10;
/// `XEN_ELFNOTE_HV_START_LOW`.
pub const HV_START_LOW: u64 = 12;
/// `XEN_ELFNOTE_L1_MFN_VALID`.
pub const L1_MFN_VALID: u64 = 13;
/// `XEN_ELFNOTE_SUSPEND_CANCEL`.
pub const SUSPEND_CANCEL: u64 = 14;
/// `XEN_ELFNOTE_INIT_P2M`: the virtual address of the p2m list, outside the initial map.
pub const INIT_P2M: u64 = 15;
/// `XEN_ELFNOTE_MOD_START_PFN`: the module need not be mapped.
pub const MOD_START_PFN: u64 = 16;
/// `XEN_ELFNOTE_SUPPORTED_FEATURES`.
pub const SUPPORTED_FEATURES: u64 = 17;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: PVH's entry.
pub const PHYS32_ENTRY: u64 = 18;
