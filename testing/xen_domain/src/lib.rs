//! A Xen PV domain without a machine around it: an engine, memory, the personality, a console and
//! xenstore. What a stock kernel does in it shows whether the personality is right, before a machine
//! has disks and networks for it.

mod console;
mod service;

use console::Console;
use engine::{
    ClockSample, CpuView, Engine, Exit, Flow, Kick, Pending, Trap, Vcpu, VcpuHost, Vm, VmConfig,
};
use engine_kvm::KvmEngine;
use engine_translate::{Translate, Translation};
use guest_mem::{Change, Memfd, Slot};
use service::Service;
use std::{
    error::Error,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use xen_bus::Bus;
use xen_front::Backend;
use xen_pv::{Board, CONSOLE_PORT, Layout, STORE_PORT, XenPv, backend};
use xen_store::{Permissions, Store};

/// Where the engine has no TSC of its own: one nanosecond is one tick.
const TSC_KHZ: u32 = 1_000_000;

/// What to boot.
#[derive(Debug)]
pub struct Start {
    pub kernel: Vec<u8>,
    pub initrd: Vec<u8>,
    pub command_line: String,
    pub memory: u64,
    pub vcpus: u32,
    pub by: By,
}

/// What executes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The translator, of which nothing is hot enough to be translated.
    Interpreter,
    Translator,
    Kvm,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What wakes a vCPU's thread.
struct Waker {
    kick: Arc<dyn Kick>,
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Waker {
    fn wake(&self) {
        self.kick.notify();
        *lock(&self.woken) = true;
        self.changed.notify_one();
    }

    fn sleep(&self) {
        let woken = self.changed.wait_while(lock(&self.woken), |woken| !*woken);
        *woken.unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// What is around the domain.
struct Around {
    began: Instant,
    wakers: OnceLock<Vec<Waker>>,
    service: Service,
    console: Console,
    over: AtomicBool,
    end: Mutex<Option<u32>>,
}

impl Around {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn finish(&self, reason: Option<u32>) {
        let mut end = lock(&self.end);
        *end = end.or(reason);
        self.over.store(true, SeqCst);
        for waker in self.wakers.get().into_iter().flatten() {
            waker.kick.stop();
            waker.wake();
        }
        self.service.finish();
    }
}

impl Board for Around {
    fn wake(&self, vcpu: u32) {
        if let Some(waker) = self.wakers.get().and_then(|all| all.get(vcpu as usize)) {
            waker.wake();
        }
    }

    fn set_timer(&self, vcpu: u32, deadline_ns: Option<u64>) {
        self.service.set_timer(vcpu, deadline_ns);
    }

    fn console(&self, text: &[u8]) {
        self.console.say(text);
    }

    fn shutdown(&self, reason: u32) {
        self.finish(Some(reason));
    }

    fn notify(&self, backend: u32) {
        match backend {
            backend::STORE => self.service.ring_store(),
            backend::CONSOLE => self.service.ring_console(),
            _ => {}
        }
    }
}

/// One vCPU's side of the seam.
struct Host {
    id: u32,
    xen: Arc<XenPv>,
    around: Arc<Around>,
}

impl VcpuHost for Host {
    fn pio_in(&mut self, _: u16, _: usize, data: &mut [u8]) -> Flow {
        data.fill(!0);
        Flow::Continue
    }

    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn mmio_read(&mut self, _: u64, data: &mut [u8]) -> Flow {
        data.fill(!0);
        Flow::Continue
    }

    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn pending(&self) -> Option<Pending> {
        self.xen.is_pending(self.id).then_some(Pending::Personality)
    }

    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }

    fn tsc(&mut self) -> u64 {
        self.around.now()
    }

    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        self.xen.trap(self.id, trap, cpu)
    }
}

/// A domain that runs.
pub struct Domain {
    xen: Arc<XenPv>,
    around: Arc<Around>,
    threads: Vec<JoinHandle<()>>,
    /// For a line of a log.
    pub description: String,
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain").field("xen", &self.xen).finish_non_exhaustive()
    }
}

impl Domain {
    pub fn boot(start: &Start) -> Result<Self, Box<dyn Error>> {
        Self::boot_with(start, &[])
    }

    /// With these devices.
    pub fn boot_with(start: &Start, backends: &[Arc<dyn Backend>]) -> Result<Self, Box<dyn Error>> {
        let layout = Layout::new(start.memory);
        let engine = engine(start.by)?;
        let vm = create_vm(&*engine, start, &layout)?;
        let memory = vm.memory().clone();
        let plan = boot::load_xen_pv(&boot::XenPvRequest {
            kernel: start.kernel.clone().into(),
            initrd: Some(start.initrd.clone().into()),
            command_line: start.command_line.clone(),
            memory: start.memory,
            shared_info: layout.shared_info(),
            store_port: STORE_PORT,
            console_port: CONSOLE_PORT,
        })?;
        for segment in &plan.segments {
            memory.write(segment.gpa, segment.bytes())?;
        }
        let around = Arc::new(Around {
            began: Instant::now(),
            wakers: OnceLock::new(),
            service: Service::new(start.vcpus),
            console: Console::new(memory.clone(), plan.console),
            over: AtomicBool::new(false),
            end: Mutex::default(),
        });
        let config = xen_pv::Config {
            memory: memory.clone(),
            layout,
            vcpus: start.vcpus,
            clock: clock(start.by, &around, &vm),
            board: around.clone(),
            arch_capabilities: engine.caps().ring0_capabilities,
        };
        let xen = XenPv::new(config);
        let built = xen_pv::Built {
            root: plan.vcpu.control.cr3,
            store_frame: plan.store / guest_mem::PAGE,
            console_frame: plan.console / guest_mem::PAGE,
        };
        xen.start(&built).map_err(|e| format!("{e:?}"))?;
        let mut first = plan.vcpu.clone();
        xen_pv::set_up(&mut first, 0);
        let mut vcpus = Vec::new();
        for id in 0..start.vcpus {
            let mut vcpu = vm.create_vcpu(id)?;
            let waiting = if id == 0 { first.clone() } else { xen_pv::waiting(&first, id) };
            vcpu.set_state(&waiting)?;
            vcpus.push(vcpu);
        }
        let waker = |kick| Waker { kick, woken: Mutex::default(), changed: Condvar::new() };
        // Set once, here.
        let _ = around.wakers.set(vcpus.iter().map(|vcpu| waker(vcpu.kicker())).collect());
        let mut store = store(start);
        let mut bus = Bus::new(xen.clone());
        for (number, backend) in (0..).zip(backends) {
            bus.add(&mut store, number, backend.clone())?;
            backend.resume();
        }
        let ring = xen_store::Ring::new(xen_front::Page::new(memory, plan.store).ok_or("no page")?);
        let mut threads = Vec::new();
        {
            let (around, xen) = (around.clone(), xen.clone());
            threads.push(thread::spawn(move || service::serve(&around, &xen, ring, store, bus)));
        }
        for (id, mut vcpu) in (0..).zip(vcpus) {
            let (around, xen) = (around.clone(), xen.clone());
            threads.push(thread::spawn(move || run(id, &mut *vcpu, around, xen)));
        }
        Ok(Self { xen, around, threads, description: plan.description })
    }

    /// All that the guest has said.
    pub fn said(&self) -> String {
        self.around.console.said()
    }

    /// Waits until the guest has said this after so many bytes; what it said until then.
    pub fn expect(&self, what: &str, after: usize, longest: Duration) -> Result<usize, String> {
        self.around.console.expect(what, after, longest)
    }

    /// Types at its console.
    pub fn type_in(&self, text: &str) {
        self.around.console.type_in(text.as_bytes());
        self.around.service.ring_console();
    }

    /// Why it ended, `SHUTDOWN_*`; `None` if it did not in time.
    pub fn wait(&self, longest: Duration) -> Option<u32> {
        let limit = Instant::now() + longest;
        while !self.around.over.load(SeqCst) && Instant::now() < limit {
            thread::sleep(Duration::from_millis(10));
        }
        *lock(&self.around.end)
    }

    /// Numbers of hypercalls and operations that were refused because there are none, and counts.
    pub fn unknown(&self) -> Vec<((u64, u64), u64)> {
        self.xen.unknown()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        self.around.finish(None);
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported by the panic hook.
            drop(thread.join());
        }
    }
}

