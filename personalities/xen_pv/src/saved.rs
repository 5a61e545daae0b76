//! The domain in saved state.
//!
//! Counts of frames are not saved: they are made again by looking through what is pinned and what
//! vCPUs use, so that a state which breaks the rules of [`tables`](crate::tables) is refused. What a
//! back end has mapped or bound it maps and binds again.

use crate::{
    Domain, Level, Vcpu, XenPv, bounce,
    emulate::SPEC_CTRL,
    events::{Channel, Events, Port},
    fifo::{PORTS_FIFO, Queues},
    frames::{Owner, Use},
    grants::Version,
    layout::Layout,
    lock,
    suspend::Rings,
    vcpus::{Callback, Wait},
};
use guest_mem::PAGE;
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::SeqCst;
use vcpu_state::{MpState, SegReg, VcpuState};
use x86_defs::{cr::cr0, msr};
use xen_abi::{
    DOMID_SELF,
    event_channel::{PORTS_2LEVEL, fifo::PRIORITY_MIN},
    trap::TrapInfo,
    vcpu::{GuestContext, RunstateInfo},
};
use zerocopy::{FromBytes, IntoBytes};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum PortState {
    Free,
    /// Or bound, to a back end of that domain.
    Unbound(u16),
    Virq(u32),
    Ipi,
    Backend(u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WaitState {
    None,
    Event,
    Ports { ports: [u32; 8], until: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownState {
    up: bool,
    initialised: bool,
    /// `struct vcpu_guest_context`.
    start: Option<Vec<u8>>,
    info: u64,
    info_registered: bool,
    wait: WaitState,
    timer: Option<u64>,
    nmi: bool,
    runstate: RunstateState,
}

/// `struct vcpu_runstate_info`, and where the kernel has copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunstateState {
    state: u32,
    entered_ns: u64,
    time_ns: [u64; 4],
    area: u64,
    time_area: u64,
}

/// Queues of event channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FifoState {
    /// Frames of the words.
    array: Vec<u64>,
    /// By vCPU: the address of its control block, and the last port of each queue.
    queues: Vec<Option<(u64, [u32; 16])>>,
    /// By port: its priority, the vCPU and priority of the queue that it was in last, and whether it is
    /// pending without a word.
    ports: Vec<(u8, u32, u8, bool)>,
}

impl FifoState {
    fn of(events: &Events) -> Option<Self> {
        let fifo = events.fifo.as_ref()?;
        let queues = |queues: &Option<Queues>| queues.as_ref().map(|all| (all.at, all.tails));
        let port = |channel: &Channel| {
            let (vcpu, priority) = channel.last;
            (channel.priority, vcpu, priority, channel.waits)
        };
        Some(Self {
            array: fifo.array.clone(),
            queues: fifo.queues.iter().map(queues).collect(),
            ports: events.channels().iter().map(port).collect(),
        })
    }

    /// Behind the ports.
    fn put_into(self, domain: &mut Domain) -> Result<(), &'static str> {
        let queue_is_there = |(priority, vcpu, last, _): &(u8, u32, u8, bool)| {
            *priority <= PRIORITY_MIN
                && *last <= PRIORITY_MIN
                && (*vcpu as usize) < domain.known.len()
        };
        let channels = domain.events.channels();
        if self.ports.len() != channels.len() || !self.ports.iter().all(queue_is_there) {
            return Err("its ports are in queues that there are not");
        }
        let queued = |(channel, (priority, vcpu, last, waits)): (&Channel, _)| Channel {
            priority,
            last: (vcpu, last),
            waits,
            ..*channel
        };
        let channels = channels.iter().zip(self.ports).map(queued).collect();
        domain.events.set_channels(channels);
        let queues = |queues: Option<(u64, _)>| queues.map(|(at, tails)| Queues { at, tails });
        let queues = self.queues.into_iter().map(queues).collect();
        domain.fifo_again(self.array, queues).map_err(|_| "its queues are in no pages of its own")
    }
}

type Runs = Vec<(u64, u64)>;

/// One frame more, behind all that are there.
fn extend(runs: &mut Runs, frame: u64) {
    match runs.last_mut() {
        Some((first, count)) if *first + *count == frame => *count += 1,
        _ => runs.push((frame, 1)),
    }
}

/// What all vCPUs share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DomainState {
    /// Bytes of RAM.
    ram: u64,
    /// Tables that are pinned, and their level.
    pinned: Vec<(u64, u8)>,
    /// Runs of frames that the domain has given back: the first, and how many.
    given_back: Runs,
    /// The same of those that it has given back and still maps.
    leaving: Runs,
    /// By port, with the vCPU that is told.
    ports: Vec<(PortState, u32)>,
    /// If it has chosen them.
    fifo: Option<FifoState>,
    grant_frames: u32,
    grant_version: u32,
    assists: u64,
    arch_capabilities: Option<u64>,
    /// The frame of the start info of a domain that is suspended.
    suspended: Option<u64>,
    called_off: bool,
    /// Frames of the rings of xenstore and of the console.
    rings: Option<(u64, u64)>,
    vcpus: Vec<KnownState>,
}

