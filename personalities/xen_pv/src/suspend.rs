//! A domain that suspends itself, and goes on as in a new one (`sched.h`: `SHUTDOWN_suspend`; Linux:
//! `drivers/xen/manage.c`, `arch/x86/xen/suspend_pv.c`).
//!
//! Before, the kernel has turned what it keeps of machine frames into its own frames; while it is
//! suspended, no vCPU runs. It then finds what the hypervisor has for it as at its start: other ports,
//! which are those of xenstore and of the console, an empty grant table, each vCPU's information in
//! the shared page, no timers. Memory, tables and what vCPUs execute are as they were.

use crate::{
    Domain, XenPv,
    events::Events,
    frames::Forget,
    grants::Version,
    layout::{GRANT_FRAMES, STATUS_FRAMES},
    lock,
    vcpus::Wait,
};
use engine::CpuView;
use guest_mem::PAGE;
use std::{mem::offset_of, sync::atomic::Ordering::SeqCst};
use xen_abi::{
    errno::Errno,
    start_info::StartInfo,
    xen::{SharedInfo, VcpuInfo},
};

/// Frames of the rings of xenstore and of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    pub store: u64,
    pub console: u64,
}

/// What `SCHEDOP_shutdown` returns to a kernel that is not suspended after all.
const CANCELLED: u64 = 1;

impl Domain {
    /// Holds the page of the start info, which is to be written.
    pub(crate) fn hold_start_info(&mut self, frame: u64, forget: Forget<'_>) -> Result<(), Errno> {
        if frame >= self.tables.frames.ram() {
            return Err(Errno::Inval);
        }
        self.tables.hold_written(frame, forget)
    }

    /// What a kernel reads at its start, and again now.
    fn renew_start_info(&mut self, frame: u64, rings: Rings) {
        let memory = &self.tables.memory;
        let at = |offset: usize| frame * PAGE + offset as u64;
        memory.store(at(offset_of!(StartInfo, pages)), self.tables.frames.ram());
        memory.store(at(offset_of!(StartInfo, shared_info)), self.layout.shared_info());
        memory.store(at(offset_of!(StartInfo, flags)), 0);
        memory.store(at(offset_of!(StartInfo, store_mfn)), rings.store);
        memory.store(at(offset_of!(StartInfo, store_port)), crate::STORE_PORT.into());
        memory.store(at(offset_of!(StartInfo, console_mfn)), rings.console);
        memory.store(at(offset_of!(StartInfo, console_port)), crate::CONSOLE_PORT.into());
        self.tables.release_written(frame);
    }

    /// No port is pending, and none is told of before the kernel wants it.
    fn renew_shared_info(&self) {
        let memory = &self.tables.memory;
        let shared = self.layout.shared_info();
        for word in (0..size_of::<[u64; 64]>() as u64).step_by(8) {
            memory.store(shared + offset_of!(SharedInfo, pending) as u64 + word, 0);
            memory.store(shared + offset_of!(SharedInfo, mask) as u64 + word, !0);
        }
        for vcpu in 0..crate::VCPUS_MAX {
            let info = self.layout.info(vcpu);
            // Masked, as at the start.
            memory.store(info, 1 << 8);
            memory.store(info + offset_of!(VcpuInfo, pending_sel) as u64, 0);
        }
    }

    fn renew_vcpu(&mut self, id: u32) {
        let info = self.layout.info(id);
        let Ok(known) = self.known(id) else { return };
        let registered = std::mem::take(&mut known.info_registered).then_some(known.info);
        known.info = info;
        (known.timer, known.nmi) = (None, false);
        (known.runstate_area, known.time_area) = (0, 0);
        if let Some(old) = registered {
            self.tables.release_written(old / PAGE);
        }
    }
}

impl XenPv {
    /// `SCHEDOP_shutdown` with `SHUTDOWN_suspend`: no vCPU runs from now on.
    pub(crate) fn suspend(
        &self,
        domain: &mut Domain,
        cpu: &mut dyn CpuView,
        start_info: u64,
    ) -> Result<u64, Errno> {
        if std::mem::take(&mut domain.called_off) {
            return Ok(CANCELLED);
        }
        if domain.suspended.is_some() {
            return Err(Errno::Busy);
        }
        domain.hold_start_info(start_info, &mut |frame| cpu.forget_writes(frame * PAGE))?;
        domain.suspended = Some(start_info);
        self.board.shutdown(xen_abi::sched::reason::SUSPEND);
        cpu.halt();
        // Those that run look, and halt.
        (0..self.vcpus.len() as u32).for_each(|id| self.attend(id));
        Ok(0)
    }

    pub fn is_suspended(&self) -> bool {
        lock(&self.domain).suspended.is_some()
    }

    /// Whether the domain is to go on, as if nothing had been asked for, when it suspends itself the
    /// next time.
    pub fn call_off(&self, called_off: bool) {
        lock(&self.domain).called_off = called_off;
    }

    /// Lets a domain that is suspended go on; false if it is not. No vCPU is in the middle of
    /// something, and no back end is connected.
    pub fn resume(&self) -> bool {
        let now = self.now_ns();
        let mut guard = lock(&self.domain);
        let domain = &mut *guard;
        let Some(rings) = domain.rings else { return false };
        let Some(start_info) = domain.suspended.take() else { return false };
        domain.end_fifo();
        domain.events = Events::new(domain.layout.shared_info());
        // There is room for two.
        let _ = domain.bind_rings();
        domain.notified.clear();
        domain.renew_shared_info();
        let table = domain.layout.grants() / PAGE;
        let table = table..table + GRANT_FRAMES + STATUS_FRAMES;
        table.for_each(|frame| domain.tables.memory.clear(frame));
        (domain.grant_frames, domain.grant_version) = (1, Version::One);
        domain.grant_rings();
        domain.renew_start_info(start_info, rings);
        let vcpus = self.vcpus.len() as u32;
        for id in 0..vcpus {
            domain.renew_vcpu(id);
            // Who waits for a port looks; there is none like it any more.
            if let Ok(known) = domain.known(id) {
                known.wait = Wait::None;
            }
            self.arm(domain, id);
        }
        domain.restart_runstates(now);
        self.infos.iter().for_each(|info| info.store(0, SeqCst));
        (0..vcpus).for_each(|id| self.attend(id));
        drop(guard);
        self.start_time();
        true
    }
}
