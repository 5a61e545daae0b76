//! Every device of the machine, from one table, and the vCPUs.
use crate::{
    Error,
    apic::{TscOffsets, VcpuApic},
    board::{Apics, Board},
    bootable::{self, Bootable},
    clock::GuestClock,
    cpuid,
    cpus::PcWatch,
    disks, extras,
    host::{BoardHost, Interrupts},
    late::LateVcpu,
    map, networks,
    owner::Request,
    parts::{DiskPart, NetworkPart, Parts},
    platform::{Common, Platform},
    plug::{Ports, There},
    power::PowerGate,
    ram::{self, Slots},
    screen,
    start::{Start, Starter},
    timers::TimerThread,
    units::Units,
    vcpu::{VcpuThread, Waker},
    virtio_bus::VirtioBus,
    watch::Watch,
    xen,
};
use byte_stream::Input;
use chipset::Chipset;
use device::{Msi, MsiSink, Wiring};
use display::Seat;
use engine::{Engine, Vcpu, Vm, VmConfig};
use guest_mem::Memfd;
use local_apic::ApicBus;
use pci::PciHost;
use pv_kvm::PvKvm;
use std::sync::{Arc, OnceLock, atomic::AtomicBool, mpsc::Sender};
use virtio_rng::VirtioRng;
use vm_spec::{BootKind, GuestKind, VmSpec};

pub(crate) struct Built {
    pub(crate) board: Box<dyn Platform>,
    pub(crate) watch: Arc<dyn Watch>,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) console: Arc<dyn Input>,
    pub(crate) channels: Vec<Arc<dyn Input>>,
    pub(crate) seat: Seat,
}

/// Messages to an engine's own local APICs.
struct EngineMsi(Arc<dyn Vm>);

impl MsiSink for EngineMsi {
    fn send(&self, msi: Msi) {
        // A message that the kernel refuses reaches nobody, as on a bus.
        drop(self.0.signal_msi(msi));
    }
}

pub(crate) fn build(
    engine: &dyn Engine,
    spec: &VmSpec,
    parts: Parts,
    tsc_khz: u32,
    owner: &Sender<Request>,
) -> Result<Built, Error> {
    if spec.guest == GuestKind::XenPv {
        return xen::build(engine, spec, parts, tsc_khz, owner);
    }
    let failed = |source| Error::Engine { engine: engine.name(), source };
    let caps = engine.caps();
    let cpu = cpuid::resolve(engine, spec, tsc_khz)?;
    let (vm, ram) = create_vm(engine, spec, cpu.table, tsc_khz)?;
    let clock = Arc::new(GuestClock::new(tsc_khz));
    let timers = TimerThread::start(clock.clone(), owner.clone()).map_err(Error::Thread)?;
    let power = Arc::new(PowerGate::new(owner.clone()));

    let wakers: Arc<OnceLock<Vec<Arc<Waker>>>> = Arc::default();
    let count = spec.cpus_most();
    let offsets = TscOffsets::new(clock.clone(), count);
    let bus =
        (!caps.local_apic).then(|| apic_bus(count, &clock, &timers, &offsets, wakers.clone()));
    let mut wiring = empty(&vm, &clock, &timers, &power, message_sink(bus.as_ref(), &vm));
    let chipset = chipset::build(&chipset_config(spec, &parts.start), &mut wiring);
    connect(&chipset, bus.as_ref(), &vm, &wakers);
    if let Some(cpus) = &chipset.cpus {
        let owner = owner.clone();
        // A machine that has ended needs no telling.
        cpus.on_eject(move || drop(owner.send(Request::CpusEjected)));
    }
    ram::map_room(&*vm, spec, engine.name())?;
    let rom = parts.start.rom(&*vm)?;
    let pci = q35::build(&bridges(spec.ports, ram, rom), &mut wiring);
    let mut virtio = VirtioBus::new(spec.virtio, pci.clone());
    let bootable = parts.start.bootable().into_iter().collect();
    let (bootable, units) =
        add_bootable(bootable, spec, parts.disks, parts.networks, &mut virtio, &mut wiring)?;
    if let Some(source) = parts.entropy {
        virtio.add(VirtioRng::new(source), &mut wiring)?;
    }
    let screen = screen::build(spec, parts.vga_rom, &pci, &mut wiring)?;
    let uart = uart::build(&uart::Config::COM1, parts.console.clone(), &mut wiring);
    let streams = extras::Streams {
        console: parts.console,
        channels: parts.channels,
        vsock: parts.vsock,
        seat: screen.seat,
    };
    let (extras, channels) = extras::build(spec, streams, &mut virtio, &mut wiring)?;
    let console = extras.console_input().unwrap_or(uart);

    let there = There { units, sockets: spec.vsock.is_some(), extras: extras.clone() };
    let ports = ports(&pci, spec, there, owner, &wiring);

    let pv = PvKvm::new(vm.memory().clone(), sampler(&clock), cpu.pv, count);
    let starter = Starter::new(spec, parts.start, &bootable, virtio.places(), &mut wiring)?;
    let (pio, mmio) = (Arc::new(wiring.pio), Arc::new(wiring.mmio));
    let apics = match bus {
        Some(bus) => Apics::Board { bus, offsets, pv },
        None => Apics::Engine { nmi: (0..count).map(|_| Arc::default()).collect() },
    };
    let mut vcpus = Vec::new();
    for id in 0..count {
        let vcpu = create_vcpu(&vm, id, id < spec.cpus).map_err(failed)?;
        let waker = Waker::new(vcpu.kicker());
        let host = BoardHost {
            id,
            pio: pio.clone(),
            mmio: mmio.clone(),
            clock: clock.clone(),
            power: power.clone(),
            tracer: parts.tracer.clone(),
            interrupts: interrupts(&apics, id, &chipset),
            exits: Default::default(),
        };
        let thread = VcpuThread::start(id, vcpu, host, waker, owner.clone());
        vcpus.push(thread.map_err(Error::Thread)?);
    }
    // Set once, here.
    let _ = wakers.set(vcpus.iter().map(|v| v.waker.clone()).collect());
    let common = Common {
        vm,
        clock,
        power,
        timers,
        devices: wiring.devices,
        tracer: parts.tracer,
        engine: engine.name(),
        cpu_model: cpu.model,
        memory: spec.memory,
    };
    let board = Board { common, chipset, pci, extras, ports, apics, starter, vga: screen.vga };
    board.load(&vcpus)?;
    let seat = board.extras.seat().clone();
    let watch = PcWatch { extras: board.extras.clone(), cpus: board.chipset.cpus.clone() };
    Ok(Built { board: Box::new(board), watch: Arc::new(watch), vcpus, console, channels, seat })
}

