//! A domain, its vCPUs, and what serves it.

use super::{
    board::{Around, Domain},
    builder::Builder,
    devices::Units,
    service::{Service, ServiceThread},
    toolstack::Toolstack,
};
use crate::{
    Error,
    build::Built,
    clock::GuestClock,
    cpuid::{self, GuestCpu},
    host::{BoardHost, Interrupts},
    obituary::Obituary,
    owner::Request,
    parts::Parts,
    platform::{Common, Platform},
    power::PowerGate,
    timers::TimerThread,
    vcpu::{VcpuThread, Waker},
};
use device::Timer;
use display::Seat;
use engine::{Engine, Vm, VmConfig};
use guest_mem::{Change, Memfd, Slot};
use std::sync::{Arc, OnceLock, mpsc::Sender};
use vm_spec::VmSpec;
use xen_console::XenConsole;
use xen_pv::{CONSOLE_PORT, Config, Layout, XenPv};

pub(crate) fn build(
    engine: &dyn Engine,
    spec: &VmSpec,
    parts: Parts,
    tsc_khz: u32,
    owner: &Sender<Request>,
) -> Result<Built, Error> {
    let layout = Layout::new(spec.memory);
    let builder = Builder::new(parts.start, parts.disks.first().map(|part| part.disk.clone()))?;
    let cpu = cpuid::resolve_xen(engine, spec, tsc_khz, layout.end())?;
    let vm = create_vm(engine, spec, &layout, &cpu, tsc_khz)?;
    let clock = Arc::new(GuestClock::new(tsc_khz));
    let timers = TimerThread::start(clock.clone(), owner.clone()).map_err(Error::Thread)?;
    let power = Arc::new(PowerGate::new(owner.clone()));
    let service = Service::new();
    let around = Arc::new(Around {
        wakers: OnceLock::new(),
        timers: OnceLock::new(),
        console: OnceLock::new(),
        service: service.clone(),
        power: power.clone(),
    });
    let count = spec.cpus_most();
    let sample = clock_source(engine, &clock, &vm);
    let xen = XenPv::new(Config {
        memory: vm.memory().clone(),
        layout,
        vcpus: count,
        clock: sample,
        board: around.clone(),
        arch_capabilities: engine.caps().ring0_capabilities,
    });
    // Set once, here, as all of these.
    let _ = around.timers.set((0..count).map(|id| timer(&xen, &timers, id)).collect());
    let console = console(parts.console, &service, &xen);
    let _ = around.console.set(console.clone());
    let cpus = (spec.cpus, count);
    let toolstack =
        Toolstack::new(&xen, console.clone(), service.clone(), owner.clone(), spec.memory, cpus);
    let failed = Request::Failed("the thread of xenstore panicked".into());
    let obituary = Obituary::new(owner.clone(), failed);
    let thread = ServiceThread::start(service.clone(), toolstack.clone(), obituary);
    let vcpus = vcpus(&vm, engine, &xen, &parts.tracer, (&clock, &power), (count, owner))?;
    let _ = around.wakers.set(vcpus.iter().map(|vcpu| vcpu.waker.clone()).collect());
    let mut units = Units::new(toolstack.clone(), count, spec.memory);
    units.add_all(parts.disks, parts.networks)?;
    let common = Common {
        vm,
        clock,
        power,
        timers,
        devices: vec![service.clone()],
        tracer: parts.tracer,
        engine: engine.name(),
        cpu_model: cpu.model,
        memory: spec.memory,
    };
    let domain = Domain {
        common,
        xen,
        layout,
        builder,
        toolstack: toolstack.clone(),
        units,
        service,
        _thread: thread.map_err(Error::Thread)?,
    };
    domain.load(&vcpus)?;
    Ok(Built {
        board: Box::new(domain),
        watch: toolstack,
        vcpus,
        console,
        channels: Vec::new(),
        seat: Seat::default(),
    })
}

fn create_vm(
    engine: &dyn Engine,
    spec: &VmSpec,
    layout: &Layout,
    cpu: &GuestCpu,
    tsc_khz: u32,
) -> Result<Arc<dyn Vm>, Error> {
    let failed = |source| Error::Engine { engine: engine.name(), source };
    let (max, asked) = (engine.caps().max_vcpus.min(xen_pv::VCPUS_MAX), spec.cpus_most());
    if asked > max {
        return Err(Error::TooManyVcpus { engine: engine.name(), max, asked });
    }
    let config = VmConfig {
        intercepts: xen_pv::INTERCEPTS,
        ring0: Some(layout.ring0()),
        cpuid: cpu.table.clone(),
        memory: layout.end(),
        tsc_khz: Some(tsc_khz),
        trace: spec.trace.any(),
        ..VmConfig::default()
    };
    let vm = engine.create_vm(&config).map_err(|source| match source {
        engine::Error::Unsupported(_) => Error::DomainEngine(engine.name()),
        source => failed(source),
    })?;
    let len = layout.end();
    let mem =
        Memfd::new(len).map_err(|source| Error::Memory { size: spec.memory >> 20, source })?;
    vm.set_layout(&[Change::Map(Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true })])
        .map_err(failed)?;
    Ok(vm)
}

/// Where the engine keeps the vCPUs' TSCs itself, it says what they read.
fn clock_source(
    engine: &dyn Engine,
    clock: &Arc<GuestClock>,
    vm: &Arc<dyn Vm>,
) -> xen_pv::ClockSource {
    let of_engine = engine.caps().local_apic.then(|| vm.clone());
    let clock = clock.clone();
    Arc::new(move || {
        let mut sample = clock.sample();
        if let Some(Ok(own)) = of_engine.as_ref().map(|vm| vm.clock()) {
            sample.tsc = own.tsc;
        }
        sample
    })
}

/// Fires what a vCPU asked for.
fn timer(xen: &Arc<XenPv>, timers: &TimerThread, id: u32) -> Arc<dyn Timer> {
    let xen = Arc::downgrade(xen);
    timers.handle().create(Arc::new(move |_| {
        if let Some(xen) = xen.upgrade() {
            xen.timer(id);
        }
    }))
}

fn console(
    output: Arc<dyn byte_stream::Output>,
    service: &Arc<Service>,
    xen: &Arc<XenPv>,
) -> Arc<XenConsole> {
    let service = service.clone();
    let console = XenConsole::new(output, move || service.ring_console());
    let xen = Arc::downgrade(xen);
    console.on_notify(move || {
        if let Some(xen) = xen.upgrade() {
            xen.raise(CONSOLE_PORT);
        }
    });
    console
}

fn vcpus(
    vm: &Arc<dyn Vm>,
    engine: &dyn Engine,
    xen: &Arc<XenPv>,
    tracer: &crate::Tracer,
    (clock, power): (&Arc<GuestClock>, &Arc<PowerGate>),
    (count, owner): (u32, &Sender<Request>),
) -> Result<Vec<VcpuThread>, Error> {
    let failed = |source| Error::Engine { engine: engine.name(), source };
    let mut vcpus = Vec::new();
    for id in 0..count {
        let vcpu = vm.create_vcpu(id).map_err(failed)?;
        let waker = Waker::new(vcpu.kicker());
        let host = BoardHost {
            id,
            pio: Arc::default(),
            mmio: Arc::default(),
            clock: clock.clone(),
            power: power.clone(),
            tracer: tracer.clone(),
            interrupts: Interrupts::Xen(xen.clone()),
            exits: Default::default(),
        };
        let thread = VcpuThread::start(id, vcpu, host, waker, owner.clone());
        vcpus.push(thread.map_err(Error::Thread)?);
    }
    Ok(vcpus)
}
