//! The targets.

mod cdb;
mod e1000;
mod files;
mod gdb;
mod pc;
mod pci_bus;
mod processors;
mod sata;
mod user_net;
mod virtio_block;
mod virtio_misc;
mod virtio_mmio;
mod virtio_net;
mod vnc;
mod vsock;
mod xen;
mod xen_blk;
mod xen_calls;
mod xen_net;

use crate::Target;

/// All of them, in the order of a list.
pub const TARGETS: &[Target] = &[
    Target { name: "virtio_blk", about: "requests of a virtio disk", run: virtio_block::blk },
    Target {
        name: "virtio_scsi",
        about: "requests of a virtio SCSI adapter",
        run: virtio_block::scsi,
    },
    Target {
        name: "virtio_net",
        about: "frames and commands of a virtio card",
        run: virtio_net::run,
    },
    Target {
        name: "virtio_console",
        about: "ports of a virtio console",
        run: virtio_misc::console,
    },
    Target {
        name: "virtio_input",
        about: "events of a virtio keyboard",
        run: virtio_misc::keyboard,
    },
    Target { name: "virtio_tablet", about: "events of a virtio tablet", run: virtio_misc::tablet },
    Target { name: "virtio_rng", about: "requests for random bytes", run: virtio_misc::rng },
    Target {
        name: "virtio_balloon",
        about: "pages and statistics of a balloon",
        run: virtio_misc::balloon,
    },
    Target { name: "virtio_mem", about: "requests for hot-plugged memory", run: virtio_misc::mem },
    Target {
        name: "chipset",
        about: "PICs, PIT, IOAPIC, RTC, HPET, ACPI, reset",
        run: pc::chipset,
    },
    Target { name: "cpu_hotplug", about: "CPUs that come and go", run: processors::hot_plug },
    Target {
        name: "local_apic",
        about: "local APICs, their timers and messages",
        run: processors::local_apic,
    },
    Target {
        name: "virtio_mmio",
        about: "registers of virtio devices in memory",
        run: virtio_mmio::run,
    },
    Target { name: "desk", about: "serial port, keyboard controller, VGA", run: pc::desk },
    Target { name: "firmware", about: "fw_cfg with its DMA, and flash", run: pc::firmware },
    Target { name: "pci", about: "host bridge, functions, root ports", run: pci_bus::run },
    Target { name: "ahci", about: "commands of SATA disks and CD drives", run: sata::run },
    Target { name: "e1000", about: "rings and registers of an 82540EM", run: e1000::run },
    Target { name: "xen_blk", about: "rings and nodes of a Xen block driver", run: xen_blk::run },
    Target { name: "virtio_vsock", about: "packets of a virtio socket device", run: vsock::run },
    Target { name: "xen_net", about: "rings and nodes of a Xen network driver", run: xen_net::run },
    Target {
        name: "user_net",
        about: "the user-mode network, from both sides",
        run: user_net::run,
    },
    Target { name: "vnc", about: "what a VNC client sends", run: vnc::run },
    Target { name: "gdb", about: "what a debugger sends", run: gdb::run },
    Target { name: "loaders", about: "kernels: bzImage, ELF, PVH, Multiboot", run: files::loaders },
    Target { name: "images", about: "headers of qcow2 images", run: files::images },
    Target { name: "seed", about: "files for cloud-init", run: files::seed },
    Target { name: "options", about: "values of options", run: files::options },
    Target {
        name: "xen_calls",
        about: "hypercalls, faults and back ends of a Xen domain",
        run: xen_calls::run,
    },
    Target { name: "xen_store", about: "messages of xenstore, on its ring", run: xen::store },
    Target { name: "xen_loader", about: "kernels with Xen's notes", run: xen::loader },
];
