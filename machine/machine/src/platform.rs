//! What the owner does with a machine, whatever kind it is: a PC or a Xen domain.

use crate::{
    Error, ScsiAddress, Tracer,
    clock::GuestClock,
    info::{Info, State, VcpuInfo},
    parts::DiskPart,
    place::Place,
    plug::{Plug, PlugError},
    power::PowerGate,
    stats::DeviceCounters,
    timers::TimerThread,
    vcpu::VcpuThread,
};
use device::{Clock, Device};
use engine::Vm;
use saved_state::Part;
use std::sync::Arc;

/// What every kind has.
pub(crate) struct Common {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) clock: Arc<GuestClock>,
    pub(crate) power: Arc<PowerGate>,
    pub(crate) timers: TimerThread,
    pub(crate) devices: Vec<Arc<dyn Device>>,
    pub(crate) tracer: Tracer,
    pub(crate) engine: &'static str,
    pub(crate) cpu_model: String,
    pub(crate) memory: u64,
}

impl Drop for Common {
    fn drop(&mut self) {
        self.tracer.flush();
    }
}

/// What came of asking a guest to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// A PC's button was pressed.
    Pressed,
    /// A Xen domain's kernel was asked to suspend itself.
    Asked,
    /// It sleeps.
    Asleep,
    /// Its kernel has not said that it can.
    Unable,
}

/// What came of waking a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    Woken,
    /// It was asked to sleep, and does not any more.
    CalledOff,
    /// It did not sleep.
    Awake,
    /// A PC's guest is woken by its buttons.
    Buttons,
}

/// A kind of machine. vCPUs are parked where they are given.
pub(crate) trait Platform: Send {
    fn common(&self) -> &Common;

    /// What was booted, for the operator.
    fn kernel(&self) -> String;

    /// Makes memory and vCPUs what they are at power-on.
    fn load(&self, vcpus: &[VcpuThread]) -> Result<(), Error>;

    fn reset(&self, vcpus: &[VcpuThread]) -> Result<(), String>;

    /// Those that are there now.
    fn devices(&self) -> Box<dyn Iterator<Item = &Arc<dyn Device>> + '_>;

    /// The clocks have been started again, and devices have not.
    fn clocks_go_on(&self);

    fn power_button(&self);
    fn sleep_button(&self) -> Sleep;
    /// Lets a guest go on that sleeps.
    fn wake(&self) -> Wake {
        Wake::Buttons
    }
    /// Whether the guest sleeps, as far as that can be known.
    fn is_asleep(&self) -> bool {
        false
    }
    /// One for each vCPU.
    fn nmi(&self, vcpus: &[VcpuThread]);

    /// Whether a vCPU may run.
    fn has_cpu(&self, id: u32) -> bool;
    /// Lets the guest have so many CPUs, as far as it agrees.
    fn set_cpus(&self, count: u32, vcpus: &[VcpuThread]) -> Result<(), String>;
    /// What the guest ejected is as if it had never been there.
    fn renew_ejected(&self, vcpus: &[VcpuThread]) -> Result<(), String>;

    /// Asks the guest to have so many bytes of memory in all. False if it can have no other.
    fn set_memory(&self, bytes: u64) -> bool;
    /// Leaves the guest with so many bytes of the memory that it has by now. False if there is no
    /// balloon.
    fn leave(&self, bytes: u64) -> bool;
    /// The terminal that the console is has these columns and rows.
    fn resize(&self, columns: u16, rows: u16);

    fn plug(&mut self, plug: Plug, label: String, running: bool) -> Result<Place, PlugError>;
    fn insert(
        &mut self,
        drive: ScsiAddress,
        disc: Option<DiskPart>,
        label: String,
    ) -> Result<(), PlugError>;
    /// False if nothing is there.
    fn unplug(&mut self, place: Place) -> bool;
    /// What is at each place, as it was called.
    fn places(&mut self) -> Vec<(Place, Option<String>)>;
    fn forget_ejected(&mut self);

    /// Everything but memory.
    fn save(&self, vcpus: &[VcpuThread]) -> Result<Vec<Part>, String>;
    fn restore(&self, parts: Vec<Part>, vcpus: &[VcpuThread]) -> Result<(), String>;
}

impl dyn Platform {
    /// Time stops, and then devices: what they do last belongs to the time before.
    pub(crate) fn pause_time(&self) {
        self.common().clock.pause();
        self.common().timers.rest();
        self.devices().for_each(|device| device.pause());
    }

    pub(crate) fn resume_time(&self) {
        self.common().clock.resume();
        self.common().timers.clock_changed();
        self.clocks_go_on();
        self.devices().for_each(|device| device.resume());
    }

    /// What devices have counted, by their names; those that count.
    pub(crate) fn counters(&self) -> Vec<DeviceCounters> {
        let of = |device: &Arc<dyn Device>| (device.name(), device.counters());
        self.devices().map(of).filter(|(_, counters)| !counters.is_empty()).collect()
    }

    pub(crate) fn info(&self, state: State, mut vcpus: Vec<VcpuInfo>) -> Info {
        for (id, vcpu) in (0..).zip(&mut vcpus) {
            vcpu.present = self.has_cpu(id);
        }
        let asleep = state == State::Running && self.is_asleep();
        let state = if asleep { State::Asleep } else { state };
        let common = self.common();
        Info {
            state,
            engine: common.engine,
            cpu_model: common.cpu_model.clone(),
            memory: common.memory,
            uptime_ns: common.clock.now_ns(),
            kernel: self.kernel(),
            vcpus,
        }
    }
}