impl Schema for DomainState {
    const KIND: &'static str = "xen-domain";
    const VERSION: u16 = 5;
}

type CallbackState = (u64, bool);

/// What only a vCPU's own thread touches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct XenVcpuState {
    in_kernel: bool,
    kernel_root: u64,
    user_root: u64,
    kernel_sp: u64,
    kernel_ss: u64,
    other_gs: u64,
    /// Vector, flags, selector and address of the handlers that there are.
    traps: Vec<(u8, u8, u16, u64)>,
    event: CallbackState,
    failsafe: CallbackState,
    syscall: CallbackState,
    syscall32: CallbackState,
    sysenter: CallbackState,
    nmi_masked: bool,
    gdt_frames: Vec<u64>,
    ldt_frames: Vec<u64>,
    cr4: u64,
    debug: [u64; 8],
    spec_ctrl: u64,
}

impl Schema for XenVcpuState {
    const KIND: &'static str = "xen-vcpu";
    const VERSION: u16 = 3;
}

fn saved(callback: Callback) -> CallbackState {
    (callback.address, callback.masks_events)
}

fn callback((address, masks_events): CallbackState) -> Callback {
    Callback { address, masks_events }
}

fn level(number: u8) -> Option<Level> {
    [Level::L1, Level::L2, Level::L3, Level::L4].into_iter().find(|level| *level as u8 == number)
}

impl DomainState {
    fn of(domain: &Domain) -> Self {
        let frames = &domain.tables.frames;
        let (mut pinned, mut given_back, mut leaving) = (Vec::new(), Runs::new(), Runs::new());
        for number in 0..frames.ram() {
            let Some(frame) = frames.get(number) else { continue };
            if let (true, Use::Table(level)) = (frame.pinned, frame.used_as) {
                pinned.push((number, level as u8));
            }
            match frame.owner {
                Owner::Nobody => extend(&mut given_back, number),
                Owner::Leaving => extend(&mut leaving, number),
                Owner::Domain | Owner::Shared => {}
            }
        }
        let port = |channel: &Channel| match channel.port {
            Port::Free => PortState::Free,
            Port::Unbound(by) => PortState::Unbound(by),
            Port::Bound => PortState::Unbound(0),
            Port::Virq(number) => PortState::Virq(number),
            Port::Ipi => PortState::Ipi,
            Port::Backend(number) => PortState::Backend(number),
        };
        let vcpus = domain.known.iter().map(|known| KnownState {
            up: known.up,
            initialised: known.initialised,
            start: known.start.as_ref().map(|context| context.as_bytes().to_vec()),
            info: known.info,
            info_registered: known.info_registered,
            wait: match known.wait {
                Wait::None => WaitState::None,
                Wait::Event => WaitState::Event,
                Wait::Ports(ports, until) => WaitState::Ports { ports, until },
            },
            timer: known.timer,
            nmi: known.nmi,
            runstate: RunstateState {
                state: known.runstate.state,
                entered_ns: known.runstate.entered_ns,
                time_ns: known.runstate.time_ns,
                area: known.runstate_area,
                time_area: known.time_area,
            },
        });
        let channels = domain.events.channels();
        Self {
            ram: domain.layout.ram,
            pinned,
            given_back,
            leaving,
            ports: channels.iter().map(|channel| (port(channel), channel.vcpu)).collect(),
            fifo: FifoState::of(&domain.events),
            grant_frames: domain.grant_frames,
            grant_version: domain.grant_version as u32,
            assists: domain.assists,
            arch_capabilities: domain.arch_capabilities,
            suspended: domain.suspended,
            called_off: domain.called_off,
            rings: domain.rings.map(|rings| (rings.store, rings.console)),
            vcpus: vcpus.collect(),
        }
    }

