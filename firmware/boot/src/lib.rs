//! Direct boot of a kernel without firmware: Linux bzImages, and ELF files by PVH, by Multiboot or
//! by Linux' own protocols; other files by Multiboot.
//!
//! [`load`] is pure: it takes the files' bytes and a description of the memory, and yields a
//! plan: what to write where, and the state in which the bootstrap processor starts. The
//! caller copies the segments into guest memory and sets the state, at start and again at
//! each reset.
//!
//! ```text
//!  kernel bytes -> bzimage -> decompress -> elf -> linux --.
//!             \        `-- the image's own decompressor     \
//!              `---------------------------> elf -> pvh ------> layout (checks) -> Loaded
//!                                             `-> multiboot /
//! ```
//!
//! The files are hostile: whatever they hold, the outcome is a plan inside the guest's memory
//! or an [`Error`] that says what to do.

mod boot_params;
mod bytes;
mod bzimage;
mod decompress;
mod elf_file;
mod entry;
mod error;
mod layout;
mod linux;
mod multiboot;
mod pvh;
#[cfg(test)]
mod synthetic;
mod xen_pv;

pub use bytes::Bytes;
pub use decompress::Compression;
pub use error::Error;
pub use layout::{Memory, Segment};
pub use xen_pv::{XenPv, XenPvRequest, load as load_xen_pv};

use bzimage::BzImage;
use elf_file::ElfFile;
use vcpu_state::VcpuState;

/// What to boot, and in what memory.
#[derive(Clone, Debug)]
pub struct Request {
    pub kernel: Bytes,
    pub initrd: Option<Bytes>,
    /// Without a terminating zero; must not contain one.
    pub command_line: String,
    pub memory: Memory,
    /// Where the ACPI root pointer is.
    pub rsdp: Option<u64>,
    /// Its bytes, which Multiboot2 hands over; empty for none.
    pub rsdp_copy: Vec<u8>,
    /// There is a VGA, which shows 80 by 25 characters: the Linux boot protocol says so.
    pub text_screen: bool,
    pub protocol: Protocol,
    pub unpack: Unpack,
}

impl Request {
    /// A request with no initrd, an empty command line and every choice left to [`load`].
    pub fn new(kernel: impl Into<Bytes>, memory: Memory) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            command_line: String::new(),
            memory,
            rsdp: None,
            rsdp_copy: Vec::new(),
            text_screen: false,
            protocol: Protocol::Auto,
            unpack: Unpack::Auto,
        }
    }
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// A bzImage by the Linux protocol of its width; an ELF file by PVH if it has the note for it,
    /// by Multiboot if it has its header, and by the Linux protocol otherwise; any other file by
    /// Multiboot.
    #[default]
    Auto,
    /// The 64-bit or 32-bit entry of `Documentation/arch/x86/boot.rst`.
    Linux,
    /// The PVH entry of Xen's `docs/misc/pvh.pandoc`.
    Pvh,
    /// Multiboot 0.6.96, or Multiboot2 if there is only its header.
    Multiboot,
}

/// Who decompresses a bzImage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unpack {
    /// The host, or the guest where the host does not know the compression.
    #[default]
    Auto,
    Host,
    /// The image's own code, which also randomizes the kernel's address.
    Guest,
}

/// The plan of a boot.
///
/// The segments share the decompressed kernel's bytes, some 50 MB: drop the plan once they are
/// written, and make it anew for a reset.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to write to guest memory. They do not overlap, and all are inside low RAM.
    pub segments: Vec<Segment>,
    /// The state of the bootstrap processor.
    pub vcpu: VcpuState,
    /// One line for a log: what is booted, and how.
    pub description: String,
}

/// Makes the plan.
pub fn load(request: &Request) -> Result<Loaded, Error> {
    request.memory.check()?;
    if request.command_line.bytes().any(|byte| byte == 0) {
        return Err(Error::CommandLineZero);
    }
    let file = request.kernel.as_slice();
    if Compression::of(file) == Some(Compression::Gzip) {
        // As boot loaders do; the kernels of some systems are installed so.
        let kernel = decompress::payload(Compression::Gzip, file, request.memory.low_end)?;
        return load_file(&Request { kernel: kernel.into(), ..request.clone() });
    }
    load_file(request)
}

fn load_file(request: &Request) -> Result<Loaded, Error> {
    let file = request.kernel.as_slice();
    if ElfFile::is_elf(file) {
        return load_elf(request);
    }
    if !BzImage::is_one(file) || request.protocol == Protocol::Multiboot {
        if let Some(header) = multiboot::find(file)? {
            return multiboot::load(request, &request.kernel, &header);
        }
        if request.protocol == Protocol::Multiboot {
            return Err(Error::NoMultibootHeader);
        }
    }
    let image = BzImage::parse(file)?;
    if request.unpack == Unpack::Guest {
        return linux::load_bzimage(request, &image);
    }
    let Some(compression) = image.compression() else {
        if request.unpack == Unpack::Auto && request.protocol != Protocol::Pvh {
            return linux::load_bzimage(request, &image);
        }
        return Err(Error::UnknownCompression { magic: image.payload_magic() });
    };
    let vmlinux = Bytes::from(image.decompress(compression, request.memory.low_end)?);
    let elf = ElfFile::parse(vmlinux.as_slice())?;
    let what = format!("bzImage {} ({compression})", image.version_text());
    match request.protocol {
        Protocol::Pvh => pvh::load(request, &elf, &vmlinux, &what),
        _ => linux::load_elf(request, &elf, &vmlinux, Some(&image), &what),
    }
}

/// Decompresses the ELF file inside a bzImage, of at most `limit` bytes.
pub fn extract_vmlinux(bzimage: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    let image = BzImage::parse(bzimage)?;
    let compression = image
        .compression()
        .ok_or_else(|| Error::UnknownCompression { magic: image.payload_magic() })?;
    image.decompress(compression, limit)
}

fn load_elf(request: &Request) -> Result<Loaded, Error> {
    let bytes = &request.kernel;
    let elf = ElfFile::parse(bytes.as_slice())?;
    let what = "ELF file";
    match request.protocol {
        Protocol::Pvh => return pvh::load(request, &elf, bytes, what),
        Protocol::Linux => return linux::load_elf(request, &elf, bytes, None, what),
        Protocol::Auto if elf.pvh_entry()?.is_some() => {
            return pvh::load(request, &elf, bytes, what);
        }
        Protocol::Auto | Protocol::Multiboot => {}
    }
    match multiboot::find(bytes.as_slice())? {
        Some(header) => multiboot::load(request, bytes, &header),
        None if request.protocol == Protocol::Multiboot => Err(Error::NoMultibootHeader),
        None => linux::load_elf(request, &elf, bytes, None, what),
    }
}
