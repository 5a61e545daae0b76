//! The PC board: every device of the machine, built from one table, and what is done with all
//! of them together.

use crate::{
    Error, Tracer,
    apic::{TscOffsets, VcpuApic},
    bootable::{self, Bootable},
    clock::GuestClock,
    cpuid, disks,
    extras::{self, Extras},
    host::{BoardHost, Interrupts},
    info::{Info, State, VcpuInfo},
    map,
    owner::Request,
    plug::Ports,
    power::PowerGate,
    screen,
    start::{Start, Starter},
    stats::DeviceCounters,
    timers::TimerThread,
    vcpu::{VcpuThread, Waker, with_source},
};
use byte_stream::{Input, Output};
use chipset::Chipset;
use device::{Clock, Device, Msi, MsiSink, SlotMap, Wiring};
use disk::Disk;
use display::Seat;
use engine::{Engine, Vm, VmConfig};
use guest_mem::{Change, Memfd, Slot};
use local_apic::ApicBus;
use nic::{Mac, Network};
use pci::PciHost;
use pv_kvm::PvKvm;
use saved_state::{Part, Reader, Writer};
use std::{
    fmt,
    io::Read,
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::Sender,
    },
};
use vcpu_state::{MpState, VcpuState};
use vga::Vga;
use virtio_net::VirtioNet;
use virtio_rng::VirtioRng;
use vm_spec::{BootKind, DiskBus, NetModel, VmSpec};

/// What a spec names, opened.
pub struct Parts {
    pub start: Start,
    pub console: Arc<dyn Output>,
    /// Those of the spec, in its order.
    pub channels: Vec<ChannelPart>,
    /// Those of the spec, in its order.
    pub disks: Vec<DiskPart>,
    /// Random bytes without end, for a guest that has an entropy device.
    pub entropy: Option<Box<dyn Read + Send>>,
    /// The firmware of the VGA, for a guest that has one.
    pub vga_rom: Option<Arc<[u8]>>,
    /// What the guest's network cards are plugged into.
    pub networks: Vec<NetworkPart>,
    pub vsock: Option<VsockPart>,
    pub tracer: Tracer,
}

/// A port with a name, and what carries its bytes.
pub struct ChannelPart {
    pub name: String,
    pub output: Arc<dyn Output>,
    /// Somebody is at the other end, until the carrier says otherwise.
    pub peer: bool,
}

/// A disk, opened.
pub struct DiskPart {
    pub disk: Arc<dyn Disk>,
    pub serial: String,
    pub bus: DiskBus,
}

/// Where programs of the host come to, and what sockets of those that listen are called.
#[derive(Debug)]
pub struct VsockPart {
    /// The guest's address.
    pub cid: u32,
    pub listener: UnixListener,
    pub base: PathBuf,
}

/// A network, and the card for it.
pub struct NetworkPart {
    pub network: Arc<dyn Network>,
    /// The same, to be paused, saved and reset with the machine.
    pub device: Arc<dyn Device>,
    pub model: NetModel,
    pub mac: Mac,
    pub mtu: u16,
}

impl fmt::Debug for NetworkPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkPart({})", self.mac)
    }
}

impl fmt::Debug for DiskPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskPart({:?}, {:?})", self.serial, self.disk.shape())
    }
}

impl fmt::Debug for ChannelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelPart({})", self.name)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("start", &self.start).finish_non_exhaustive()
    }
}

pub(crate) struct Board {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) clock: Arc<GuestClock>,
    pub(crate) power: Arc<PowerGate>,
    timers: TimerThread,
    devices: Vec<Arc<dyn Device>>,
    chipset: Chipset,
    pci: Arc<PciHost>,
    pub(crate) extras: Arc<Extras>,
    pub(crate) ports: Ports,
    apics: Apics,
    starter: Starter,
    vga: Option<Arc<Vga>>,
    tracer: Tracer,
    engine: &'static str,
    cpu_model: String,
    memory: u64,
}

/// Who has the local APICs.
enum Apics {
    Board { bus: Arc<ApicBus>, offsets: Arc<TscOffsets>, pv: Arc<PvKvm> },
    Engine { nmi: Vec<Arc<AtomicBool>> },
}

pub(crate) struct Built {
    pub(crate) board: Board,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) console: Arc<dyn Input>,
    pub(crate) channels: Vec<Arc<dyn Input>>,
    pub(crate) seat: Seat,
}

/// Devices' memory, laid out by the engine.
struct Slots(Arc<dyn Vm>);

