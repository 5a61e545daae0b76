//! The domain's clocks: system time by the TSC, and the time of day.

use crate::{Domain, XenPv, lock, memory::Memory, vcpus::Wait};
use engine::ClockSample;
use pv_kvm::time_scale;
use std::mem::offset_of;
use xen_abi::{
    event_channel::virq,
    xen::{SharedInfo, TSC_STABLE, VcpuInfo, VcpuTimeInfo},
};
use zerocopy::IntoBytes;

const NS: u64 = 1_000_000_000;

/// Writes a clock whose first 4 bytes are its version: odd meanwhile.
fn publish(memory: &Memory, at: u64, version: u32, rest: &[u8]) {
    memory.write(at, &(version | 1).to_le_bytes());
    memory.write(at + 4, rest);
    memory.write(at, &version.wrapping_add(2).to_le_bytes());
}

pub(crate) fn time_info(now: &ClockSample) -> VcpuTimeInfo {
    let (mul, shift) = time_scale(now.khz);
    VcpuTimeInfo {
        tsc_timestamp: now.tsc,
        system_time: now.guest_ns,
        tsc_to_system_mul: mul,
        tsc_shift: shift,
        flags: TSC_STABLE,
        ..VcpuTimeInfo::default()
    }
}

impl XenPv {
    /// Tells the domain of the clocks as they are when it starts, or goes on.
    pub fn start_time(&self) {
        let roots: Vec<u64> = self.vcpus.iter().map(|vcpu| lock(vcpu).kernel_root).collect();
        let domain = lock(&self.domain);
        let now = (self.clock)();
        let memory = &domain.tables.memory;
        for (known, root) in domain.known.iter().zip(roots) {
            write_time(memory, known.info, &now);
            domain.copy_time(known, root, &now);
        }
        // The time of day at system time 0.
        let boot = now.realtime_ns.saturating_sub(now.guest_ns);
        let at = domain.layout.shared_info() + offset_of!(SharedInfo, wc_version) as u64;
        let seconds = boot / NS;
        let mut rest = (seconds as u32).to_le_bytes().to_vec();
        rest.extend(((boot % NS) as u32).to_le_bytes());
        rest.extend(((seconds >> 32) as u32).to_le_bytes());
        let version = memory.load(at) as u32 & !1;
        publish(memory, at, version, &rest);
    }

    /// A time that was asked for has come.
    pub fn timer(&self, vcpu: u32) {
        let now = self.now_ns();
        let mut domain = lock(&self.domain);
        let Ok(known) = domain.known(vcpu) else { return };
        let due = known.timer.take_if(|at| *at <= now).is_some();
        let polls = matches!(known.wait, Wait::Ports(_, 1..));
        if due && let Some(port) = domain.events.of_virq(virq::TIMER, vcpu) {
            self.raise_in(&mut domain, port);
        }
        self.arm(&mut domain, vcpu);
        if polls {
            // It looks at its time limit.
            self.attend(vcpu);
        }
    }

    pub(crate) fn set_timer(&self, domain: &mut Domain, vcpu: u32, deadline: Option<u64>) {
        if let Ok(known) = domain.known(vcpu) {
            known.timer = deadline;
        }
        self.arm(domain, vcpu);
    }

    /// Asks for the next time that a vCPU waits for, by its timer or while it polls.
    pub(crate) fn arm(&self, domain: &mut Domain, vcpu: u32) {
        let Ok(known) = domain.known(vcpu) else { return };
        // A limit that has passed is the vCPU's to see.
        let limit = match known.wait {
            Wait::Ports(_, until) if until > self.now_ns() => Some(until),
            _ => None,
        };
        let next = known.timer.into_iter().chain(limit).min();
        self.board.set_timer(vcpu, next);
    }

    pub(crate) fn now_ns(&self) -> u64 {
        (self.clock)().guest_ns
    }

    pub(crate) fn publish_time(&self, domain: &Domain, info: u64) {
        write_time(&domain.tables.memory, info, &(self.clock)());
    }

    /// A copy of the time, as bytes.
    pub(crate) fn time_bytes(&self) -> Vec<u8> {
        let info = VcpuTimeInfo { version: 2, ..time_info(&(self.clock)()) };
        info.as_bytes().to_vec()
    }
}

fn write_time(memory: &Memory, info: u64, now: &ClockSample) {
    let at = info + offset_of!(VcpuInfo, time) as u64;
    let version = memory.load(at) as u32 & !1;
    let bytes = time_info(now);
    publish(memory, at, version, bytes.as_bytes().get(4..).unwrap_or(&[]));
}
