//! As many devices as a description may have.

use crate::{common::*, guests};
use disk::{Memory, Shape};
use machine::{ChannelPart, DiskPart, Ended, Machine, Parts, Start, Tracer, engines};
use std::sync::Arc;
use vm_spec::{ConsoleDevice, DiskBus, PCI_MAX, VmSpec};

/// Every kind of device but a network card, and disks on all other places.
fn spec(disks: usize) -> VmSpec {
    VmSpec {
        disks: (0..disks).map(|_| "a".parse().unwrap()).collect(),
        rng: true,
        balloon: true,
        input: true,
        ports: 8,
        console_device: ConsoleDevice::Virtio,
        channels: vec!["x=pty".parse().unwrap()],
        display: "vnc=127.0.0.1:0".parse().unwrap(),
        memory: 32 << 20,
        ..VmSpec::default()
    }
}

#[test]
fn what_a_description_may_have_the_board_has_places_for() {
    const DISKS: usize = PCI_MAX - 15;
    assert!(spec(DISKS + 1).validate().is_err());
    let spec = spec(DISKS);
    assert_eq!(spec.validate(), Ok(()));
    for kind in kinds() {
        let console = Arc::new(Console::default());
        let disk = || DiskPart {
            disk: Arc::new(Memory::new(Shape::of_bytes(1 << 20))),
            serial: String::new(),
            bus: DiskBus::Virtio,
        };
        let parts = Parts {
            start: Start::Kernel {
                kernel: elf(guests::POWER_OFF).into(),
                initrd: None,
                command_line: String::new(),
            },
            console: console.clone(),
            disks: (0..DISKS).map(|_| disk()).collect(),
            entropy: Some(Box::new(std::io::repeat(7))),
            channels: vec![ChannelPart { name: "x".into(), output: console, peer: true }],
            vga_rom: None,
            vsock: None,
            networks: Vec::new(),
            tracer: Tracer::none(),
        };
        let engine = engines::open(kind).unwrap();
        let cpu_model = (kind == engines::Kind::Kvm).then(|| "host".into());
        let spec = VmSpec { cpu_model, ..spec.clone() };
        let machine = Machine::build(&*engine, &spec, parts).unwrap();
        machine.handle().resume().unwrap();
        assert_eq!(end(&machine), Ended::PoweredOff, "{kind:?}");
    }
}
