//! What the owner does with a Xen domain.

use super::{
    builder::Builder,
    devices::Units,
    service::{Service, ServiceThread},
    toolstack::{Shutdown, Toolstack},
};
use crate::{
    Error, ScsiAddress,
    parts::DiskPart,
    place::Place,
    platform::{Common, Platform, Sleep, Wake},
    plug::{Plug, PlugError},
    vcpu::{VcpuThread, Waker},
};
use device::{Device, PowerEvent, PowerSink, Timer};
use guest_mem::PAGE;
use saved_state::Part;
use std::sync::{Arc, OnceLock};
use xen_abi::sched::reason;
use xen_console::XenConsole;
use xen_front::Page;
use xen_pv::{Built, Layout, XenPv, backend};

/// A domain and what is around it.
pub(crate) struct Domain {
    pub(crate) common: Common,
    pub(crate) xen: Arc<XenPv>,
    pub(crate) layout: Layout,
    pub(crate) builder: Builder,
    pub(crate) toolstack: Arc<Toolstack>,
    pub(crate) units: Units,
    pub(crate) service: Arc<Service>,
    pub(crate) _thread: ServiceThread,
}

/// What the personality calls.
pub(crate) struct Around {
    pub(crate) wakers: OnceLock<Vec<Arc<Waker>>>,
    pub(crate) timers: OnceLock<Vec<Arc<dyn Timer>>>,
    pub(crate) console: OnceLock<Arc<XenConsole>>,
    pub(crate) service: Arc<Service>,
    pub(crate) power: Arc<dyn PowerSink>,
}

impl xen_pv::Board for Around {
    fn wake(&self, vcpu: u32) {
        if let Some(waker) = self.wakers.get().and_then(|all| all.get(vcpu as usize)) {
            waker.wake();
        }
    }

    fn set_timer(&self, vcpu: u32, deadline_ns: Option<u64>) {
        if let Some(timer) = self.timers.get().and_then(|all| all.get(vcpu as usize)) {
            timer.arm(deadline_ns);
        }
    }

    fn console(&self, text: &[u8]) {
        if let Some(console) = self.console.get() {
            console.say(text);
        }
    }

    fn shutdown(&self, why: u32) {
        self.power.request(match why {
            reason::POWEROFF => PowerEvent::PowerOff,
            reason::REBOOT => PowerEvent::Reset,
            // It waits until it is woken.
            reason::SUSPEND => return,
            _ => PowerEvent::GuestPanicked,
        });
    }

    fn notify(&self, backend: u32) {
        match backend {
            backend::STORE => self.service.ring_store(),
            backend::CONSOLE => self.service.ring_console(),
            _ => {}
        }
    }
}

impl Domain {
    fn page(&self, address: u64) -> Result<Page, Error> {
        let memory = self.common.vm.memory().clone();
        Page::new(memory, address).ok_or(Error::GuestMemory(guest_mem::Error::NotMemory(address)))
    }
}

impl Platform for Domain {
    fn common(&self) -> &Common {
        &self.common
    }

    fn kernel(&self) -> String {
        self.builder.description()
    }

    /// Does what a domain builder would.
    fn load(&self, vcpus: &[VcpuThread]) -> Result<(), Error> {
        let plan = self.builder.plan(&self.layout)?;
        let memory = self.common.vm.memory();
        if self.builder.is_again() {
            // Fresh memory is zero, and what a domain leaves behind is not.
            memory.discard(0, self.layout.ram);
        }
        for segment in &plan.segments {
            memory.write(segment.gpa, segment.bytes())?;
        }
        let built = Built {
            root: plan.vcpu.control.cr3,
            store_frame: plan.store / PAGE,
            console_frame: plan.console / PAGE,
        };
        self.xen.start(&built).map_err(|_| Error::Domain)?;
        self.toolstack.start(self.page(plan.store)?, self.page(plan.console)?);
        let failed = |source| Error::Engine { engine: self.common.engine, source };
        let mut first = plan.vcpu;
        xen_pv::set_up(&mut first, 0);
        for (id, vcpu) in (0..).zip(vcpus) {
            let state = if id == 0 { first.clone() } else { xen_pv::waiting(&first, id) };
            let set = vcpu.with(move |vcpu, _| vcpu.set_state(&state));
            set.unwrap_or(Err(engine::Error::Unsupported("a vCPU without its thread")))
                .map_err(failed)?;
        }
        Ok(())
    }

    fn reset(&self, vcpus: &[VcpuThread]) -> Result<(), String> {
        // What served a domain that is no more.
        self.service.pause();
        self.toolstack.disconnect();
        self.devices().for_each(|device| device.reset());
        let loaded = self.load(vcpus).map_err(|error| error.line());
        if self.common.clock.is_running() {
            self.service.resume();
        }
        loaded
    }

    fn devices(&self) -> Box<dyn Iterator<Item = &Arc<dyn Device>> + '_> {
        Box::new(self.common.devices.iter().chain(self.units.devices()))
    }

    fn clocks_go_on(&self) {
        self.xen.start_time();
    }

    fn power_button(&self) {
        // As that of a PC does. One that is about to sleep would not see the request before it wakes.
        if self.toolstack.wake() != Wake::Woken {
            self.toolstack.shut_down(Shutdown::PowerOff);
        }
    }

    fn sleep_button(&self) -> Sleep {
        self.toolstack.sleep()
    }

    fn wake(&self) -> Wake {
        self.toolstack.wake()
    }

    fn is_asleep(&self) -> bool {
        self.toolstack.is_asleep()
    }

    fn nmi(&self, _: &[VcpuThread]) {
        self.xen.nmi();
    }

    fn has_cpu(&self, _: u32) -> bool {
        true
    }

    fn set_cpus(&self, count: u32, _: &[VcpuThread]) -> Result<(), String> {
        self.toolstack.set_cpus(count);
        Ok(())
    }

    fn renew_ejected(&self, _: &[VcpuThread]) -> Result<(), String> {
        Ok(())
    }

    fn set_memory(&self, _: u64) -> bool {
        false
    }

    fn leave(&self, bytes: u64) -> bool {
        self.toolstack.set_target(bytes);
        true
    }

    fn resize(&self, _: u16, _: u16) {}

    fn plug(&mut self, plug: Plug, label: String, running: bool) -> Result<Place, PlugError> {
        self.units.plug(plug, label, running)
    }

    fn insert(&mut self, _: ScsiAddress, _: Option<DiskPart>, _: String) -> Result<(), PlugError> {
        Err(PlugError::NoAdapter)
    }

    fn unplug(&mut self, place: Place) -> bool {
        self.units.unplug(place)
    }

    fn places(&mut self) -> Vec<(Place, Option<String>)> {
        self.units.labels()
    }

    fn forget_ejected(&mut self) {
        self.units.forget_gone();
    }

    fn save(&self, vcpus: &[VcpuThread]) -> Result<Vec<Part>, String> {
        self.save_all(vcpus)
    }

    fn restore(&self, parts: Vec<Part>, vcpus: &[VcpuThread]) -> Result<(), String> {
        self.restore_all(parts, vcpus)
    }
}
