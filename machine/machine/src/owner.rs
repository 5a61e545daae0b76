//! The one owner of a machine's state: a thread with a queue.
//!
//! ```text
//!            resume                 power off, panic, triple fault, quit, failure
//!   paused <========> running  ------------------------------------------------> ended
//!            pause       | reset: stop, restore the reset state, go on
//! ```
//!
//! Everything that changes the machine as a whole arrives here as a [`Request`] and is done in
//! order. Whoever asks through a [`Handle`](crate::Handle) gets the answer when it is done.

use crate::{
    ScsiAddress, dump,
    info::{Info, State},
    parts::DiskPart,
    place::Place,
    platform::{Platform, Sleep, Wake},
    plug::{Plug, PlugError},
    stats::{MachineStats, add_exits},
    vcpu::{VcpuThread, Why},
};
use device::PowerEvent;
use engine::{DebugExit, Vcpu};
use saved_state::Part;
use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, Sender},
    },
    time::{Duration, Instant},
};

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// ACPI S5.
    PoweredOff,
    /// The guest's kernel said through pvpanic that it panicked.
    GuestPanicked,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u32),
    /// With the state of the vCPU that faulted, and of its stack, as text.
    TripleFault(String),
    /// The operator quit.
    Quit,
    /// The engine or the host failed.
    Failed(String),
}

/// What a debugger hears of. The machine is paused by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// At a breakpoint or after a step.
    Exit(u32, DebugExit),
    /// Someone paused the machine.
    Paused,
}

type Work = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;
pub(crate) type Tell = Box<dyn FnMut(DebugStop) + Send>;

pub(crate) enum Request {
    Parked(u32, Why),
    /// A thread of the machine's died.
    Failed(String),
    Power(PowerEvent),
    Pause(Sender<()>),
    /// All vCPUs, or one.
    Resume(Option<u32>, Sender<()>),
    Reset(Sender<()>),
    PowerButton,
    SleepButton(Sender<Sleep>),
    Wake(Sender<Wake>),
    Nmi(Sender<()>),
    Quit,
    /// How many CPUs the guest is to have.
    Cpus(u32, Sender<Result<(), String>>),
    /// The guest has let go of CPUs.
    CpusEjected,
    /// Bytes that the guest is to have in all; whether that can be changed.
    Memory(u64, Sender<bool>),
    /// Bytes that the guest is to be left with; whether it has a balloon.
    Balloon(u64, Sender<bool>),
    /// Columns and rows.
    Resize(u16, u16),
    Plug(Box<Plug>, String, Sender<Result<Place, PlugError>>),
    Unplug(Place, Sender<bool>),
    /// The address of a CD drive, the disc for it, and what both are called then.
    Insert(ScsiAddress, Option<DiskPart>, String, Sender<Result<(), PlugError>>),
    Ports(Sender<Vec<(Place, Option<String>)>>),
    /// The guest has let go of what was behind a port.
    Ejected,
    Info(Sender<Info>),
    Stats(Sender<MachineStats>),
    /// Not while the machine runs.
    OnVcpu(u32, Work),
    Debugger(Option<Tell>),
    Save(Sender<Result<Vec<Part>, String>>),
    Restore(Vec<Part>, Sender<Result<(), String>>),
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request")
    }
}

/// Where the end is announced.
#[derive(Debug, Default)]
pub(crate) struct End {
    ended: Mutex<Option<Ended>>,
    stats: Mutex<Option<MachineStats>>,
    changed: Condvar,
}

impl End {
    pub(crate) fn announce(&self, ended: Ended) {
        let mut slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(ended);
        self.changed.notify_all();
    }

    pub(crate) fn stats(&self) -> Option<MachineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_stats(&self, stats: MachineStats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
    }

    /// `None` if the deadline passes first.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<Ended> {
        let mut slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if slot.is_some() {
                return slot.clone();
            }
            let left = match deadline {
                None => Duration::from_secs(3600),
                Some(at) => at.checked_duration_since(Instant::now())?,
            };
            let waited = self.changed.wait_timeout(slot, left);
            slot = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Announces the end of an owner that panics: a bug of ours ends the VM with a report, instead
/// of leaving it without an owner.
struct Obituary(Arc<End>);

impl Drop for Obituary {
    fn drop(&mut self) {
        // The first announcement counts.
        self.0.announce(Ended::Failed("the machine's owner panicked".into()));
    }
}

pub(crate) struct Owner {
    pub(crate) board: Box<dyn Platform>,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) inbox: Receiver<Request>,
    pub(crate) end: Arc<End>,
    /// Which vCPUs are not parked.
    pub(crate) running: Vec<bool>,
    /// What arrived while the owner waited for vCPUs to park.
    pub(crate) later: VecDeque<Request>,
    pub(crate) debugger: Option<Tell>,
    /// While the machine runs: the only vCPU that does.
    pub(crate) only: Option<u32>,
    pub(crate) paused: bool,
}

