//! What a toolstack does for a domain: its tree in xenstore, and what an operator asks of its kernel
//! there (Xen's `docs/misc/xenstore-paths.pandoc`).

use super::{
    devices::Unit,
    service::{Served, Service},
};
use crate::{
    cpus::CpusInfo,
    extras::{BalloonInfo, MemoryInfo},
    info::{Activity, VcpuInfo},
    owner::Request,
    platform::{Sleep, Wake},
    watch::Watch,
};
use chipset::cpus::Cpu;
use guest_mem::{GuestMem, PAGE};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};
use xen_bus::{Bus, Event, Id, Removal};
use xen_console::XenConsole;
use xen_front::Page;
use xen_pv::{CONSOLE_PORT, STORE_PORT, XenPv};
use xen_store::{GUEST, Permissions, Ring, Store};

/// Where a kernel reads what it is to do, which it acknowledges by emptying it.
const SHUTDOWN: &str = "control/shutdown";
const CAN_SUSPEND: &str = "control/feature-suspend";
/// How long a kernel has for its answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A domain from the outside.
pub(crate) struct Toolstack {
    state: Mutex<State>,
    xen: Arc<XenPv>,
    pub(crate) console: Arc<XenConsole>,
    service: Arc<Service>,
    owner: Sender<Request>,
    /// Bytes.
    memory: u64,
    /// CPUs that there are from the start, and at most.
    cpus: u32,
    cpus_most: u32,
    /// What was asked for since.
    wanted_cpus: AtomicU32,
    wanted_memory: AtomicU64,
    /// The kernel was asked to suspend itself, and has not gone on since.
    sleep_wanted: AtomicBool,
}

struct State {
    store: Store,
    ring: Option<Ring>,
    bus: Bus,
}

/// What it keeps beside the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolstackState {
    cpus: u32,
    /// Bytes.
    memory: u64,
    sleep_wanted: bool,
}

impl Schema for ToolstackState {
    const KIND: &'static str = "xen-toolstack";
    const VERSION: u16 = 3;
}

/// What a kernel is asked to do, in its own words.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shutdown {
    PowerOff,
    Suspend,
}

fn of_domain(path: &str) -> String {
    format!("/local/domain/{GUEST}/{path}")
}