fn run(id: u32, vcpu: &mut dyn Vcpu, around: Arc<Around>, xen: Arc<XenPv>) {
    let mut host = Host { id, xen, around: around.clone() };
    while !around.over.load(SeqCst) {
        match vcpu.run(&mut host) {
            Ok(Exit::Idle) => {
                if let Some(waker) = around.wakers.get().and_then(|all| all.get(id as usize)) {
                    waker.sleep();
                }
            }
            Ok(Exit::Stopped) => {}
            other => {
                around.console.say(format!("vCPU {id}: {other:?}\n").as_bytes());
                return around.finish(None);
            }
        }
    }
}

fn clock(by: By, around: &Arc<Around>, vm: &Arc<dyn Vm>) -> xen_pv::ClockSource {
    // 2026-01-01.
    const EPOCH_NS: u64 = 1_767_225_600_000_000_000;
    let (around, vm) = (around.clone(), (by == By::Kvm).then(|| vm.clone()));
    Arc::new(move || {
        let now = around.now();
        let own = vm.as_ref().and_then(|vm| vm.clock().ok());
        let tsc = own.unwrap_or(ClockSample { tsc: now, khz: TSC_KHZ, ..ClockSample::default() });
        ClockSample { guest_ns: now, realtime_ns: EPOCH_NS + now, ..tsc }
    })
}

