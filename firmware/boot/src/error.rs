//! Why a boot cannot be planned. Each message says what is wrong and what to do.

use crate::layout::mib_up;

/// Why a boot cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the kernel is empty: give a bzImage (vmlinuz) or an x86-64 ELF file")]
    Empty,
    #[error("the kernel is {found}, not a bzImage or ELF file: give {give}")]
    NotAKernel { found: &'static str, give: &'static str },
    #[error(
        "the kernel is truncated: its {part} ends at byte {needed}, the file at {have}; \
         copy or download it again"
    )]
    Truncated { part: &'static str, needed: u64, have: u64 },
    #[error("the kernel is for {found}: give one built for x86-64 or i386")]
    WrongArchitecture { found: String },
    #[error(
        "the bzImage speaks boot protocol {major}.{minor:02}, and {reason} needs 2.{least:02}: \
         give a newer kernel"
    )]
    ProtocolTooOld { major: u8, minor: u8, least: u8, reason: &'static str },
    /// No sound file of its kind is like that.
    #[error("the kernel is malformed ({0}): copy or download it again")]
    Malformed(&'static str),
    /// The file may be sound, but not what is booted here.
    #[error("the kernel cannot be booted directly, since {why}: {hint}")]
    Unfit { why: &'static str, hint: &'static str },
    #[error(
        "the kernel is compressed in a way that is not known here (it begins with {magic:02x?}): \
         let the guest decompress it, or give one compressed with gzip, xz, lz4, zstd, lzma or \
         bzip2"
    )]
    UnknownCompression { magic: [u8; 6] },
    #[error("the kernel's {compression} data is corrupt ({reason}): copy or download it again")]
    Corrupt { compression: crate::Compression, reason: String },
    #[error(
        "the kernel decompresses to {size} bytes, more than the limit of {limit}: give the guest \
         more memory (kernels above 1 GiB are refused)"
    )]
    TooLarge { size: u64, limit: u64 },
    #[error(
        "the kernel has no PVH entry (no Xen note of type 18): boot it by the Linux \
         protocol, or build it with CONFIG_PVH"
    )]
    NoPvhEntry,
    #[error(
        "the kernel has no entry for a Xen PV guest ({0}): give a 64-bit kernel with CONFIG_XEN_PV, \
         such as Debian's"
    )]
    NoXenEntry(&'static str),
    #[error("the kernel has no Multiboot header in its first 32 KiB: boot it by another protocol")]
    NoMultibootHeader,
    #[error(
        "the kernel requires of its boot loader what is not known here (Multiboot {what}): boot it \
         by its own boot loader, from a disk or CD"
    )]
    MultibootFeature { what: String },
    #[error("the guest's memory of {size} bytes is unusable: {reason}")]
    Memory { size: u64, reason: &'static str },
    #[error(
        "the guest's memory is too small for this kernel: its {what} ends at {end:#x}, low \
         memory at {low_end:#x}; give at least {} MiB", mib_up(*needed)
    )]
    TooSmall { what: &'static str, end: u64, low_end: u64, needed: u64 },
    #[error(
        "the kernel's {what} ({start:#x} to {end:#x}) overlaps the {with}: link it above 1 MiB"
    )]
    Overlap { what: &'static str, with: &'static str, start: u64, end: u64 },
    /// `limit` if the kernel wants the initrd to end there, and more memory would not help.
    #[error(
        "the initrd of {size} bytes does not fit, {room} bytes are free for it: give {}",
        initrd_hint(*size, *room, *limit)
    )]
    InitrdTooLarge { size: u64, room: u64, limit: Option<u64> },
    #[error("the initrd is empty: give another, or none")]
    InitrdEmpty,
    #[error("the command line has {length} bytes, and this kernel takes {limit}: shorten it")]
    CommandLineTooLong { length: usize, limit: usize },
    #[error("the command line contains a zero byte: take it out")]
    CommandLineZero,
}

fn initrd_hint(size: u64, room: u64, limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("a smaller one (this kernel takes it below {limit:#x} only)"),
        None => {
            let more = mib_up(size.saturating_sub(room)).max(1);
            format!("the guest {more} MiB more memory, or a smaller initrd")
        }
    }
}