/// A vCPU, or one that the engine makes when its CPU first comes.
fn create_vcpu(vm: &Arc<dyn Vm>, id: u32, now: bool) -> Result<Box<dyn Vcpu>, engine::Error> {
    if now { vm.create_vcpu(id) } else { Ok(Box::new(LateVcpu::new(vm.clone(), id))) }
}

/// Where a vCPU's interrupts come from.
fn interrupts(apics: &Apics, id: u32, chipset: &Chipset) -> Interrupts {
    let pic = chipset.pic.clone();
    let engine = |nmi: Arc<AtomicBool>| Interrupts::Engine {
        pic: chipset.pic.clone(),
        nmi,
        ioapic: chipset.ioapic.clone(),
    };
    match apics {
        Apics::Board { bus, offsets, pv } => match bus.apic(id) {
            Some(apic) => {
                let (apic, offsets, pv) = (apic.clone(), offsets.clone(), pv.clone());
                Interrupts::Board { apic: VcpuApic { apic, offsets, pv }, pic }
            }
            None => engine(Arc::default()),
        },
        Apics::Engine { nmi } => engine(nmi.get(id as usize).cloned().unwrap_or_default()),
    }
}

/// What takes message-signalled interrupts: the board's own local APICs, or the engine's.
fn message_sink(bus: Option<&Arc<ApicBus>>, vm: &Arc<dyn Vm>) -> Arc<dyn MsiSink> {
    match bus {
        Some(bus) => bus.clone(),
        None => Arc::new(EngineMsi(vm.clone())),
    }
}

/// Disks and network cards; what firmware may boot from, those before them included, and the SCSI
/// adapter if there is one.
fn add_bootable(
    mut bootable: Vec<Bootable>,
    spec: &VmSpec,
    disks: Vec<DiskPart>,
    networks: Vec<NetworkPart>,
    bus: &mut VirtioBus,
    wiring: &mut Wiring,
) -> Result<(Vec<Bootable>, Option<Units>), Error> {
    let kinds: Vec<BootKind> = disks.iter().map(|part| part.bus.into()).collect();
    let (paths, units) = disks::add(disks, bus, spec.cpus_most(), wiring)?;
    bootable.extend(kinds.into_iter().zip(paths).map(|(kind, path)| Bootable { kind, path }));
    let cards = networks::add(networks, bus, spec.cpus_most(), wiring)?;
    if spec.boots_from_network() {
        bootable.extend(cards.into_iter().map(bootable::card));
    }
    Ok((bootable, units))
}