    /// What is known of frames, ports and vCPUs, in a domain that knows nothing yet; what is to be
    /// given back when all that maps it has been looked through.
    fn put_into(self, domain: &mut Domain) -> Result<Runs, &'static str> {
        let vcpus = domain.known.len();
        if self.ram != domain.layout.ram || self.vcpus.len() != vcpus {
            return Err("it is of a domain of another size");
        }
        if !(1..=crate::layout::GRANT_FRAMES).contains(&u64::from(self.grant_frames)) {
            return Err("its grant table has another size");
        }
        domain.grant_frames = self.grant_frames;
        domain.grant_version =
            Version::new(self.grant_version).ok_or("its grant table has no version")?;
        (domain.assists, domain.called_off) = (self.assists, self.called_off);
        domain.arch_capabilities = self.arch_capabilities;
        let first =
            self.ports.first().is_some_and(|(port, _)| *port == PortState::Unbound(DOMID_SELF));
        let vcpu_is_there = |(_, vcpu): &(PortState, u32)| (*vcpu as usize) < vcpus;
        let limit = if self.fifo.is_some() { PORTS_FIFO } else { PORTS_2LEVEL as usize };
        if !first || self.ports.len() > limit || !self.ports.iter().all(vcpu_is_there) {
            return Err("its ports are none");
        }
        let channel = |(port, vcpu): (PortState, u32)| {
            let port = match port {
                PortState::Free => Port::Free,
                PortState::Unbound(by) => Port::Unbound(by),
                PortState::Virq(number) => Port::Virq(number),
                PortState::Ipi => Port::Ipi,
                PortState::Backend(number) => Port::Backend(number),
            };
            Channel::new(port, vcpu)
        };
        domain.events.set_channels(self.ports.into_iter().map(channel).collect());
        give_back(domain, self.given_back)?;
        if let Some((store, console)) = self.rings {
            let held = domain.hold_rings(Rings { store, console });
            held.map_err(|_| "a ring is in no page of its own")?;
        }
        if let Some(fifo) = self.fifo {
            fifo.put_into(domain)?;
        }
        for (id, state) in (0..).zip(self.vcpus) {
            state.put_into(domain, id)?;
        }
        if let Some(frame) = self.suspended {
            let held = domain.hold_start_info(frame, &mut |_| {});
            held.map_err(|_| "a start info is in no page of its own")?;
            domain.suspended = Some(frame);
        }
        for (frame, number) in self.pinned {
            let level = level(number).ok_or("a pinned table has no level")?;
            domain.tables.pin_again(frame, level).map_err(|_| "a table breaks the rules")?;
        }
        Ok(self.leaving)
    }
}

/// The domain has given these back, as it had when it was saved.
fn give_back(domain: &mut Domain, runs: Runs) -> Result<(), &'static str> {
    for (first, count) in runs {
        let end = first.checked_add(count).filter(|end| *end <= domain.tables.frames.ram());
        for frame in first..end.ok_or("it gave back what it had not")? {
            domain.tables.frames.give_back(frame).map_err(|_| "it gave a frame back twice")?;
        }
    }
    Ok(())
}

