//! Xen's interface for paravirtualized guests: who a kernel with `CONFIG_XEN_PV` thinks its
//! hypervisor is.
//!
//! The kernel runs in ring 3, with page tables of its own that it changes by hypercall; every
//! change is checked ([`tables`]). The processor's tables are not its own: exceptions and system
//! calls come here first, and go on to the kernel as bounce frames ([`bounce`]). In place of
//! interrupts there are event channels ([`events`]).
//!
//! A machine frame's number is that of the guest-physical page. RAM is from 0 on; behind it are
//! pages of the hypervisor's, of which the domain may map some.

mod bounce;
mod calls;
mod descriptors;
mod domains;
mod emulate;
mod events;
mod fifo;
mod frames;
mod grant_op;
mod grants;
mod guest;
mod layout;
mod leaves;
mod mapped;
mod memory;
mod memory_op;
mod misc;
mod mmu;
mod ports;
mod runstate;
mod saved;
mod suspend;
mod tables;
#[cfg(test)]
mod tables_tests;
mod time;
mod traps;
mod vcpu_op;
mod vcpus;

pub use layout::{Layout, VCPUS_MAX};
pub use leaves::{hidden, leaves};
pub use suspend::Rings;

use crate::{
    bounce::Own,
    events::{Events, Port},
    frames::Frames,
    grants::Version,
    mapped::Grants,
    memory::Memory,
    tables::{Level, Tables},
    vcpus::{Known, Vcpu, Wait},
};
use engine::{ClockSample, CpuView, Flow, Intercepts, TableChanges, Trap};
use guest_mem::{GuestMem, PAGE};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};
use vcpu_state::{MpState, SegReg, Segment, Table, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer, xcr0},
    segment::{ATTR_P, system_type},
};
use xen_abi::{errno::Errno, grant_table, trap::selector};
use xen_front::Notified;

/// All of a VM's clocks, now.
pub type ClockSource = Arc<dyn Fn() -> ClockSample + Send + Sync>;

/// What is around a domain.
pub trait Board: Send + Sync {
    /// A vCPU is to look at what is pending.
    fn wake(&self, vcpu: u32);
    /// [`XenPv::timer`] is to be called at this system time, and not at another that was asked for
    /// before.
    fn set_timer(&self, vcpu: u32, deadline_ns: Option<u64>);
    /// What the kernel says before it has a console.
    fn console(&self, text: &[u8]);
    /// The domain ends, starts again or is suspended, when [`XenPv::resume`] lets it go on:
    /// `SHUTDOWN_*`.
    fn shutdown(&self, reason: u32);
    /// A port to the backend of this number was notified.
    fn notify(&self, backend: u32);
}

/// Of a vCPU of an engine, as a personality needs it.
pub const INTERCEPTS: Intercepts = Intercepts { exceptions: !0, syscall: true, cpuid: false };

/// The state of a vCPU other than the first: it waits to be brought up.
pub fn waiting(first: &VcpuState, id: u32) -> VcpuState {
    let mut state = first.clone();
    let fresh = VcpuState::reset(id);
    state.regs = fresh.regs;
    state.mp = MpState::Halted;
    set_up(&mut state, id);
    state
}

/// What the hypervisor gives the processor of a vCPU, whatever runs on it.
pub fn set_up(state: &mut VcpuState, id: u32) {
    let reg = |selector| bounce::flat(selector);
    for which in [SegReg::Cs, SegReg::Ss] {
        let selector = if which == SegReg::Cs { selector::CS64 } else { selector::SS };
        *state.segment_mut(which) = reg(selector);
    }
    for which in [SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs, SegReg::Ldtr] {
        *state.segment_mut(which) = Segment::default();
    }
    // No bitmap of ports: all of them are refused.
    let busy = ATTR_P | system_type::TSS_BUSY;
    *state.segment_mut(SegReg::Tr) = Segment { attr: busy, ..Segment::default() };
    state.segments.gdtr = Table { base: Layout::gdt_linear(id), limit: 0xffff };
    state.segments.idtr = Table { base: 0, limit: 0 };
    state.control.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    state.control.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
    state.control.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.control.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
}

/// What a domain is made of.
pub struct Config {
    pub memory: Arc<GuestMem>,
    pub layout: Layout,
    pub vcpus: u32,
    pub clock: ClockSource,
    pub board: Arc<dyn Board>,
    /// What the kernel reads there, if [`hidden`] was told the same.
    pub arch_capabilities: Option<u64>,
}

/// What its builder has put into its memory.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// The address of its L4 table.
    pub root: u64,
    /// Frames of the rings of xenstore and of the console, which they are granted with.
    pub store_frame: u64,
    pub console_frame: u64,
}

/// Numbers of backends that every domain has.
pub mod backend {
    pub const STORE: u32 = 0;
    pub const CONSOLE: u32 = 1;
}

