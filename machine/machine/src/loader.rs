//! The boot plan: made anew at power-on and at each reset, so that the files' bytes are not
//! kept unpacked meanwhile.

use crate::{Error, Image, map, smbios};
use boot::{Memory, Protocol, Request};
use guest_mem::GuestMem;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use vcpu_state::VcpuState;
use virtio::MmioPlace;
use vm_spec::{GuestKind, VmSpec};

pub(crate) struct Loader {
    kernel: Image,
    initrd: Option<Image>,
    command_line: String,
    memory: Memory,
    acpi: acpi_build::Tables,
    smbios: [(u64, Vec<u8>); 2],
    text_screen: bool,
    protocol: Protocol,
    description: Mutex<String>,
    loaded: AtomicBool,
}

impl Loader {
    pub(crate) fn new(
        spec: &VmSpec,
        virtio: &[MmioPlace],
        kernel: Image,
        initrd: Option<Image>,
        command_line: String,
    ) -> Result<Self, Error> {
        let acpi = acpi_build::build(&acpi_board(spec, virtio))?;
        let ends = acpi.segments.iter().map(|(at, bytes)| at + bytes.len() as u64);
        let taken = ends.max().unwrap_or(0);
        let smbios = smbios::segments(&smbios::tables(spec), taken).ok_or(Error::Smbios)?;
        let memory = Memory {
            low_end: spec.memory.min(map::LOW_RAM_END),
            high_end: map::ram(spec.memory).last().map_or(0, |range| range.end),
        };
        Ok(Self {
            kernel,
            initrd,
            command_line,
            memory,
            acpi,
            smbios,
            text_screen: spec.display.is_there(),
            protocol: match spec.guest {
                GuestKind::Pvh => Protocol::Pvh,
                GuestKind::Pc | GuestKind::XenPv => Protocol::Auto,
            },
            description: Mutex::default(),
            loaded: AtomicBool::new(false),
        })
    }

    /// Writes everything to memory; the state in which the bootstrap processor starts.
    pub(crate) fn load(&self, memory: &GuestMem) -> Result<VcpuState, Error> {
        let plan = boot::load(&self.request()?)?;
        // Fresh memory is zero, and a read would allocate it.
        let again = self.loaded.swap(true, Relaxed);
        for segment in &plan.segments {
            memory.write(segment.gpa, segment.bytes())?;
            if again {
                let range = segment.range();
                zero(memory, range.end - segment.zero_tail..range.end)?;
            }
        }
        for (gpa, bytes) in self.acpi.segments.iter().chain(&self.smbios) {
            memory.write(*gpa, bytes)?;
        }
        *self.description.lock().unwrap_or_else(PoisonError::into_inner) = plan.description;
        Ok(plan.vcpu)
    }

    fn request(&self) -> Result<Request, Error> {
        let kernel = self.kernel.bytes().map_err(Error::Image)?;
        let mut request = Request::new(kernel, self.memory);
        let initrd = self.initrd.as_ref().map(Image::bytes);
        request.initrd = initrd.transpose().map_err(Error::Image)?;
        request.command_line.clone_from(&self.command_line);
        request.rsdp = Some(self.acpi.rsdp);
        let rsdp = self.acpi.segments.iter().find(|(gpa, _)| *gpa == self.acpi.rsdp);
        request.rsdp_copy = rsdp.map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        request.text_screen = self.text_screen;
        request.protocol = self.protocol;
        Ok(request)
    }

    pub(crate) fn description(&self) -> String {
        self.description.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The board as ACPI tells of it, with these devices that are not on the PCI bus.
pub(crate) fn acpi_board(spec: &VmSpec, virtio: &[MmioPlace]) -> acpi_build::Board {
    let cpus = (0..spec.cpus_most()).map(|id| acpi_build::Cpu { uid: id, apic_id: id }).collect();
    let mut board = acpi_build::Board::new(cpus);
    board.pci = Some(pci_bridge(spec.ports));
    // It lies below 4 GiB.
    let address = chipset::hpet::ADDRESS as u32;
    board.hpet = Some(acpi_build::Hpet { id: chipset::hpet::ID, address });
    board.hot_cpus = spec.cpus_max.map(|_| acpi_build::HotCpus {
        present: spec.cpus as usize,
        port: chipset::cpus::PORTS,
        events: chipset::gpe::BLOCK,
        events_length: chipset::gpe::LENGTH,
        event: chipset::gpe::CPUS,
    });
    board.hot_memory = (spec.memory_room() > 0).then(|| acpi_build::HotMemory {
        ram: map::ram(spec.memory),
        room: map::hot_memory(spec.memory, spec.memory_room()),
    });
    // All of the window is below 4 GiB.
    let device = |p: &MmioPlace| acpi_build::VirtioMmio { address: p.address as u32, gsi: p.gsi };
    board.virtio = virtio.iter().map(device).collect();
    (board.i8042, board.vga) = (spec.display.is_there(), spec.display.is_there());
    board
}

/// The host bridge as ACPI tells of it.
fn pci_bridge(ports: u32) -> acpi_build::Pci {
    let (ecam, window) = (map::pci_ecam(ports), map::PCI_WINDOW);
    acpi_build::Pci {
        // Both lie below 4 GiB.
        ecam: ecam.start as u32,
        buses: ((ecam.end - ecam.start) >> 20) as u16,
        memory: (window.start as u32, (window.end - 1) as u32),
        interrupts: (1..pci::SLOTS).map(pci::gsi).collect(),
        hot_plug: ports > 0,
    }
}

/// Writes zeroes only where there are others, so that pages that need no change stay clean.
fn zero(memory: &GuestMem, range: std::ops::Range<u64>) -> Result<(), guest_mem::Error> {
    let (mut chunk, zeroes) = ([0; 4096], [0; 4096]);
    let mut at = range.start;
    while at < range.end {
        let here = (range.end - at).min(4096) as usize;
        memory.read(at, &mut chunk[..here])?;
        if chunk[..here] != zeroes[..here] {
            memory.write(at, &zeroes[..here])?;
        }
        at += here as u64;
    }
    Ok(())
}