impl Toolstack {
    pub(crate) fn new(
        xen: &Arc<XenPv>,
        console: Arc<XenConsole>,
        service: Arc<Service>,
        owner: Sender<Request>,
        memory: u64,
        (cpus, cpus_most): (u32, u32),
    ) -> Arc<Self> {
        let (store, bus) = (Store::default(), Bus::new(xen.clone()));
        Arc::new(Self {
            state: Mutex::new(State { store, ring: None, bus }),
            xen: xen.clone(),
            console,
            service,
            owner,
            memory,
            cpus,
            cpus_most,
            wanted_cpus: AtomicU32::new(cpus),
            wanted_memory: AtomicU64::new(memory),
            sleep_wanted: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A domain starts, with these pages for its rings, and finds its tree as a toolstack makes it.
    pub(crate) fn start(&self, store_page: Page, console_page: Page) {
        self.wanted_cpus.store(self.cpus, SeqCst);
        self.wanted_memory.store(self.memory, SeqCst);
        self.sleep_wanted.store(false, SeqCst);
        let mut guard = self.lock();
        let state = &mut *guard;
        (state.store, state.ring) = (self.tree(), Some(Ring::new(store_page)));
        state.bus.restart(&mut state.store);
        self.console.attach(Some(console_page));
    }

    /// The domain has a device more; what its folders are.
    pub(crate) fn add(&self, unit: &Unit) -> Result<Id, xen_bus::Error> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let id = state.bus.add(&mut state.store, unit.number, unit.backend.clone())?;
        drop(guard);
        self.service.ring_store();
        Ok(id)
    }

    /// Asks the kernel to let go of a device: whether it is there, and whether it has gone already.
    pub(crate) fn remove(&self, id: Id) -> Option<Removal> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let removal = state.bus.remove(&mut state.store, id).ok();
        drop(guard);
        self.service.ring_store();
        removal
    }

    /// Whether a device is there.
    pub(crate) fn has(&self, id: Id) -> bool {
        let state = self.lock();
        state.bus.devices(&state.store).iter().any(|(there, ..)| *there == id)
    }

    /// Nothing uses the domain's memory any more.
    pub(crate) fn disconnect(&self) {
        self.lock().bus.disconnect();
        self.console.attach(None);
    }

    /// The service is paused.
    pub(crate) fn save(&self, to: &mut Writer) {
        let (cpus, memory) = (self.wanted_cpus.load(SeqCst), self.wanted_memory.load(SeqCst));
        let sleep_wanted = self.sleep_wanted.load(SeqCst);
        to.put(0, &ToolstackState { cpus, memory, sleep_wanted });
        let state = self.lock();
        state.store.save(to);
        if let Some(ring) = &state.ring {
            ring.save(to);
        }
    }

    /// The opposite, when memory, the domain and its devices are restored; devices go on.
    pub(crate) fn restore(&self, from: &mut Reader, memory: &Arc<GuestMem>) -> Result<(), Error> {
        let saved: ToolstackState = from.take(0)?;
        let no_ring = || malformed::<ToolstackState>("it is of a domain without rings");
        let rings = self.xen.rings().ok_or_else(no_ring)?;
        let page = |frame: u64| Page::new(memory.clone(), frame * PAGE).ok_or_else(no_ring);
        let (store_page, console_page) = (page(rings.store)?, page(rings.console)?);
        if !(1..=self.cpus_most).contains(&saved.cpus) || saved.memory > self.memory {
            return Err(malformed::<ToolstackState>("it is of a domain of another size"));
        }
        let mut store = Store::restore(from)?;
        let ring = Ring::restore(store_page, from)?;
        self.wanted_cpus.store(saved.cpus, SeqCst);
        self.wanted_memory.store(saved.memory, SeqCst);
        self.sleep_wanted.store(saved.sleep_wanted, SeqCst);
        let mut guard = self.lock();
        let state = &mut *guard;
        let devices = state.bus.devices(&store);
        let devices = devices.into_iter().map(|(id, backend, _)| (id.number, backend)).collect();
        let gone_on = state.bus.restore(&mut store, devices);
        gone_on.map_err(|error| malformed::<ToolstackState>(error.to_string()))?;
        (state.store, state.ring) = (store, Some(ring));
        self.console.attach(Some(console_page));
        Ok(())
    }

    fn tree(&self) -> Store {
        let mut store = Store::default();
        let mine = || Some(Permissions::of(GUEST));
        let kib = (self.memory >> 10).to_string();
        store.write(of_domain("").trim_end_matches('/'), "", mine());
        for (path, value) in [
            ("name", "sarang"),
            ("domid", &*GUEST.to_string()),
            ("memory/static-max", &kib),
            ("memory/target", &kib),
            ("device", ""),
            ("control", ""),
            // The kernel says here what it can do; libxl makes them.
            ("control/feature-poweroff", ""),
            ("control/feature-reboot", ""),
            ("control/feature-suspend", ""),
            ("control/platform-feature-multiprocessor-suspend", "1"),
            ("control/platform-feature-xs_reset_watches", "1"),
            ("data", ""),
            ("error", ""),
            ("store/port", &STORE_PORT.to_string()),
            ("console/port", &CONSOLE_PORT.to_string()),
            ("console/type", "sarang"),
        ] {
            store.write(&of_domain(path), value, mine());
        }
        for id in 0..self.cpus_most {
            let state = availability(id < self.cpus);
            store.write(&of_domain(&format!("cpu/{id}/availability")), state, mine());
        }
        store
    }

    /// Writes what the kernel watches.
    fn tell(&self, path: &str, value: &str) {
        self.lock().store.write(&of_domain(path), value, None);
        self.service.ring_store();
    }

    /// The kernel does it when it has read this, if it listens.
    pub(crate) fn shut_down(&self, how: Shutdown) {
        let word = match how {
            Shutdown::PowerOff => "poweroff",
            Shutdown::Suspend => "suspend",
        };
        self.tell(SHUTDOWN, word);
    }

    /// Asks the kernel to suspend itself.
    pub(crate) fn sleep(&self) -> Sleep {
        if self.xen.is_suspended() {
            return Sleep::Asleep;
        }
        if self.lock().store.read(&of_domain(CAN_SUSPEND)).as_deref() != Some("1") {
            return Sleep::Unable;
        }
        self.sleep_wanted.store(true, SeqCst);
        self.xen.call_off(false);
        self.shut_down(Shutdown::Suspend);
        Sleep::Asked
    }

    /// Lets a kernel go on that has suspended itself, or has been asked to. No vCPU runs.
    pub(crate) fn wake(&self) -> Wake {
        let mut guard = self.lock();
        let asked = self.sleep_wanted.swap(false, SeqCst);
        if guard.store.read(&of_domain(SHUTDOWN)).as_deref() == Some("suspend") {
            // It has not seen that.
            guard.store.write(&of_domain(SHUTDOWN), "", None);
        }
        if !self.xen.is_suspended() {
            if !asked {
                return Wake::Awake;
            }
            // It may have seen that, or what it was asked before and was not to do either: then it is
            // on its way.
            self.xen.call_off(true);
            return Wake::CalledOff;
        }
        let state = &mut *guard;
        // It finds its devices as a domain that starts does, and asks anew for what it watches.
        state.bus.disconnect();
        state.store.forget();
        if !state.bus.resume(&mut state.store).is_empty() {
            drop(self.owner.send(Request::Ejected));
        }
        if let Some(ring) = &mut state.ring {
            ring.restart();
        }
        self.xen.resume();
        drop(guard);
        self.service.ring_store();
        self.service.ring_console();
        Wake::Woken
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.xen.is_suspended()
    }

    /// Asks the kernel to do with so many bytes of memory.
    pub(crate) fn set_target(&self, bytes: u64) {
        let bytes = bytes.min(self.memory);
        self.wanted_memory.store(bytes, SeqCst);
        self.tell("memory/target", &(bytes >> 10).to_string());
    }

    /// Asks the kernel to use so many CPUs, the first ones.
    pub(crate) fn set_cpus(&self, count: u32) {
        self.wanted_cpus.store(count, SeqCst);
        for id in 0..self.cpus_most {
            let (path, state) = (format!("cpu/{id}/availability"), availability(id < count));
            let old = self.lock().store.read(&of_domain(&path));
            if old.as_deref() != Some(state) {
                self.tell(&path, state);
            }
        }
    }

    fn is_up(&self, id: u32) -> bool {
        self.xen.is_up(id)
    }

    fn has_answered(&self) -> bool {
        let wanted = self.wanted_cpus.load(SeqCst);
        (0..self.cpus_most).all(|id| self.is_up(id) == (id < wanted))
    }
}

fn availability(there: bool) -> &'static str {
    if there { "online" } else { "offline" }
}