impl Owner {
    /// Until the machine ends or nobody can ask any more.
    pub(crate) fn serve(mut self) {
        let _obituary = Obituary(self.end.clone());
        while let Some(request) = self.next() {
            if let Some(ended) = self.act(request) {
                self.stop_all();
                self.board.pause_time();
                self.end.set_stats(self.stats());
                // Threads end first: who waits may rely on nothing running any more.
                self.vcpus.clear();
                let board = self.board;
                drop(board);
                self.end.announce(ended);
                return;
            }
        }
        self.end.announce(Ended::Quit);
    }

    fn next(&mut self) -> Option<Request> {
        self.later.pop_front().or_else(|| self.inbox.recv().ok())
    }

    fn act(&mut self, request: Request) -> Option<Ended> {
        match request {
            Request::Parked(id, why) => return self.parked(id, why),
            Request::Failed(what) => return Some(Ended::Failed(what)),
            Request::Power(event) => return self.power(event),
            Request::Quit => return Some(Ended::Quit),
            Request::Pause(done) => {
                self.pause_for_operator();
                let _ = done.send(());
            }
            Request::Resume(which, done) => {
                self.resume(which);
                let _ = done.send(());
            }
            Request::Reset(done) => {
                let failed = self.reset();
                let _ = done.send(());
                return failed;
            }
            Request::PowerButton => {
                self.stop_all();
                self.board.power_button();
                self.rerun();
            }
            Request::Wake(done) => {
                self.stop_all();
                let _ = done.send(self.board.wake());
                self.rerun();
            }
            Request::SleepButton(done) => {
                let _ = done.send(self.board.sleep_button());
            }
            // A wish changes a device and interrupts the guest; a save that came in between would
            // have one without the other.
            Request::Memory(bytes, done) => drop(done.send(self.board.set_memory(bytes))),
            Request::Balloon(bytes, done) => drop(done.send(self.board.leave(bytes))),
            Request::Cpus(count, done) => {
                self.stop_all();
                drop(done.send(self.board.set_cpus(count, &self.vcpus)));
                self.rerun();
            }
            Request::CpusEjected => {
                self.stop_all();
                if let Err(what) = self.board.renew_ejected(&self.vcpus) {
                    return Some(Ended::Failed(what));
                }
                self.rerun();
            }
            Request::Plug(plug, label, done) => {
                let running = !self.paused;
                drop(done.send(self.board.plug(*plug, label, running)));
            }
            Request::Insert(drive, disc, label, done) => {
                drop(done.send(self.board.insert(drive, disc, label)));
            }
            Request::Unplug(place, done) => drop(done.send(self.board.unplug(place))),
            Request::Ports(to) => drop(to.send(self.board.places())),
            Request::Ejected => self.board.forget_ejected(),
            Request::Resize(columns, rows) => self.board.resize(columns, rows),
            Request::Nmi(done) => {
                self.board.nmi(&self.vcpus);
                let _ = done.send(());
            }
            Request::Info(to) => drop(to.send(self.info())),
            Request::Stats(to) => {
                self.stop_all();
                drop(to.send(self.stats()));
                self.rerun();
            }
            Request::OnVcpu(id, work) => self.on_vcpu(id, work),
            Request::Debugger(tell) => self.debugger = tell,
            Request::Save(to) => {
                let was_running = !self.paused;
                self.stop_all();
                if self.board.common().power.requested() {
                    // What the guest asked for is in no saved state: it happens first.
                    self.later.extend(self.inbox.try_iter());
                    self.later.push_back(Request::Save(to));
                    return None;
                }
                self.pause();
                drop(to.send(self.save()));
                if was_running {
                    self.resume(self.only);
                }
            }
            Request::Restore(parts, to) => {
                self.pause_for_operator();
                self.forget_guest();
                drop(to.send(self.restore(parts)));
            }
        }
        None
    }

    fn parked(&mut self, id: u32, why: Why) -> Option<Ended> {
        if let Some(running) = self.running.get_mut(id as usize) {
            *running = false;
        }
        match why {
            Why::Asked => {
                // A power request of its own stands behind it in the queue; one that has been
                // dealt with, or a stop that came to nothing, holds it no longer.
                if !self.board.common().power.requested() {
                    self.rerun();
                }
                None
            }
            Why::TripleFault => {
                self.stop_all();
                let state = self.vcpus.get(id as usize)?.with(|vcpu, _| vcpu.state());
                let text = match state {
                    Some(Ok(state)) => dump::text(id, &state, self.board.common().vm.memory()),
                    _ => format!("vCPU {id}: no state"),
                };
                Some(Ended::TripleFault(text))
            }
            Why::Debug(exit) => {
                self.pause();
                self.tell_debugger(DebugStop::Exit(id, exit));
                None
            }
            Why::Failed(what) => Some(Ended::Failed(format!("vCPU {id}: {what}"))),
        }
    }

    fn tell_debugger(&mut self, stop: DebugStop) {
        if let Some(tell) = &mut self.debugger {
            tell(stop);
        }
    }

