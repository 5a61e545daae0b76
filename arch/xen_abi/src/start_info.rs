//! `xen.h`: what a domain finds when it starts.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first bytes, with a terminating zero.
pub const MAGIC: &[u8] = b"xen-3.0-x86_64\0";
/// Bytes of the command line, its zero included.
pub const COMMAND_LINE: usize = 1024;

/// `SIF_*`.
pub mod flag {
    pub const PRIVILEGED: u32 = 1 << 0;
    pub const INITDOMAIN: u32 = 1 << 1;
    /// The module's start is a frame number.
    pub const MOD_START_PFN: u32 = 1 << 3;
    /// The p2m list is known to tools by its virtual address.
    pub const VIRT_P2M_4TOOLS: u32 = 1 << 4;
}

/// `struct start_info`, with its console of an unprivileged domain.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StartInfo {
    pub magic: [u8; 32],
    pub pages: u64,
    /// Machine address.
    pub shared_info: u64,
    pub flags: u32,
    pub padding: u32,
    pub store_mfn: u64,
    pub store_port: u32,
    pub padding2: u32,
    pub console_mfn: u64,
    pub console_port: u32,
    pub padding3: u32,
    /// Virtual address.
    pub pt_base: u64,
    pub pt_frames: u64,
    /// Virtual address of the p2m list.
    pub mfn_list: u64,
    pub module_start: u64,
    pub module_bytes: u64,
    pub command_line: [u8; COMMAND_LINE],
    pub p2m_first_pfn: u64,
    pub p2m_frames: u64,
}

layout!(
    StartInfo, 1168,
    pages @ 0x20, shared_info @ 0x28, flags @ 0x30, store_mfn @ 0x38, store_port @ 0x40,
    console_mfn @ 0x48, console_port @ 0x50, pt_base @ 0x58, pt_frames @ 0x60, mfn_list @ 0x68,
    module_start @ 0x70, module_bytes @ 0x78, command_line @ 0x80, p2m_first_pfn @ 0x480,
    p2m_frames @ 0x488,
);