impl Served for Toolstack {
    fn serve_store(&self) -> bool {
        let mut guard = self.lock();
        let State { store, ring: Some(ring), bus } = &mut *guard else { return false };
        let served = ring.serve(store);
        let mut changes = 0;
        while let Some(path) = store.next_change() {
            changes += 1;
            // What else has become of a device is in its folders.
            let events = bus.changed(store, &path);
            if events.iter().any(|event| matches!(event, Event::Removed(_))) {
                // A machine that has ended needs no telling.
                drop(self.owner.send(Request::Ejected));
            }
        }
        drop(guard);
        if served.moved {
            self.xen.raise(STORE_PORT);
        }
        // What devices say in return.
        served.more || changes > 0
    }

    fn serve_console(&self) {
        self.console.serve();
    }
}

impl Watch for Toolstack {
    fn cpus_most(&self) -> Option<u32> {
        (self.cpus_most > self.cpus).then_some(self.cpus_most)
    }

    fn wait_cpus(&self, runs: bool) -> bool {
        let limit = Instant::now() + if runs { PATIENCE } else { Duration::ZERO };
        while !self.has_answered() {
            if Instant::now() >= limit {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        true
    }

    fn cpus(&self, vcpus: &[VcpuInfo]) -> CpusInfo {
        let one = |(id, vcpu): (u32, &VcpuInfo)| {
            let present = self.is_up(id);
            let activity = if present { vcpu.activity } else { Activity::Off };
            (Cpu { present, ..Cpu::default() }, activity)
        };
        CpusInfo { cpus: (0..).zip(vcpus).map(one).collect() }
    }

    fn memory(&self) -> Option<MemoryInfo> {
        None
    }

    fn balloon(&self) -> Option<BalloonInfo> {
        let held = self.xen.pages() * PAGE;
        let wanted = self.wanted_memory.load(SeqCst);
        Some(BalloonInfo {
            memory: self.memory,
            target: self.memory.saturating_sub(wanted),
            actual: self.memory.saturating_sub(held),
            statistics: Default::default(),
        })
    }
}