impl SlotMap for Slots {
    fn change(&self, changes: &[Change]) -> Result<(), guest_mem::Error> {
        let done = self.0.set_layout(changes);
        done.map(drop).map_err(|error| match error {
            engine::Error::Memory(error) => error,
            other => guest_mem::Error::Engine(other.to_string()),
        })
    }
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
    let failed = |source| Error::Engine { engine: engine.name(), source };
    let caps = engine.caps();
    let cpu = cpuid::resolve(engine, spec, tsc_khz)?;
    let (vm, ram) = create_vm(engine, spec, cpu.table, tsc_khz)?;
    let clock = Arc::new(GuestClock::new(tsc_khz));
    let timers = TimerThread::start(clock.clone()).map_err(Error::Thread)?;
    let power = Arc::new(PowerGate::new(owner.clone()));

    let wakers: Arc<OnceLock<Vec<Arc<Waker>>>> = Arc::default();
    let offsets = TscOffsets::new(clock.clone(), spec.cpus);
    let bus =
        (!caps.local_apic).then(|| apic_bus(spec.cpus, &clock, &timers, &offsets, wakers.clone()));
    let mut wiring = empty(&vm, &clock, &timers, &power, message_sink(bus.as_ref(), &vm));
    let chipset = chipset::build(&chipset_config(spec.memory, &parts.start), &mut wiring);
    connect(&chipset, bus.as_ref(), &vm, &wakers);
    map_room(&*vm, spec, engine.name())?;
    let rom = parts.start.rom(&*vm)?;
    let pci = q35::build(&bridges(spec.ports, ram, rom), &mut wiring);
    let bootable = parts.start.bootable().into_iter().collect();
    let bootable = add_bootable(bootable, spec, parts.disks, parts.networks, &pci, &mut wiring)?;
    if let Some(source) = parts.entropy {
        virtio::build(VirtioRng::new(source), &pci, &mut wiring).map_err(Error::Thread)?;
    }
    let screen = screen::build(spec, parts.vga_rom, &pci, &mut wiring)?;
    let uart = uart::build(&uart::Config::COM1, parts.console.clone(), &mut wiring);
    let streams =
        extras::Streams { console: parts.console, channels: parts.channels, vsock: parts.vsock };
    let (extras, channels) = extras::build(spec, streams, &pci, &mut wiring)?;
    let console = extras.console_input().unwrap_or(uart);

    let ports = ports(&pci, spec, owner, &wiring);

    let pv = PvKvm::new(vm.memory().clone(), sampler(&clock), cpu.pv, spec.cpus);
    let starter = Starter::new(spec, parts.start, &bootable, &mut wiring)?;
    let (pio, mmio) = (Arc::new(wiring.pio), Arc::new(wiring.mmio));
    let nmi: Vec<Arc<AtomicBool>> = (0..spec.cpus).map(|_| Arc::default()).collect();
    let mut vcpus = Vec::new();
    for id in 0..spec.cpus {
        let vcpu = vm.create_vcpu(id).map_err(failed)?;
        let waker = Waker::new(vcpu.kicker());
        let interrupts = match bus.as_ref().and_then(|bus| bus.apic(id)) {
            Some(apic) => Interrupts::Board(VcpuApic {
                apic: apic.clone(),
                offsets: offsets.clone(),
                pv: pv.clone(),
            }),
            None => {
                Interrupts::Engine { nmi: nmi[id as usize].clone(), ioapic: chipset.ioapic.clone() }
            }
        };
        let host = BoardHost {
            id,
            pio: pio.clone(),
            mmio: mmio.clone(),
            pic: chipset.pic.clone(),
            clock: clock.clone(),
            power: power.clone(),
            tracer: parts.tracer.clone(),
            interrupts,
            exits: Default::default(),
        };
        let thread = VcpuThread::start(id, vcpu, host, waker, owner.clone());
        vcpus.push(thread.map_err(Error::Thread)?);
    }
    // Set once, here.
    let _ = wakers.set(vcpus.iter().map(|v| v.waker.clone()).collect());
    let apics = match bus {
        Some(bus) => Apics::Board { bus, offsets, pv },
        None => Apics::Engine { nmi },
    };
    let board = Board {
        vm,
        clock,
        power,
        timers,
        devices: wiring.devices,
        chipset,
        pci,
        extras,
        ports,
        apics,
        starter,
        vga: screen.vga,
        tracer: parts.tracer,
        engine: engine.name(),
        cpu_model: cpu.model,
        memory: spec.memory,
    };
    board.load(&vcpus)?;
    let seat = board.extras.seated(screen.seat);
    Ok(Built { board, vcpus, console, channels, seat })
}