    fn power(&mut self, event: PowerEvent) -> Option<Ended> {
        self.board.common().power.clear();
        match event {
            PowerEvent::PowerOff => Some(Ended::PoweredOff),
            PowerEvent::GuestPanicked => Some(Ended::GuestPanicked),
            PowerEvent::DebugExit(code) => Some(Ended::DebugExit(code)),
            // The guest's crash kernel goes on by itself; the gate lets none through.
            PowerEvent::GuestCrashLoaded => None,
            PowerEvent::Reset => self.reset(),
        }
    }

    /// Runs again what parked on its own account.
    fn rerun(&mut self) {
        if !self.paused {
            self.run_all();
        }
    }

    fn run_all(&mut self) {
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            let unheard = |r: &Request| matches!(r, Request::Parked(i, _) if *i as usize == id);
            let wanted = self.only.is_none_or(|only| only as usize == id);
            if wanted
                && self.board.has_cpu(id as u32)
                && !self.later.iter().any(unheard)
                && !std::mem::replace(&mut self.running[id], true)
            {
                vcpu.run();
            }
        }
    }

    /// Every vCPU is parked when this returns.
    fn stop_all(&mut self) {
        for (vcpu, running) in self.vcpus.iter().zip(&self.running) {
            if *running {
                vcpu.stop();
            }
        }
        while self.running.contains(&true) {
            match self.inbox.recv() {
                Ok(Request::Parked(id, Why::Asked)) => self.running[id as usize] = false,
                Ok(Request::Parked(id, why)) => {
                    self.running[id as usize] = false;
                    self.later.push_back(Request::Parked(id, why));
                }
                Ok(other) => self.later.push_back(other),
                Err(_) => return,
            }
        }
    }

    fn pause(&mut self) {
        if !self.paused {
            self.stop_all();
            self.vcpus.iter().for_each(VcpuThread::hold_time);
            self.board.pause_time();
            self.paused = true;
        }
    }

    /// A pause that a debugger did not cause, which it has to hear of.
    fn pause_for_operator(&mut self) {
        if !self.paused {
            self.pause();
            self.tell_debugger(DebugStop::Paused);
        }
    }

    fn resume(&mut self, which: Option<u32>) {
        if self.paused {
            self.paused = false;
            self.only = which;
            self.vcpus.iter().for_each(VcpuThread::release_time);
            self.board.resume_time();
            self.run_all();
        }
    }

    /// Restoring the reset state, and the boot plan's memory.
    fn reset(&mut self) -> Option<Ended> {
        self.stop_all();
        self.forget_guest();
        match self.board.reset(&self.vcpus) {
            Ok(()) => {
                self.rerun();
                None
            }
            Err(what) => Some(Ended::Failed(format!("reset: {what}"))),
        }
    }

    /// What the guest that is no more did last: vCPUs that faulted, requests that came second.
    /// All are parked, so that everything they sent has been received. A failure of the host
    /// stays one.
    fn forget_guest(&mut self) {
        self.later.retain(|request| match request {
            Request::Parked(_, why) => matches!(why, Why::Failed(_)),
            Request::Power(_) => false,
            _ => true,
        });
        self.board.common().power.clear();
    }

    fn on_vcpu(&mut self, id: u32, work: Work) {
        // Who asks while the machine runs finds the answer's channel closed.
        if self.running.get(id as usize) == Some(&false) {
            self.vcpus[id as usize].with(move |vcpu, _| work(vcpu));
        }
    }

    fn info(&mut self) -> Info {
        let was_running = !self.paused;
        // Counters belong to the vCPUs' threads; a pause of microseconds is cheaper than
        // sharing them on every exit.
        self.stop_all();
        let vcpus = self.vcpus.iter().map(|v| v.with(|vcpu, host| host.info(vcpu)));
        let vcpus = vcpus.map(Option::unwrap_or_default).collect();
        let state = if was_running { State::Running } else { State::Paused };
        let info = self.board.info(state, vcpus);
        self.rerun();
        info
    }

    /// All vCPUs are parked.
    fn stats(&self) -> MachineStats {
        let vcpus = self.vcpus.iter().map(|v| {
            v.with(|vcpu, host| {
                let mut stats = vcpu.stats();
                add_exits(&mut stats, &host.exits, vcpu.retired());
                stats
            })
        });
        let vcpus = vcpus.map(Option::unwrap_or_default).collect();
        MachineStats { vcpus, devices: self.board.counters() }
    }

    fn save(&mut self) -> Result<Vec<Part>, String> {
        self.board.forget_ejected();
        self.board.renew_ejected(&self.vcpus)?;
        self.board.save(&self.vcpus)
    }

    fn restore(&mut self, parts: Vec<Part>) -> Result<(), String> {
        // A machine that never ran does not hold it yet.
        self.vcpus.iter().for_each(VcpuThread::hold_time);
        self.board.restore(parts, &self.vcpus)
    }
}
