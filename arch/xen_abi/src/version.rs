//! `version.h`: what hypervisor this is.

/// `XENVER_*`.
pub mod op {
    pub const VERSION: u64 = 0;
    pub const EXTRAVERSION: u64 = 1;
    pub const COMPILE_INFO: u64 = 2;
    pub const CAPABILITIES: u64 = 3;
    pub const CHANGESET: u64 = 4;
    pub const PLATFORM_PARAMETERS: u64 = 5;
    pub const GET_FEATURES: u64 = 6;
    pub const PAGESIZE: u64 = 7;
    pub const GUEST_HANDLE: u64 = 8;
    pub const COMMANDLINE: u64 = 9;
    pub const BUILD_ID: u64 = 10;
}

/// Bytes of `xen_extraversion_t`.
pub const EXTRAVERSION_LEN: usize = 16;
/// Bytes of `xen_capabilities_info_t`.
pub const CAPABILITIES_LEN: usize = 1024;
/// Bytes of `xen_changeset_info_t`.
pub const CHANGESET_LEN: usize = 64;
