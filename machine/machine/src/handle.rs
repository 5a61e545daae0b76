//! What an operator may do to a running machine, from any thread.

use crate::{
    ScsiAddress, Sleep, Wake,
    cpus::{CpusAnswer, CpusInfo},
    extras::{BalloonInfo, MemoryInfo},
    info::{Info, State},
    owner::{DebugStop, Request},
    parts::DiskPart,
    place::Place,
    plug::{Plug, PlugError},
    stats::MachineStats,
    watch::Watch,
};
use display::Seat;
use engine::Vcpu;
use guest_mem::GuestMem;
use saved_state::Part;
use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
};

/// The machine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine has ended")]
pub struct Gone;

/// Each call returns when what it asks for is done.
#[derive(Clone)]
pub struct Handle {
    owner: Sender<Request>,
    memory: Arc<GuestMem>,
    watch: Arc<dyn Watch>,
    seat: Seat,
    vcpus: usize,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({} vCPUs)", self.vcpus)
    }
}

impl Handle {
    pub(crate) fn new(
        owner: Sender<Request>,
        memory: Arc<GuestMem>,
        watch: Arc<dyn Watch>,
        seat: Seat,
        vcpus: usize,
    ) -> Self {
        Self { owner, memory, watch, seat, vcpus }
    }

    fn ask<R>(&self, request: impl FnOnce(Sender<R>) -> Request) -> Result<R, Gone> {
        let (tx, rx) = channel();
        self.owner.send(request(tx)).map_err(|_| Gone)?;
        rx.recv().map_err(|_| Gone)
    }

    fn tell(&self, request: Request) -> Result<(), Gone> {
        self.owner.send(request).map_err(|_| Gone)
    }

    /// Every vCPU stands between two instructions, and guest time stands still.
    pub fn pause(&self) -> Result<(), Gone> {
        self.ask(Request::Pause)
    }

    pub fn resume(&self) -> Result<(), Gone> {
        self.ask(|done| Request::Resume(None, done))
    }

    /// Only this vCPU runs: a debugger steps it.
    pub fn resume_only(&self, vcpu: usize) -> Result<(), Gone> {
        self.ask(|done| Request::Resume(Some(vcpu as u32), done))
    }

    /// The guest's screen, keyboard and pointer, as far as it has them.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// As the reset button does.
    pub fn reset(&self) -> Result<(), Gone> {
        self.ask(Request::Reset)
    }

    /// Presses the ACPI power button, or says the same in a Xen domain's xenstore; the guest decides
    /// what follows.
    pub fn power_button(&self) -> Result<(), Gone> {
        self.tell(Request::PowerButton)
    }

    /// Presses the ACPI sleep button, or asks a Xen domain's kernel to suspend itself, which takes it
    /// a moment.
    pub fn sleep_button(&self) -> Result<Sleep, Gone> {
        self.ask(Request::SleepButton)
    }

    /// Lets a Xen domain go on that has suspended itself, or was asked to.
    pub fn wake(&self) -> Result<Wake, Gone> {
        self.ask(Request::Wake)
    }

    /// An NMI for every vCPU.
    pub fn nmi(&self) -> Result<(), Gone> {
        self.ask(Request::Nmi)
    }

    /// Ends the machine without asking the guest.
    pub fn quit(&self) -> Result<(), Gone> {
        self.tell(Request::Quit)
    }

    pub fn info(&self) -> Result<Info, Gone> {
        self.ask(Request::Info)
    }

    /// Asks the guest to have so many bytes of memory in all. False if it can have no other.
    pub fn set_memory(&self, bytes: u64) -> Result<bool, Gone> {
        self.ask(|done| Request::Memory(bytes, done))
    }

    /// How much memory there is and may be; `None` if that does not change.
    pub fn memory_info(&self) -> Result<Option<MemoryInfo>, Gone> {
        // Of a machine that has ended nothing is known.
        self.info()?;
        Ok(self.watch.memory())
    }

    /// Lets the guest have so many CPUs, and waits a moment for it to take or to give them up.
    pub fn set_cpus(&self, count: u32) -> Result<CpusAnswer, Gone> {
        let Some(most) = self.watch.cpus_most() else { return Ok(CpusAnswer::Fixed) };
        if !(1..=most).contains(&count) {
            return Ok(CpusAnswer::Range(most));
        }
        if let Err(why) = self.ask(|done| Request::Cpus(count, done))? {
            return Ok(CpusAnswer::Failed(why));
        }
        let answered = self.watch.wait_cpus(self.info()?.state == State::Running);
        let info = self.cpus_info()?;
        Ok(if answered { CpusAnswer::Answered(info) } else { CpusAnswer::Silent(info) })
    }

