//! How long each vCPU has run, waited for a processor, blocked and been offline, and the copies of
//! that, and of the time, that its kernel keeps (`vcpu.h`).

use crate::{
    Domain, XenPv,
    frames::Use,
    guest, lock,
    time::time_info,
    vcpus::{Known, Vcpu, Wait},
};
use engine::ClockSample;
use guest_mem::PAGE;
use std::mem::offset_of;
use x86_defs::paging::{ADDRESS, P, RW};
use xen_abi::{
    assist,
    vcpu::{RUNSTATE_UPDATE, RunstateInfo, runstate},
    xen::VcpuTimeInfo,
};
use zerocopy::IntoBytes;

/// The same, with the time in its last state until now.
pub fn until(mut info: RunstateInfo, now: u64) -> RunstateInfo {
    // Time in a state counts where the state ends; who asks before is told of it all the same.
    let (state, passed) = (info.state, now.saturating_sub(info.entered_ns));
    add(&mut info, state, passed);
    info
}

/// Goes into another state.
fn enter(info: &mut RunstateInfo, state: u32, now: u64) {
    let passed = now.saturating_sub(info.entered_ns);
    add(info, info.state, passed);
    (info.state, info.entered_ns) = (state, now);
}

fn add(info: &mut RunstateInfo, state: u32, ns: u64) {
    if let Some(time) = info.time_ns.get_mut(state as usize) {
        *time = time.saturating_add(ns);
    }
}

impl Domain {
    /// Whether a vCPU executes what its kernel wants, and does not wait.
    pub(crate) fn runs(&self, id: u32) -> bool {
        self.known.get(id as usize).is_some_and(|known| self.state_of(known) == runstate::RUNNING)
    }

    fn state_of(&self, known: &Known) -> u32 {
        match known.wait {
            _ if !known.up || self.suspended.is_some() => runstate::OFFLINE,
            Wait::None => runstate::RUNNING,
            Wait::Event | Wait::Ports(..) => runstate::BLOCKED,
        }
    }

    /// All vCPUs count from now on.
    pub(crate) fn restart_runstates(&mut self, now: u64) {
        let states: Vec<u32> = self.known.iter().map(|known| self.state_of(known)).collect();
        for (known, state) in self.known.iter_mut().zip(states) {
            known.runstate = RunstateInfo { state, entered_ns: now, ..RunstateInfo::default() };
        }
    }

    /// Writes where a vCPU's kernel asked for it, by its own tables; nothing if it has nothing there
    /// that it may write itself.
    fn copy(&self, root: u64, at: u64, bytes: &[u8]) {
        let mut rest = bytes;
        let mut linear = at;
        while !rest.is_empty() {
            let room = ((PAGE - linear % PAGE) as usize).min(rest.len());
            let (part, more) = rest.split_at(room);
            let Some(to) = self.place(root, linear, room) else { return };
            self.tables.memory.write(to, part);
            (rest, linear) = (more, linear.wrapping_add(room as u64));
        }
    }

    /// Where in memory a part of a page is that the kernel may write.
    fn place(&self, root: u64, linear: u64, len: usize) -> Option<u64> {
        if root == 0 || !guest::is_the_domains(linear, len) {
            return None;
        }
        let entry = self.tables.memory.load(self.tables.l1_entry(root, linear)?);
        let page = entry & ADDRESS;
        let writable = entry & (P | RW) == P | RW;
        (writable && self.tables.frames.is(page / PAGE, Use::Writable))
            .then(|| page + linear % PAGE)
    }

    fn copy_runstate(&self, known: &Known, root: u64) {
        let (area, info) = (known.runstate_area, known.runstate);
        if area == 0 {
            return;
        }
        if self.assists & 1 << assist::RUNSTATE_UPDATE_FLAG == 0 {
            self.copy(root, area, info.as_bytes());
            return;
        }
        // Marked before anything else changes, and until all has.
        let marked = RunstateInfo { entered_ns: info.entered_ns | RUNSTATE_UPDATE, ..info };
        let at = area.wrapping_add(offset_of!(RunstateInfo, entered_ns) as u64);
        self.copy(root, at, marked.entered_ns.as_bytes());
        self.copy(root, area, marked.as_bytes());
        self.copy(root, at, info.entered_ns.as_bytes());
    }

    /// The copy of the time that a vCPU's kernel has asked for.
    pub(crate) fn copy_time(&self, known: &Known, root: u64, now: &ClockSample) {
        let area = known.time_area;
        if area == 0 {
            return;
        }
        let Some(at) = self.place(root, area, size_of::<u32>()) else { return };
        let version = self.tables.memory.load(at) >> (at % 8 * 8);
        let version = version as u32 & !1;
        let odd = VcpuTimeInfo { version: version | 1, ..time_info(now) };
        self.copy(root, area, odd.version.as_bytes());
        self.copy(root, area, odd.as_bytes());
        self.copy(root, area, version.wrapping_add(2).as_bytes());
    }
}

impl XenPv {
    /// What a vCPU does has changed, perhaps.
    pub(crate) fn keep_runstate(&self, domain: &mut Domain, vcpu: &Vcpu) {
        let Some(known) = domain.known.get(vcpu.id as usize) else { return };
        let state = domain.state_of(known);
        if state == known.runstate.state {
            return;
        }
        let now = self.now_ns();
        if let Ok(known) = domain.known(vcpu.id) {
            enter(&mut known.runstate, state, now);
        }
        if let Some(known) = domain.known.get(vcpu.id as usize) {
            domain.copy_runstate(known, vcpu.kernel_root);
        }
    }

    /// Whether the vCPU's kernel wants to know how long it has waited for a processor.
    pub fn counts_delay(&self, id: u32) -> bool {
        lock(&self.domain).known.get(id as usize).is_some_and(|known| known.runstate_area != 0)
    }

    /// How long the vCPU's thread has waited for a processor of the host's in all, in nanoseconds.
    pub fn delayed(&self, id: u32, run_delay_ns: u64) {
        let Some(own) = self.vcpus.get(id as usize) else { return };
        let mut vcpu = lock(own);
        let before = vcpu.run_delay.replace(run_delay_ns);
        let delay = before.map_or(0, |before| run_delay_ns.saturating_sub(before));
        let mut domain = lock(&self.domain);
        let Ok(known) = domain.known(id) else { return };
        let state = known.runstate.state;
        if delay == 0 || state == runstate::OFFLINE {
            return;
        }
        let now = self.now_ns();
        let passed = now.saturating_sub(known.runstate.entered_ns);
        let delay = delay.min(passed);
        add(&mut known.runstate, runstate::RUNNABLE, delay);
        add(&mut known.runstate, state, passed - delay);
        known.runstate.entered_ns = now;
        if let Some(known) = domain.known.get(id as usize) {
            domain.copy_runstate(known, vcpu.kernel_root);
        }
    }
}