fn engine(by: By) -> Result<Box<dyn Engine>, engine::Error> {
    Ok(match by {
        By::Interpreter => Box::new(Translate::new()?),
        By::Translator => Box::new(Translate::new()?.with_translation(Translation::default())),
        By::Kvm => Box::new(KvmEngine::open()?),
    })
}

fn create_vm(
    engine: &dyn Engine,
    start: &Start,
    layout: &Layout,
) -> Result<Arc<dyn Vm>, Box<dyn Error>> {
    let supported = &engine.caps().cpuid;
    let tsc_khz = if start.by == By::Kvm { engine.caps().tsc_khz } else { TSC_KHZ };
    // A KVM that emulates ring 0 in software may offer less than any model has.
    let best = cpu_model::best_model(supported);
    let model = best.map_or_else(|| cpu_model::CpuModel::named("host"), Ok)?;
    let options = cpu_model::Options {
        vcpus: start.vcpus,
        tsc_khz,
        apic_khz: tsc_khz,
        hypervisor: xen_pv::leaves(tsc_khz, layout.end()),
    };
    let cpuid = cpu_model::resolve(&model, supported, &options)?;
    let vm = engine.create_vm(&VmConfig {
        intercepts: xen_pv::INTERCEPTS,
        ring0: Some(layout.ring0()),
        cpuid: cpu_model::mask(&cpuid, &xen_pv::hidden(engine.caps().ring0_capabilities)),
        memory: layout.end(),
        tsc_khz: Some(tsc_khz),
        ..VmConfig::default()
    })?;
    let (mem, len) = (Memfd::new(layout.end())?, layout.end());
    vm.set_layout(&[Change::Map(Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true })])?;
    Ok(vm)
}

/// What a toolstack puts there for a domain.
fn store(start: &Start) -> Store {
    let mut store = Store::default();
    let mut put = |path: &str, value: &str| {
        let mine = Permissions::of(xen_store::GUEST);
        store.write(&format!("/local/domain/1{path}"), value, Some(mine));
    };
    let kib = (start.memory >> 10).to_string();
    put("", "");
    for (path, value) in [
        ("/name", "domain"),
        ("/domid", "1"),
        ("/memory/static-max", &*kib),
        ("/memory/target", &*kib),
        ("/device", ""),
        ("/control", ""),
        ("/control/platform-feature-xs_reset_watches", "1"),
        ("/data", ""),
        ("/error", ""),
        ("/store/port", &*STORE_PORT.to_string()),
        ("/console/port", &*CONSOLE_PORT.to_string()),
        ("/console/type", "sarang"),
    ] {
        put(path, value);
    }
    for id in 0..start.vcpus {
        put(&format!("/cpu/{id}/availability"), "online");
    }
    store
}