impl KnownState {
    fn put_into(self, domain: &mut Domain, id: u32) -> Result<(), &'static str> {
        let wrong = "a vCPU's information is in no page of its own";
        if self.info_registered {
            let size = size_of::<xen_abi::xen::VcpuInfo>() as u64;
            if !self.info.is_multiple_of(8) || self.info % PAGE > PAGE - size {
                return Err(wrong);
            }
            domain.tables.hold_written(self.info / PAGE, &mut |_| {}).map_err(|_| wrong)?;
        } else if self.info != domain.layout.info(id) {
            return Err(wrong);
        }
        let context = |bytes: Vec<u8>| {
            GuestContext::read_from_bytes(&bytes).map(Box::new).map_err(|_| "a context has no size")
        };
        let known = domain.known(id).map_err(|_| "it has a vCPU too many")?;
        (known.up, known.initialised) = (self.up, self.initialised);
        known.start = self.start.map(context).transpose()?;
        (known.info, known.info_registered) = (self.info, self.info_registered);
        known.wait = match self.wait {
            WaitState::None => Wait::None,
            WaitState::Event => Wait::Event,
            WaitState::Ports { ports, until } => Wait::Ports(ports, until),
        };
        (known.timer, known.nmi) = (self.timer, self.nmi);
        let RunstateState { state, entered_ns, time_ns, area, time_area } = self.runstate;
        known.runstate = RunstateInfo { state, padding: 0, entered_ns, time_ns };
        (known.runstate_area, known.time_area) = (area, time_area);
        Ok(())
    }
}

impl XenVcpuState {
    fn of(vcpu: &Vcpu) -> Self {
        let there = |trap: &&TrapInfo| trap.address != 0;
        let traps = (0..=255).zip(&vcpu.traps).filter(|(_, trap)| there(trap));
        Self {
            in_kernel: vcpu.in_kernel,
            kernel_root: vcpu.kernel_root,
            user_root: vcpu.user_root,
            kernel_sp: vcpu.kernel_sp,
            kernel_ss: vcpu.kernel_ss,
            other_gs: vcpu.other_gs,
            traps: traps.map(|(n, trap)| (n, trap.flags, trap.cs, trap.address)).collect(),
            event: saved(vcpu.event),
            failsafe: saved(vcpu.failsafe),
            syscall: saved(vcpu.syscall),
            syscall32: saved(vcpu.syscall32),
            sysenter: saved(vcpu.sysenter),
            nmi_masked: vcpu.nmi_masked,
            gdt_frames: vcpu.gdt_frames.clone(),
            ldt_frames: vcpu.ldt_frames.clone(),
            cr4: vcpu.cr4,
            debug: vcpu.debug,
            spec_ctrl: vcpu.spec_ctrl,
        }
    }

    fn put_into(self, domain: &mut Domain, id: u32) -> Result<Vcpu, &'static str> {
        for root in [self.kernel_root, self.user_root].into_iter().filter(|root| *root != 0) {
            if !root.is_multiple_of(PAGE) {
                return Err("a root is no table");
            }
            let started = domain.tables.start_table(root / PAGE, Level::L4, &mut |_| {});
            started.map_err(|_| "a root breaks the rules")?;
        }
        let begun = domain
            .known(id)
            .is_ok_and(|known| (known.up || known.initialised) && known.start.is_none());
        let none = (self.kernel_root == 0, self.user_root == 0);
        // A program without tables would have whatever is at address 0 for them.
        if (begun && none.0) || (!self.in_kernel && none.1) || (none.0 && !none.1) {
            return Err("a vCPU has no tables");
        }
        if self.spec_ctrl & !SPEC_CTRL != 0 {
            return Err("a vCPU controls what it has not");
        }
        domain
            .descriptors_again(id, &self.gdt_frames, &self.ldt_frames)
            .map_err(|_| "descriptors break the rules")?;
        let mut vcpu = Vcpu {
            in_kernel: self.in_kernel,
            kernel_root: self.kernel_root,
            user_root: self.user_root,
            kernel_sp: self.kernel_sp,
            kernel_ss: self.kernel_ss,
            other_gs: self.other_gs,
            event: callback(self.event),
            failsafe: callback(self.failsafe),
            syscall: callback(self.syscall),
            syscall32: callback(self.syscall32),
            sysenter: callback(self.sysenter),
            nmi_masked: self.nmi_masked,
            gdt_frames: self.gdt_frames,
            ldt_frames: self.ldt_frames,
            cr4: self.cr4,
            debug: self.debug,
            spec_ctrl: self.spec_ctrl,
            ..Vcpu::new(id)
        };
        for (vector, flags, cs, address) in self.traps {
            if let Some(slot) = vcpu.traps.get_mut(usize::from(vector)) {
                *slot = TrapInfo { vector, flags, cs, padding: 0, address };
            }
        }
        Ok(vcpu)
    }
}