/// What takes message-signalled interrupts: the board's own local APICs, or the engine's.
fn message_sink(bus: Option<&Arc<ApicBus>>, vm: &Arc<dyn Vm>) -> Arc<dyn MsiSink> {
    match bus {
        Some(bus) => bus.clone(),
        None => Arc::new(EngineMsi(vm.clone())),
    }
}

/// Disks and network cards, and what firmware may boot from, those before them included.
fn add_bootable(
    mut bootable: Vec<Bootable>,
    spec: &VmSpec,
    disks: Vec<DiskPart>,
    networks: Vec<NetworkPart>,
    pci: &Arc<PciHost>,
    wiring: &mut Wiring,
) -> Result<Vec<Bootable>, Error> {
    let kinds: Vec<BootKind> = disks.iter().map(|part| part.bus.into()).collect();
    let paths = disks::add(disks, pci, spec.cpus, wiring)?;
    bootable.extend(kinds.into_iter().zip(paths).map(|(kind, path)| Bootable { kind, path }));
    let cards = add_networks(networks, pci, spec.cpus, wiring)?;
    if spec.boots_from_network() {
        bootable.extend(cards.into_iter().map(bootable::card));
    }
    Ok(bootable)
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
    let (max, asked) = (engine.caps().max_vcpus, spec.cpus);
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
    let ram = map_ram(&*vm, spec, engine.name())?;
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

fn chipset_config(memory: u64, start: &Start) -> chipset::Config {
    let memory_low = memory.min(map::LOW_RAM_END);
    let memory_high = memory - memory_low;
    let firmware_log = match start {
        Start::Firmware(part) => part.log.clone(),
        Start::Kernel { .. } => None,
    };
    chipset::Config { memory_low, memory_high, firmware_log, ..chipset::Config::default() }
}

fn bridges(ports: u32, ram: Arc<Memfd>, rom: Option<q35::Rom>) -> q35::Config {
    let (ecam, window) = (map::pci_ecam(ports), map::PCI_WINDOW);
    q35::Config { ecam, window, pm_base: chipset::pm::EVENT, ram, rom }
}

/// Ports for what comes while the machine runs. Last on the bus, so that what is there always has
/// the same places.
fn ports(pci: &Arc<PciHost>, spec: &VmSpec, owner: &Sender<Request>, wiring: &Wiring) -> Ports {
    (0..spec.ports).for_each(|_| pci.add_port(wiring));
    let owner = owner.clone();
    // A machine that has ended needs no telling.
    pci.on_eject(move |_| drop(owner.send(Request::Ejected)));
    Ports::new(pci.clone(), wiring.memory.clone(), spec.cpus)
}

fn add_networks(
    networks: Vec<NetworkPart>,
    pci: &PciHost,
    vcpus: u32,
    wiring: &mut Wiring,
) -> Result<Vec<u8>, Error> {
    let pairs = vcpus.min(disks::QUEUES_MAX) as u16;
    let mut slots = Vec::new();
    for NetworkPart { network, device, model, mac, mtu } in networks {
        slots.push(match model {
            NetModel::Virtio => {
                let card = VirtioNet::new(virtio_net::Config { mac, mtu, pairs }, network);
                virtio::build(card, pci, wiring).map_err(Error::Thread)?.slot()
            }
            NetModel::E1000 => e1000::build(mac, network, pci, wiring).slot(),
        });
        wiring.devices.push(device);
    }
    Ok(slots)
}

/// One sample of all clocks, for kvmclock.
fn sampler(clock: &Arc<GuestClock>) -> pv_kvm::ClockSource {
    let clock = clock.clone();
    Arc::new(move || clock.sample())
}

/// Maps all RAM but what the host bridge lays out, and what a VGA takes the place of; RAM below
/// 4 GiB begins at offset 0.
fn map_ram(vm: &dyn Vm, spec: &VmSpec, engine: &'static str) -> Result<Arc<Memfd>, Error> {
    let memory = spec.memory;
    let ram = Memfd::new(memory).map_err(|source| Error::Memory { size: memory >> 20, source })?;
    let hole = if spec.display.is_there() { screen::WINDOW.start } else { q35::AREA.start };
    let of_others = hole..q35::AREA.end;
    let mut offset = 0;
    let mut changes = Vec::new();
    let mut id = 0;
    for range in map::ram(memory) {
        for part in
            [range.start..range.end.min(of_others.start), of_others.end.max(range.start)..range.end]
        {
            if part.is_empty() {
                continue;
            }
            let (gpa, len, offset) =
                (part.start, part.end - part.start, offset + (part.start - range.start));
            changes.push(Change::Map(Slot {
                id,
                gpa,
                mem: ram.clone(),
                offset,
                len,
                writable: true,
            }));
            id += 1;
        }
        offset += range.end - range.start;
    }
    vm.set_layout(&changes).map_err(|source| Error::Engine { engine, source })?;
    Ok(ram)
}

/// Maps where memory comes to while the machine runs. It takes nothing of the host before it is
/// written.
fn map_room(vm: &dyn Vm, spec: &VmSpec, engine: &'static str) -> Result<(), Error> {
    /// Behind those of the RAM and of the ROM, before those of devices.
    const SLOT: u32 = 12;
    let len = spec.memory_room();
    if len == 0 {
        return Ok(());
    }
    let mem = Memfd::new(len).map_err(|source| Error::Memory { size: len >> 20, source })?;
    let gpa = map::hot_memory(spec.memory, len).start;
    let slot = Slot { id: SLOT, gpa, mem, offset: 0, len, writable: true };
    vm.set_layout(&[Change::Map(slot)]).map(drop).map_err(|source| Error::Engine { engine, source })
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

impl Board {
    /// Does what firmware would: writes the boot plan to memory, places BARs, and sets every
    /// vCPU to its reset state.
    fn load(&self, vcpus: &[VcpuThread]) -> Result<(), Error> {
        let bsp = self.starter.start(&self.pci, self.vm.memory(), self.vga.as_deref())?;
        let failed = |source| Error::Engine { engine: self.engine, source };
        if let Apics::Board { bus, .. } = &self.apics
            && let Some(apic) = bus.apic(0)
        {
            apic.set_virtual_wire();
        }
        for (id, vcpu) in (0..).zip(vcpus) {
            let mut state = if id == 0 { bsp.clone() } else { VcpuState::reset(id) };
            if id == 0 && matches!(self.apics, Apics::Engine { .. }) {
                virtual_wire(&mut state);
            }
            let set = vcpu.with(move |vcpu, _| vcpu.set_state(&state));
            set.unwrap_or(Err(engine::Error::Unsupported("a vCPU without its thread")))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Those of the board, and those behind ports.
    fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.devices.iter().chain(self.ports.devices())
    }

    pub(crate) fn reset(&self, vcpus: &[VcpuThread]) -> Result<(), String> {
        for device in self.devices() {
            device.reset();
        }
        match &self.apics {
            Apics::Board { bus, offsets, pv } => {
                bus.reset();
                pv.reset();
                (0..vcpus.len() as u32).for_each(|id| offsets.set(id, 0));
            }
            Apics::Engine { nmi } => nmi.iter().for_each(|n| n.store(false, SeqCst)),
        }
        self.load(vcpus).map_err(|e| e.line())
    }

    /// Time stops, and then devices: what they do last belongs to the time before.
    pub(crate) fn pause_time(&self) {
        self.clock.pause();
        self.devices().for_each(|device| device.pause());
    }

    /// What devices have counted, by their names; those that count.
    pub(crate) fn counters(&self) -> Vec<DeviceCounters> {
        let of = |device: &Arc<dyn Device>| (device.name(), device.counters());
        self.devices().map(of).filter(|(_, counters)| !counters.is_empty()).collect()
    }

    pub(crate) fn resume_time(&self) {
        self.clock.resume();
        self.timers.clock_changed();
        if let Apics::Board { pv, .. } = &self.apics {
            pv.refresh(true);
        }
        self.devices().for_each(|device| device.resume());
    }

    pub(crate) fn power_button(&self) {
        self.chipset.pm.power_button();
    }

    pub(crate) fn sleep_button(&self) {
        self.chipset.pm.sleep_button();
    }

    /// Asks the guest to have so many bytes of memory in all; `None` if it can be no other.
    pub(crate) fn set_memory(&self, bytes: u64) -> Option<()> {
        self.extras.set_memory(self.memory, bytes)
    }

    /// Asks the guest to do with so many bytes of its memory.
    pub(crate) fn leave(&self, bytes: u64) -> bool {
        self.extras.leave(self.memory, bytes)
    }

    pub(crate) fn nmi(&self, vcpus: &[VcpuThread]) {
        match &self.apics {
            Apics::Board { bus, .. } => bus.apics().iter().for_each(|apic| apic.nmi()),
            Apics::Engine { nmi } => {
                for (flag, vcpu) in nmi.iter().zip(vcpus) {
                    flag.store(true, SeqCst);
                    vcpu.waker.wake();
                }
            }
        }
    }

    pub(crate) fn info(&self, state: State, vcpus: Vec<VcpuInfo>) -> Info {
        Info {
            state,
            engine: self.engine,
            cpu_model: self.cpu_model.clone(),
            memory: self.memory,
            uptime_ns: self.clock.now_ns(),
            kernel: self.starter.description(),
            vcpus,
        }
    }

    /// Everything but memory. vCPUs are parked.
    pub(crate) fn save(&self, vcpus: &[VcpuThread]) -> Result<Vec<Part>, String> {
        let mut writer = Writer::default();
        for (id, vcpu) in (0..).zip(vcpus) {
            let state = vcpu.with(|vcpu, _| vcpu.state()).ok_or("a vCPU is gone")?;
            let mut state = state.map_err(|e| with_source(&e))?;
            if let Apics::Board { bus, pv, .. } = &self.apics
                && let Some(apic) = bus.apic(id)
            {
                apply_apic(&mut state, apic.save(), apic.cr8());
                pv.save(id, &mut state.msrs);
            }
            state.save(id, &mut writer);
        }
        writer.put(0, &crate::saved::ClockState::of(&self.clock));
        for device in self.devices() {
            device.save(&mut writer);
        }
        Ok(writer.finish())
    }

    pub(crate) fn restore(&self, parts: Vec<Part>, vcpus: &[VcpuThread]) -> Result<(), String> {
        let text = |e: saved_state::Error| e.to_string();
        let mut reader = Reader::new(parts).map_err(text)?;
        let mut states = Vec::new();
        for id in 0..vcpus.len() as u32 {
            states.push(VcpuState::restore(id, &mut reader).map_err(text)?);
        }
        let clock: crate::saved::ClockState = reader.take(0).map_err(text)?;
        self.clock.set(clock.guest_ns);
        for device in self.devices() {
            device.restore(&mut reader).map_err(text)?;
        }
        reader.finish().map_err(text)?;
        for ((id, vcpu), mut state) in (0..).zip(vcpus).zip(states) {
            if let Apics::Board { bus, offsets, pv } = &self.apics {
                pv.restore(id, &mut state.msrs).map_err(|e| e.to_string())?;
                let common = self.clock.tsc();
                offsets.set(id, state.tsc.value.wrapping_sub(common));
                if let Some(apic) = bus.apic(id) {
                    apic.restore(&take_apic(&mut state)).map_err(text)?;
                }
            }
            let set = vcpu.with(move |vcpu, _| vcpu.set_state(&state)).ok_or("a vCPU is gone")?;
            set.map_err(|e| with_source(&e))?;
        }
        Ok(())
    }
}

/// What firmware leaves on the bootstrap processor's APIC.
fn virtual_wire(state: &mut VcpuState) {
    const ENABLED: u32 = 0x1ff;
    const EXTINT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    let page = &mut state.apic.regs;
    for (index, value) in [(0xf, ENABLED), (0x35, EXTINT), (0x36, NMI)] {
        if let Some(reg) = page.get_mut(index) {
            *reg = value;
        }
    }
}

/// The board's APIC into the sections of a vCPU's state.
fn apply_apic(state: &mut VcpuState, saved: local_apic::Saved, cr8: u8) {
    state.apic = saved.apic;
    state.tsc.deadline = saved.deadline;
    state.control.cr8 = cr8;
    state.events.nmi_pending |= saved.nmi;
    state.events.sipi = saved.sipi.or(state.events.sipi);
    if saved.init {
        state.mp = MpState::Init;
    }
}

/// The inverse: what is the APIC's leaves the vCPU's sections.
fn take_apic(state: &mut VcpuState) -> local_apic::Saved {
    let init = state.mp == MpState::Init;
    if init {
        state.mp = MpState::WaitForSipi;
    }
    local_apic::Saved {
        apic: state.apic.clone(),
        deadline: state.tsc.deadline,
        init,
        nmi: std::mem::take(&mut state.events.nmi_pending),
        sipi: state.events.sipi.take(),
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.tracer.flush();
    }
}
