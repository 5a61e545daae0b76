//! What a machine starts with: a kernel, loaded as firmware would, or firmware.

use crate::{Error, Image, bootable::Bootable, firmware, loader::Loader, map};
use byte_stream::Output;
use device::Wiring;
use disk::Disk;
use engine::Vm;
use guest_mem::{Change, GuestMem, Memfd, Slot, SlotId};
use pci::PciHost;
use std::{fmt, path::PathBuf, sync::Arc};
use vcpu_state::VcpuState;
use vga::Vga;
use virtio::MmioPlace;
use vm_spec::{BootKind, VmSpec};

/// What the guest finds at power-on.
pub enum Start {
    Kernel {
        kernel: Image,
        initrd: Option<Image>,
        /// The whole of it.
        command_line: String,
    },
    Firmware(FirmwarePart),
    /// What the first disk has in its own file system, looked for at each start: of a Xen domain.
    Disk {
        /// For the end of the kernel's command line.
        words: String,
        /// The program that reads it, as a child with limits ([`disk_boot::read_by`]). Without one it is
        /// read here: only for disks that nobody wrote who may mean harm.
        reader: Option<PathBuf>,
    },
}

/// Firmware, in a ROM that ends at 4 GiB.
pub struct FirmwarePart {
    /// Whole pages.
    pub image: Vec<u8>,
    /// For the operator.
    pub name: String,
    /// Flash below the ROM, for firmware that keeps variables.
    pub variables: Option<Variables>,
    /// What else it is given, by the names of its files.
    pub files: Vec<(String, Vec<u8>)>,
    /// Where the firmware's log goes.
    pub log: Option<Arc<dyn Output>>,
}

/// The flash of variables.
pub struct Variables {
    /// Whole pages.
    pub contents: Vec<u8>,
    /// Holds the same bytes; `None` forgets what changes at the machine's end.
    pub store: Option<Arc<dyn Disk>>,
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variables({} bytes)", self.contents.len())
    }
}

impl fmt::Debug for FirmwarePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FirmwarePart({})", self.name)
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { command_line, .. } => write!(f, "Kernel({command_line})"),
            Self::Firmware(part) => part.fmt(f),
            Self::Disk { words, .. } => write!(f, "Disk({words})"),
        }
    }
}

/// What SeaBIOS takes for a floppy's image: it copies it to memory, and emulates the drive.
pub const FLOPPY: &str = "floppyimg/";
/// The slot of the ROM.
const ROM_SLOT: SlotId = 8;
/// What of a ROM is seen at the end of the first megabyte, too.
const LOW_ROM: u64 = 128 << 10;
const IMAGE_MIN: usize = 64 << 10;
const IMAGE_MAX: usize = 8 << 20;

impl Start {
    /// What firmware may boot from that is none of the machine's devices.
    pub(crate) fn bootable(&self) -> Option<Bootable> {
        let Self::Firmware(part) = self else { return None };
        let (name, _) = part.files.iter().find(|(name, _)| name.starts_with(FLOPPY))?;
        Some(Bootable { kind: BootKind::Floppy, path: format!("/rom@{name}") })
    }

    /// Maps the ROM, if there is one; what of it is seen below 1 MiB.
    pub(crate) fn rom(&self, vm: &dyn Vm) -> Result<Option<q35::Rom>, Error> {
        let Self::Firmware(FirmwarePart { image, variables, .. }) = self else { return Ok(None) };
        let size = image.len();
        if !(IMAGE_MIN..=IMAGE_MAX).contains(&size) || !size.is_multiple_of(4096) {
            return Err(Error::FirmwareSize(size));
        }
        if let Some(Variables { contents, .. }) = variables
            && (contents.is_empty()
                || contents.len() > IMAGE_MAX
                || !contents.len().is_multiple_of(4096))
        {
            return Err(Error::VariablesSize(contents.len()));
        }
        let len = size as u64;
        let no_memory = |source| Error::Memory { size: 1, source };
        let mem = Memfd::new(len).map_err(no_memory)?;
        mem.write_at(0, image).map_err(no_memory)?;
        let gpa = map::ROM_END - len;
        let slot = Slot { id: ROM_SLOT, gpa, mem: mem.clone(), offset: 0, len, writable: false };
        vm.set_layout(&[Change::Map(slot)])
            .map_err(|source| Error::Engine { engine: "machine", source })?;
        let low = len.min(LOW_ROM);
        Ok(Some(q35::Rom { mem, offset: len - low, len: low }))
    }
}

/// What brings the guest to its first instruction, at power-on and at each reset.
pub(crate) enum Starter {
    Kernel(Box<Loader>),
    /// With its name.
    Firmware(String),
}

impl Starter {
    /// `bootable` is what firmware may boot from, in the order in which it is to try; `virtio` are
    /// the devices that ACPI has to tell of.
    pub(crate) fn new(
        spec: &VmSpec,
        start: Start,
        bootable: &[Bootable],
        virtio: &[MmioPlace],
        wiring: &mut Wiring,
    ) -> Result<Self, Error> {
        match start {
            Start::Kernel { kernel, initrd, command_line } => {
                Ok(Self::Kernel(Box::new(Loader::new(spec, virtio, kernel, initrd, command_line)?)))
            }
            Start::Firmware(part) => {
                let mut items = firmware::items(spec, virtio, bootable)?;
                for (name, bytes) in part.files {
                    items.file(&name, bytes)?;
                }
                fw_cfg::build(items, wiring);
                if let Some(Variables { contents, store }) = part.variables {
                    // Both sizes are checked where the ROM is mapped.
                    let at = map::ROM_END - (part.image.len() + contents.len()) as u64;
                    flash::build(flash::Config { at, contents, store }, wiring);
                }
                Ok(Self::Firmware(part.name))
            }
            Start::Disk { .. } => Err(Error::NoFirmware),
        }
    }

    /// The state in which the bootstrap processor starts. Without firmware this does what it
    /// would: writes the boot plan to memory, places BARs, and starts the screen.
    pub(crate) fn start(
        &self,
        pci: &PciHost,
        memory: &GuestMem,
        vga: Option<&Vga>,
    ) -> Result<VcpuState, Error> {
        match self {
            Self::Kernel(loader) => {
                pci.assign();
                if let Some(vga) = vga {
                    vga.start_text();
                }
                loader.load(memory)
            }
            Self::Firmware(_) => Ok(VcpuState::reset(0)),
        }
    }

    pub(crate) fn description(&self) -> String {
        match self {
            Self::Kernel(loader) => loader.description(),
            Self::Firmware(name) => name.clone(),
        }
    }
}