/// Ports that are bound before a domain starts.
pub const STORE_PORT: u32 = 1;
pub const CONSOLE_PORT: u32 = 2;

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// One domain.
pub struct XenPv {
    domain: Mutex<Domain>,
    vcpus: Vec<Mutex<Vcpu>>,
    /// Of each vCPU: it is to be told of something.
    attention: Vec<AtomicBool>,
    memory: Memory,
    /// Of each vCPU that has started: where its information is, as [`Known::info`].
    infos: Vec<AtomicU64>,
    board: Arc<dyn Board>,
    clock: ClockSource,
    /// Of a domain that starts here.
    arch_capabilities: Option<u64>,
}

impl std::fmt::Debug for XenPv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XenPv").field("vcpus", &self.vcpus.len()).finish_non_exhaustive()
    }
}

/// What all vCPUs share.
pub struct Domain {
    tables: Tables,
    events: Events,
    layout: Layout,
    /// Hypercalls that there are not, and how often they were tried.
    unknown: BTreeMap<(u64, u64), u64>,
    grant_frames: u32,
    grant_version: Version,
    /// `VMASST_TYPE_*` that are on, a bit for each.
    assists: u64,
    /// IA32_ARCH_CAPABILITIES where it started, if there was one: its kernel acts by that wherever it goes.
    arch_capabilities: Option<u64>,
    /// The frame of the start info of a domain that is suspended, which is held.
    suspended: Option<u64>,
    /// It is to go on at once when it suspends itself.
    called_off: bool,
    /// Whoever serves xenstore and the console writes to these frames at any time: they are held, so
    /// that they become no tables. None before it starts.
    rings: Option<Rings>,
    /// The vCPU that is in a hypercall lets others of the host run behind it.
    yields: bool,
    known: Vec<Known>,
    mapped: Grants,
    /// Back ends that bound a port, by that.
    notified: BTreeMap<u32, Notified>,
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Domain {
    fn new(memory: Memory, layout: Layout, vcpus: u32, arch_capabilities: Option<u64>) -> Self {
        let shared = |frame| layout.is_shared(frame);
        let frames = Frames::new(layout.ram / PAGE, layout.end() / PAGE, shared);
        let slots = layout.slots();
        let known = |id| Known { info: layout.info(id), ..Known::default() };
        Self {
            tables: Tables { frames, memory, slots, work: 0, changes: TableChanges::default() },
            events: Events::new(layout.shared_info()),
            layout,
            unknown: BTreeMap::new(),
            grant_frames: 1,
            grant_version: Version::One,
            assists: 0,
            arch_capabilities,
            suspended: None,
            called_off: false,
            rings: None,
            yields: false,
            known: (0..vcpus).map(known).collect(),
            mapped: Grants::default(),
            notified: BTreeMap::new(),
        }
    }

    /// Binds [`STORE_PORT`] and [`CONSOLE_PORT`], of a domain that has no other.
    fn bind_rings(&mut self) -> Result<(), Errno> {
        let memory = &self.tables.memory;
        self.events.bind(Port::Backend(backend::STORE), 0, memory)?;
        self.events.bind(Port::Backend(backend::CONSOLE), 0, memory)?;
        Ok(())
    }

    /// Holds the pages of the rings, once.
    fn hold_rings(&mut self, rings: Rings) -> Result<(), Errno> {
        for frame in [rings.store, rings.console] {
            if frame >= self.tables.frames.ram() {
                return Err(Errno::Inval);
            }
            self.tables.hold_written(frame, &mut |_| {})?;
        }
        self.rings = Some(rings);
        Ok(())
    }

    /// Grants the rings as a toolstack does, in a table that is empty.
    fn grant_rings(&self) {
        let Some(rings) = self.rings else { return };
        let reserved = [
            (grant_table::reserved::CONSOLE, rings.console),
            (grant_table::reserved::XENSTORE, rings.store),
        ];
        for (entry, frame) in reserved {
            // A backend's domain is 0.
            let value = u64::from(grant_table::flag::PERMIT_ACCESS) | frame << 32;
            self.tables.memory.store(self.layout.grants() + u64::from(entry) * 8, value);
        }
    }

    /// Where a vCPU's information is; one that there is not has the first's.
    fn info(&self, vcpu: u32) -> u64 {
        self.known.get(vcpu as usize).map_or_else(|| self.layout.info(0), |known| known.info)
    }

    /// What is a vCPU's own.
    fn own(&self, vcpu: u32) -> Own<'_> {
        Own { memory: &self.tables.memory, info: self.info(vcpu) }
    }