/// A board without devices.
fn empty(
    vm: &Arc<dyn Vm>,
    clock: &Arc<GuestClock>,
    timers: &TimerThread,
    power: &Arc<PowerGate>,
    msi: Arc<dyn MsiSink>,
) -> Wiring {
    Wiring {
        memory: vm.memory().clone(),
        slots: Arc::new(Slots(vm.clone())),
        clock: clock.clone(),
        timers: timers.handle(),
        power: power.clone(),
        msi,
        pio: Default::default(),
        mmio: Default::default(),
        devices: Vec::new(),
        irqs: Vec::new(),
    }
}

/// The VM with its RAM, or why this engine cannot have it.
fn create_vm(
    engine: &dyn Engine,
    spec: &VmSpec,
    cpuid: cpu_model::CpuidTable,
    tsc_khz: u32,
) -> Result<(Arc<dyn Vm>, Arc<Memfd>), Error> {
    let (max, asked) = (engine.caps().max_vcpus, spec.cpus_most());
    if asked > max {
        return Err(Error::TooManyVcpus { engine: engine.name(), max, asked });
    }
    let config = VmConfig {
        cpuid,
        memory: spec.memory + spec.memory_room() + map::DEVICE_MEMORY,
        tsc_khz: Some(tsc_khz),
        trace: spec.trace.any(),
        ..VmConfig::default()
    };
    let vm = engine
        .create_vm(&config)
        .map_err(|source| Error::Engine { engine: engine.name(), source })?;
    let ram = ram::map(&*vm, spec, engine.name())?;
    Ok((vm, ram))
}

/// The local APICs of a board that has them itself.
fn apic_bus(
    vcpus: u32,
    clock: &Arc<GuestClock>,
    timers: &TimerThread,
    offsets: &Arc<TscOffsets>,
    wakers: Arc<OnceLock<Vec<Arc<Waker>>>>,
) -> Arc<ApicBus> {
    ApicBus::new(local_apic::Parts {
        vcpus,
        clock: clock.clone(),
        timers: timers.handle(),
        tsc: offsets.clone(),
        wake: Box::new(move |id| {
            if let Some(waker) = wakers.get().and_then(|all| all.get(id as usize)) {
                waker.wake();
            }
        }),
    })
}

fn chipset_config(spec: &VmSpec, start: &Start) -> chipset::Config {
    let memory = spec.memory;
    let memory_low = memory.min(map::LOW_RAM_END);
    let memory_high = memory - memory_low;
    let firmware_log = match start {
        Start::Firmware(part) => part.log.clone(),
        Start::Kernel { .. } | Start::Disk { .. } => None,
    };
    let cpus = spec.cpus_max.map(|most| (spec.cpus, most));
    chipset::Config { cpus, memory_low, memory_high, firmware_log, ..chipset::Config::default() }
}

fn bridges(ports: u32, ram: Arc<Memfd>, rom: Option<q35::Rom>) -> q35::Config {
    let (ecam, window) = (map::pci_ecam(ports), map::PCI_WINDOW);
    q35::Config { ecam, window, pm_base: chipset::pm::EVENT, ram, rom }
}

/// Ports for what comes while the machine runs. Last on the bus, so that what is there always has
/// the same places.
fn ports(
    pci: &Arc<PciHost>,
    spec: &VmSpec,
    there: There,
    owner: &Sender<Request>,
    wiring: &Wiring,
) -> Ports {
    (0..spec.ports).for_each(|_| pci.add_port(wiring));
    let owner = owner.clone();
    // A machine that has ended needs no telling.
    pci.on_eject(move |_| drop(owner.send(Request::Ejected)));
    Ports::new(pci.clone(), wiring.memory.clone(), spec.cpus_most(), there)
}

/// One sample of all clocks, for kvmclock.
fn sampler(clock: &Arc<GuestClock>) -> pv_kvm::ClockSource {
    let clock = clock.clone();
    Arc::new(move || clock.sample())
}

/// The wires between interrupt controllers and vCPUs.
fn connect(
    chipset: &Chipset,
    bus: Option<&Arc<ApicBus>>,
    vm: &Arc<dyn Vm>,
    wakers: &Arc<OnceLock<Vec<Arc<Waker>>>>,
) {
    let wakers = wakers.clone();
    chipset.pic.on_intr(Box::new(move || {
        if let Some(waker) = wakers.get().and_then(|all| all.first()) {
            waker.wake();
        }
    }));
    match bus {
        Some(bus) => {
            // The IOAPIC holds the bus as where its messages go.
            let ioapic = Arc::downgrade(&chipset.ioapic);
            bus.on_eoi(Box::new(move |vector| {
                if let Some(ioapic) = ioapic.upgrade() {
                    ioapic.eoi(vector);
                }
            }));
        }
        None => {
            let vm = vm.clone();
            chipset.ioapic.on_routes(Box::new(move |pins| {
                // Without the routes EOIs are lost, and with them level-triggered interrupts;
                // there is nobody here to tell.
                drop(vm.set_pin_routes(pins));
            }));
        }
    }
}
