//! As many devices as a description may have.

use crate::{common::*, guests, memory, saving::copy_memory};
use device::Device;
use disk::{Memory, Shape};
use machine::{
    ChannelPart, DiskPart, Ended, Handle, Machine, NetworkPart, Parts, VsockPart,
    engines::{self, Kind},
};
use nic::{Mac, Unplugged};
use saved_state::{Error, Part, Reader, Schema, Writer};
use std::{os::unix::net::UnixListener, sync::Arc};
use tempfile::TempDir;
use virtio_net::NetState;
use vm_spec::{
    ConsoleDevice, DISKS_MAX, DiskBus, NetModel, PCI_MAX,
    VirtioTransport::{self, Mmio, Pci},
    VmSpec,
};

const MIB: u64 = 1 << 20;
/// What the devices that are no disks take of the bus.
const OTHERS: usize = 18;
const DISKS: usize = PCI_MAX - OTHERS;
/// Enough for several queues.
const CPUS: u32 = 3;

/// Every kind of device, and disks on all other places.
fn spec(kind: Kind, virtio: VirtioTransport, disks: usize) -> VmSpec {
    VmSpec {
        virtio,
        cpus: CPUS,
        disks: (0..disks).map(|_| "a".parse().unwrap()).collect(),
        rng: true,
        balloon: true,
        input: true,
        ports: 8,
        console_device: ConsoleDevice::Virtio,
        channels: vec!["x=pty".parse().unwrap()],
        net: "user".parse().unwrap(),
        vsock: Some("/v".parse().unwrap()),
        display: "vnc=127.0.0.1:0".parse().unwrap(),
        memory: 32 * MIB,
        memory_max: Some(160 * MIB),
        ..crate::common::spec(kind)
    }
}

/// The network of a card that is plugged into none.
struct Nothing;

impl Device for Nothing {
    fn name(&self) -> String {
        "nothing".into()
    }

    fn reset(&self) {}

    fn save(&self, _: &mut Writer) {}

    fn restore(&self, _: &mut Reader) -> Result<(), Error> {
        Ok(())
    }
}

fn build(
    (kind, virtio): (Kind, VirtioTransport),
    khz: u32,
    code: &[u8],
    folder: &TempDir,
    name: &str,
) -> Machine {
    let console = Arc::new(Console::default());
    let disk = || DiskPart {
        disk: Arc::new(Memory::new(Shape::of_bytes(MIB))),
        serial: String::new(),
        bus: DiskBus::Virtio,
    };
    let base = folder.path().join(name);
    let listener = UnixListener::bind(&base).unwrap();
    let parts = Parts {
        disks: (0..DISKS).map(|_| disk()).collect(),
        entropy: Some(Box::new(std::io::repeat(7))),
        channels: vec![ChannelPart { name: "x".into(), output: console.clone(), peer: true }],
        vsock: Some(VsockPart { cid: 3, listener, base }),
        networks: vec![NetworkPart {
            network: Arc::new(Unplugged),
            device: Arc::new(Nothing),
            model: NetModel::Virtio,
            mac: Mac::derived(b"full", 0),
            mtu: 1500,
        }],
        ..parts(elf(code), &console)
    };
    let engine = engines::open(kind).unwrap();
    Machine::build_at(&*engine, &spec(kind, virtio, DISKS), parts, khz).unwrap()
}

fn save(handle: &Handle) -> Vec<Part> {
    handle.save().unwrap().unwrap()
}

/// That of the card.
fn card(parts: &[Part]) -> NetState {
    let part = parts.iter().find(|part| part.kind == NetState::KIND).unwrap().clone();
    let instance = part.instance;
    Reader::new(vec![part]).unwrap().take(instance).unwrap()
}