    /// What each CPU that there can be does.
    pub fn cpus_info(&self) -> Result<CpusInfo, Gone> {
        let info = self.info()?;
        Ok(self.watch.cpus(&info.vcpus))
    }

    /// Asks the guest to do with so many bytes of the memory that it has by now. False if it has no
    /// balloon.
    pub fn balloon(&self, bytes: u64) -> Result<bool, Gone> {
        self.ask(|done| Request::Balloon(bytes, done))
    }

    /// What the guest says of its memory, waiting a moment for it; `None` without a balloon.
    pub fn balloon_info(&self) -> Result<Option<BalloonInfo>, Gone> {
        self.info()?;
        Ok(self.watch.balloon())
    }

    /// The terminal that the console is has another size now. A serial port has none.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), Gone> {
        self.tell(Request::Resize(columns, rows))
    }

    /// Puts a device behind a free port of a machine that may run, or a unit on its SCSI adapter;
    /// where that is. `label` is what [`Self::places`] calls it.
    pub fn plug(&self, plug: Plug, label: String) -> Result<Result<Place, PlugError>, Gone> {
        self.ask(|done| Request::Plug(Box::new(plug), label, done))
    }

    /// Puts a disc into a CD drive of the SCSI adapter, or takes out what there is. `label` is what
    /// [`Self::places`] calls the drive then.
    pub fn insert(
        &self,
        drive: ScsiAddress,
        disc: Option<DiskPart>,
        label: String,
    ) -> Result<Result<(), PlugError>, Gone> {
        self.ask(|done| Request::Insert(drive, disc, label, done))
    }

    /// Asks the guest to let go of what is behind a port, which goes when the guest has; a unit of
    /// the SCSI adapter is gone when this returns, and the guest hears of it. False if nothing is
    /// there.
    pub fn unplug(&self, place: Place) -> Result<bool, Gone> {
        self.ask(|done| Request::Unplug(place, done))
    }

    /// The ports and what is behind them, and the units of the SCSI adapter.
    pub fn places(&self) -> Result<Vec<(Place, Option<String>)>, Gone> {
        self.ask(Request::Ports)
    }

    /// What was counted so far.
    pub fn stats(&self) -> Result<MachineStats, Gone> {
        self.ask(Request::Stats)
    }

    /// All that there can be.
    pub fn vcpus(&self) -> usize {
        self.vcpus
    }

    pub fn memory(&self) -> &Arc<GuestMem> {
        &self.memory
    }

    /// Does `work` on a vCPU of a paused machine, on that vCPU's thread. [`Gone`] if the
    /// machine runs, or has no such vCPU.
    pub fn on_vcpu<R: Send + 'static>(
        &self,
        id: usize,
        work: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        let id = u32::try_from(id).map_err(|_| Gone)?;
        self.ask(|tx: Sender<R>| {
            // The asker waits.
            Request::OnVcpu(id, Box::new(move |vcpu| drop(tx.send(work(vcpu)))))
        })
    }

    /// From now on `tell` hears of every stop, before a call that caused or follows it returns;
    /// it replaces the last debugger's, and is dropped when the machine ends. It must not wait
    /// for anything.
    pub fn debugger(&self, tell: impl FnMut(DebugStop) + Send + 'static) -> Result<(), Gone> {
        self.tell(Request::Debugger(Some(Box::new(tell))))
    }

    /// The inverse of [`Self::debugger`].
    pub fn no_debugger(&self) -> Result<(), Gone> {
        self.tell(Request::Debugger(None))
    }

    /// Everything but memory that the guest could notice, and of memory [`q35::AREA`], which the
    /// guest may have hidden or locked. A running machine stands still for the moment.
    pub fn save(&self) -> Result<Result<Vec<Part>, String>, Gone> {
        self.ask(Request::Save)
    }

    /// The inverse of [`Self::save`], into a machine of the same spec, whose memory outside of
    /// [`q35::AREA`] the caller has filled. The machine is paused afterwards.
    pub fn restore(&self, parts: Vec<Part>) -> Result<Result<(), String>, Gone> {
        self.ask(|done| Request::Restore(parts, done))
    }
}