    fn known(&mut self, vcpu: u32) -> Result<&mut Known, Errno> {
        self.known.get_mut(vcpu as usize).ok_or(Errno::NoEnt)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl XenPv {
    /// A domain that has not started.
    pub fn new(config: Config) -> Arc<Self> {
        let Config { memory, layout, vcpus, clock, board, arch_capabilities } = config;
        let memory = Memory::new(memory);
        let domain = Domain::new(memory.clone(), layout, vcpus, arch_capabilities);
        Arc::new(Self {
            memory,
            infos: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            vcpus: (0..vcpus).map(|id| Mutex::new(Vcpu::new(id))).collect(),
            attention: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            domain: Mutex::new(domain),
            board,
            clock,
            arch_capabilities,
        })
    }

    /// Starts, or starts again, what a builder has made; nothing of what was before remains. No vCPU
    /// runs, and no back end is connected.
    pub fn start(&self, built: &Built) -> Result<(), Errno> {
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            let kernel_root = if id == 0 { built.root } else { 0 };
            *lock(vcpu) = Vcpu { kernel_root, ..Vcpu::new(id) };
        }
        let mut guard = lock(&self.domain);
        let memory = guard.tables.memory.clone();
        let vcpus = self.vcpus.len() as u32;
        *guard = Domain::new(memory, guard.layout, vcpus, self.arch_capabilities);
        let domain = &mut *guard;
        domain.layout.build(&domain.tables.memory, self.vcpus.len() as u32);
        domain.bind_rings()?;
        domain.hold_rings(Rings { store: built.store_frame, console: built.console_frame })?;
        // The first vCPU's, and pinned.
        let frame = built.root / PAGE;
        let forget: frames::Forget<'_> = &mut |_| {};
        domain.tables.start_table(frame, Level::L4, forget)?;
        domain.tables.start_table(frame, Level::L4, forget)?;
        domain.tables.frames.set_pinned(frame, true);
        domain.grant_rings();
        if let Some(first) = domain.known.first_mut() {
            (first.up, first.initialised) = (true, true);
        }
        domain.restart_runstates(self.now_ns());
        self.attention.iter().for_each(|flag| flag.store(false, SeqCst));
        self.infos.iter().for_each(|info| info.store(0, SeqCst));
        drop(guard);
        self.start_time();
        Ok(())
    }

    /// Where the rings of a domain that has started are, and stay: nothing else becomes of these frames.
    pub fn rings(&self) -> Option<Rings> {
        lock(&self.domain).rings
    }

    /// Whether a vCPU is to be told of something.
    pub fn is_pending(&self, vcpu: u32) -> bool {
        self.attention.get(vcpu as usize).is_some_and(|flag| flag.load(SeqCst))
    }

    /// A port becomes pending, for whatever is around the domain.
    pub fn raise(&self, port: u32) {
        let mut domain = lock(&self.domain);
        self.raise_in(&mut domain, port);
    }

    /// The port of a backend, once it is bound.
    fn raise_in(&self, domain: &mut Domain, port: u32) {
        if let Some(vcpu) = domain.events.raise(port, &domain.tables.memory) {
            self.tell(domain, vcpu, port);
        }
        for (id, known) in (0..).zip(&domain.known) {
            if matches!(known.wait, Wait::Ports(ports, _) if ports.contains(&port)) {
                self.attend(id);
            }
        }
    }

    /// An NMI for every vCPU that is up.
    pub fn nmi(&self) {
        let mut domain = lock(&self.domain);
        for (id, known) in (0..).zip(&mut domain.known) {
            if known.up {
                known.nmi = true;
                self.attend(id);
            }
        }
    }

    fn tell(&self, domain: &Domain, vcpu: u32, port: u32) {
        let info = domain.info(vcpu);
        if domain.events.tell(&domain.tables.memory, info, port) {
            self.attend(vcpu);
        }
    }

    fn attend(&self, vcpu: u32) {
        if let Some(flag) = self.attention.get(vcpu as usize) {
            flag.store(true, SeqCst);
            self.board.wake(vcpu);
        }
    }

    /// An event that a vCPU's engine was to offer here.
    pub fn trap(&self, vcpu: u32, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        self.handle(vcpu, trap, cpu)
    }

    fn note_info(&self, domain: &Domain, vcpu: u32) {
        if let Some(info) = self.infos.get(vcpu as usize) {
            info.store(domain.info(vcpu), SeqCst);
        }
    }

    /// Whether a vCPU has been brought up.
    pub fn is_up(&self, vcpu: u32) -> bool {
        lock(&self.domain).known.get(vcpu as usize).is_some_and(|known| known.up)
    }

    /// Pages of RAM that the domain has now.
    pub fn pages(&self) -> u64 {
        lock(&self.domain).tables.frames.owned_by_domain()
    }

    /// What was refused because it is not known: numbers of hypercalls and operations, and counts.
    pub fn unknown(&self) -> Vec<((u64, u64), u64)> {
        lock(&self.domain).unknown.iter().map(|(k, v)| (*k, *v)).collect()
    }
}