#[test]
fn what_a_description_may_have_the_board_has_places_for() {
    for kind in kinds() {
        assert!(spec(kind, Pci, DISKS + 1).validate().is_err());
        assert_eq!(spec(kind, Pci, DISKS).validate(), Ok(()));
        let most = spec(kind, Mmio, DISKS_MAX);
        assert_eq!(most.validate(), Ok(()));
        let folder = TempDir::new().unwrap();
        let khz = engines::open(kind).unwrap().caps().tsc_khz;
        for virtio in [Pci, Mmio] {
            let name = virtio.name();
            let machine = build((kind, virtio), khz, guests::POWER_OFF, &folder, name);
            machine.handle().resume().unwrap();
            assert_eq!(end(&machine), Ended::PoweredOff, "{kind:?} {name}");
        }
    }
}

/// Moves a guest with all devices from one engine to another, in the middle of its run.
fn moves(first: Kind, second: Kind, virtio: VirtioTransport, khz: u32) {
    const COUNTER: u64 = 0x11_0000;
    let folder = TempDir::new().unwrap();
    let source = build((first, virtio), khz, guests::COUNTS, &folder, "source");
    let handle = source.handle();
    assert_eq!(handle.set_memory(96 * MIB), Ok(true));
    memory::plug(&source, 64 * MIB);
    let hot = machine::map::hot_memory(32 * MIB, 128 * MIB);
    handle.memory().write(hot.start, b"first").unwrap();
    handle.memory().write(hot.start + 64 * MIB - 4, b"last").unwrap();
    handle.resume().unwrap();
    until("the guest counts", || dword(&source, COUNTER) > 0);
    handle.pause().unwrap();
    let parts = save(&handle);
    // A pair for each vCPU can be used; a driver that says nothing uses one.
    assert_eq!(card(&parts).pairs, 1);
    let target = build((second, virtio), khz, guests::POWER_OFF, &folder, "target");
    copy_memory(&handle, &target.handle());
    target.handle().restore(parts.clone()).unwrap().unwrap();
    if first == second {
        let again = save(&target.handle());
        assert_eq!(parts.len(), again.len());
        for (one, other) in parts.iter().zip(&again) {
            assert_eq!(one, other, "{} {}", one.kind, one.instance);
        }
    }
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        target.handle().memory().read(at, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(read(hot.start, 5), b"first");
    assert_eq!(read(hot.start + 64 * MIB - 4, 4), b"last");
    let (was, is) = (handle.memory_info(), target.handle().memory_info());
    assert_eq!(is.unwrap().map(|info| info.now), Some(96 * MIB));
    assert_eq!(was, is);
    let count = dword(&source, COUNTER);
    drop(source);
    target.handle().resume().unwrap();
    until("the guest counts on", || dword(&target, COUNTER) > count);
}

#[test]
fn a_guest_with_all_devices_moves() {
    let kinds = kinds();
    for &first in &kinds {
        for &second in &kinds {
            let of = if first == Kind::Kvm { first } else { second };
            let khz = engines::open(of).unwrap().caps().tsc_khz;
            for virtio in [Pci, Mmio] {
                moves(first, second, virtio, khz);
            }
        }
    }
}

#[test]
fn between_buses_no_guest_moves() {
    for kind in kinds() {
        let khz = engines::open(kind).unwrap().caps().tsc_khz;
        let folder = TempDir::new().unwrap();
        let machine = |virtio, name| build((kind, virtio), khz, guests::COUNTS, &folder, name);
        let (source, target) = (machine(Pci, "on PCI"), machine(Mmio, "in memory"));
        assert!(target.handle().restore(save(&source.handle())).unwrap().is_err(), "{kind:?}");
    }
}

#[test]
fn where_the_memory_that_can_come_is_other_the_state_is_refused() {
    for kind in kinds() {
        let khz = engines::open(kind).unwrap().caps().tsc_khz;
        let folder = TempDir::new().unwrap();
        let source = build((kind, Pci), khz, guests::COUNTS, &folder, "source");
        let engine = engines::open(kind).unwrap();
        let console = Arc::new(Console::default());
        let small = VmSpec { cpus: CPUS, ..crate::common::spec(kind) };
        let parts = parts(elf(guests::COUNTS), &console);
        let target = Machine::build_at(&*engine, &small, parts, khz).unwrap();
        assert!(target.handle().restore(save(&source.handle())).unwrap().is_err(), "{kind:?}");
    }
}