impl XenPv {
    /// vCPUs are parked, and back ends paused. Memory is saved by whoever saves, the hypervisor's
    /// pages with it.
    pub fn save(&self, to: &mut Writer) {
        to.put(0, &DomainState::of(&lock(&self.domain)));
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            to.put(id, &XenVcpuState::of(&lock(vcpu)));
        }
    }

    /// The opposite, of a domain whose memory is there; no back end is connected. Nothing is changed
    /// but memory if it fails.
    pub fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: DomainState = from.take(0)?;
        let mut parts = Vec::new();
        for id in 0..self.vcpus.len() as u32 {
            parts.push(from.take::<XenVcpuState>(id)?);
        }
        let mut guard = lock(&self.domain);
        let memory = guard.tables.memory.clone();
        let mut domain = Domain::new(memory, guard.layout, self.vcpus.len() as u32, None);
        domain.layout.build_own(&domain.tables.memory, self.vcpus.len() as u32);
        let leaving = state.put_into(&mut domain).map_err(malformed::<DomainState>)?;
        let mut vcpus = Vec::new();
        for (id, part) in (0..).zip(parts) {
            vcpus.push(part.put_into(&mut domain, id).map_err(malformed::<XenVcpuState>)?);
        }
        give_back(&mut domain, leaving).map_err(malformed::<DomainState>)?;
        *guard = domain;
        drop(guard);
        for ((own, new), attention) in self.vcpus.iter().zip(vcpus).zip(&self.attention) {
            *lock(own) = new;
            // Whatever it waits for: it looks.
            attention.store(true, SeqCst);
        }
        let mut domain = lock(&self.domain);
        (0..self.vcpus.len() as u32).for_each(|id| self.arm(&mut domain, id));
        Ok(())
    }

    /// Whether a state is one that a vCPU of this domain can have, whatever has been done to it where
    /// it was kept: it runs the domain's code in ring 3 by the domain's tables. The processor's own
    /// tables are made what they have to be.
    pub fn admit(&self, id: u32, state: &mut VcpuState) -> Result<(), &'static str> {
        let Some(own) = self.vcpus.get(id as usize) else { return Err("there is no such vCPU") };
        let vcpu = lock(own);
        let root = if vcpu.in_kernel { vcpu.kernel_root } else { vcpu.user_root };
        let not_begun = vcpu.kernel_root == 0;
        if !not_begun && state.control.cr3 != root {
            return Err("its tables are not those of its domain");
        }
        let ring_3 = [SegReg::Cs, SegReg::Ss].map(|which| state.segment(which).dpl() == 3);
        if ring_3 != [true; 2] || state.regs.rflags & bounce::PRIVILEGED != 0 {
            return Err("it is not in ring 3");
        }
        let (kept, fresh) = (state.clone(), VcpuState::reset(id));
        crate::set_up(state, id);
        // What ring 3 can neither write nor is to be served by, as SYSENTER is and debug registers.
        (state.msrs, state.debug) = (fresh.msrs, fresh.debug);
        // Its events are those of its domain, and there is no APIC.
        (state.events, state.apic) = (fresh.events, fresh.apic);
        for index in [msr::TSC_AUX, msr::IA32_PAT] {
            kept.msrs.get(index).into_iter().for_each(|value| state.msrs.set(index, value));
        }
        if not_begun {
            (state.regs, state.mp, state.control.cr3) = (fresh.regs, MpState::Halted, 0);
        }
        for which in [SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs] {
            *state.segment_mut(which) = *kept.segment(which);
        }
        let ldt = *kept.segment(SegReg::Ldtr);
        let own_ldt = ldt.base == Layout::ldt_linear(id)
            && u64::from(ldt.limit) < vcpu.ldt_frames.len() as u64 * PAGE;
        if own_ldt && !vcpu.ldt_frames.is_empty() {
            *state.segment_mut(SegReg::Ldtr) = ldt;
        }
        state.control.xcr0 = kept.control.xcr0;
        state.control.cr0 |= kept.control.cr0 & cr0::TS;
        Ok(())
    }
}
