//! A vCPU of a CPU that is not there yet: the engine makes it when it first gets a state, so that
//! until then it takes no memory, and nothing reaches it.

use engine::{Error, Exit, GuestDebug, Kick, Stats, Vcpu, VcpuHost, Vm};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU8, Ordering::SeqCst},
};
use vcpu_state::VcpuState;

pub(crate) struct LateVcpu {
    vm: Arc<dyn Vm>,
    id: u32,
    made: Option<Box<dyn Vcpu>>,
    kick: Arc<LateKick>,
    debug: Option<GuestDebug>,
    /// Guest time stands still.
    held: bool,
}

/// Kicks that come before the vCPU are kept for it.
#[derive(Default)]
struct LateKick {
    made: OnceLock<Arc<dyn Kick>>,
    kept: AtomicU8,
}

const NOTIFY: u8 = 1;
const STOP: u8 = 2;
const NONE: Error = Error::Unsupported("a CPU that is not there");

impl LateKick {
    fn keep(&self, kick: u8) {
        self.kept.fetch_or(kick, SeqCst);
        self.hand_on();
    }

    /// What was kept goes to the vCPU, if there is one.
    fn hand_on(&self) {
        let Some(made) = self.made.get() else { return };
        let kept = self.kept.swap(0, SeqCst);
        if kept & NOTIFY != 0 {
            made.notify();
        }
        if kept & STOP != 0 {
            made.stop();
        }
    }
}

impl Kick for LateKick {
    fn notify(&self) {
        self.keep(NOTIFY);
    }

    fn stop(&self) {
        self.keep(STOP);
    }
}

impl LateVcpu {
    pub(crate) fn new(vm: Arc<dyn Vm>, id: u32) -> Self {
        Self { vm, id, made: None, kick: Arc::default(), debug: None, held: false }
    }

    /// Other vCPUs do not run meanwhile.
    fn make(&mut self) -> Result<&mut Box<dyn Vcpu>, Error> {
        if self.made.is_none() {
            let mut vcpu = self.vm.create_vcpu(self.id)?;
            if let Some(debug) = self.debug.take() {
                vcpu.set_debug(&debug)?;
            }
            if self.held {
                vcpu.hold_time()?;
            }
            let _ = self.kick.made.set(vcpu.kicker());
            self.kick.hand_on();
            self.made = Some(vcpu);
        }
        self.made.as_mut().ok_or(NONE)
    }
}

impl Vcpu for LateVcpu {
    fn run(&mut self, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        self.made.as_mut().ok_or(NONE)?.run(host)
    }

    fn run_for(&mut self, retired: u64, host: &mut dyn VcpuHost) -> Result<Exit, Error> {
        self.made.as_mut().ok_or(NONE)?.run_for(retired, host)
    }

    fn state(&mut self) -> Result<VcpuState, Error> {
        self.made.as_mut().map_or_else(|| Ok(VcpuState::reset(self.id)), |vcpu| vcpu.state())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), Error> {
        self.make()?.set_state(state)
    }

    fn hold_time(&mut self) -> Result<(), Error> {
        self.held = true;
        self.made.as_mut().map_or(Ok(()), |vcpu| vcpu.hold_time())
    }

    fn release_time(&mut self) -> Result<(), Error> {
        self.held = false;
        self.made.as_mut().map_or(Ok(()), |vcpu| vcpu.release_time())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn set_debug(&mut self, debug: &GuestDebug) -> Result<(), Error> {
        match &mut self.made {
            Some(vcpu) => vcpu.set_debug(debug),
            None => {
                self.debug = Some(debug.clone());
                Ok(())
            }
        }
    }

    fn retired(&self) -> Option<u64> {
        self.made.as_ref().and_then(|vcpu| vcpu.retired())
    }

    fn stats(&self) -> Stats {
        self.made.as_ref().map_or_else(Stats::default, |vcpu| vcpu.stats())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::ClockSample;
    use guest_mem::{Change, Generation, GuestMem, PageBitmap, SlotId};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Counts(AtomicU8, AtomicU8);

    impl Kick for Counts {
        fn notify(&self) {
            self.0.fetch_add(1, SeqCst);
        }

        fn stop(&self) {
            self.1.fetch_add(1, SeqCst);
        }
    }

    type Calls = Arc<Mutex<Vec<&'static str>>>;

    /// Makes vCPUs that write down what is asked of them.
    struct Writes(Calls, Arc<GuestMem>);

    impl Writes {
        fn note(&self, what: &'static str) -> Result<(), Error> {
            self.0.lock().unwrap().push(what);
            Ok(())
        }
    }

    impl Vm for Writes {
        fn memory(&self) -> &Arc<GuestMem> {
            &self.1
        }
        fn set_layout(&self, _: &[Change]) -> Result<Generation, Error> {
            Err(NONE)
        }
        fn settled(&self, _: Generation) -> bool {
            true
        }
        fn create_vcpu(&self, _: u32) -> Result<Box<dyn Vcpu>, Error> {
            self.note("create")?;
            Ok(Box::new(Self(self.0.clone(), self.1.clone())))
        }
        fn log_dirty(&self, _: bool) -> Result<(), Error> {
            Err(NONE)
        }
        fn take_dirty(&self, _: SlotId, _: &mut PageBitmap) -> Result<(), Error> {
            Err(NONE)
        }
        fn clock(&self) -> Result<ClockSample, Error> {
            Err(NONE)
        }
        fn set_clock(&self, _: &ClockSample) -> Result<(), Error> {
            Err(NONE)
        }
    }

    impl Vcpu for Writes {
        fn run(&mut self, _: &mut dyn VcpuHost) -> Result<Exit, Error> {
            Err(NONE)
        }
        fn run_for(&mut self, _: u64, _: &mut dyn VcpuHost) -> Result<Exit, Error> {
            Err(NONE)
        }
        fn state(&mut self) -> Result<VcpuState, Error> {
            Err(NONE)
        }
        fn set_state(&mut self, _: &VcpuState) -> Result<(), Error> {
            self.note("set")
        }
        fn hold_time(&mut self) -> Result<(), Error> {
            self.note("hold")
        }
        fn release_time(&mut self) -> Result<(), Error> {
            self.note("release")
        }
        fn kicker(&self) -> Arc<dyn Kick> {
            Arc::new(Counts::default())
        }
        fn set_debug(&mut self, _: &GuestDebug) -> Result<(), Error> {
            Err(NONE)
        }
    }

    #[test]
    fn time_stands_for_it_as_for_the_others() {
        let vm = Arc::new(Writes(Calls::default(), GuestMem::new(1 << 20).unwrap()));
        let mut vcpu = LateVcpu::new(vm.clone(), 1);
        let taken = || std::mem::take(&mut *vm.0.lock().unwrap());
        vcpu.hold_time().unwrap();
        vcpu.release_time().unwrap();
        vcpu.hold_time().unwrap();
        assert!(taken().is_empty());
        vcpu.set_state(&VcpuState::reset(1)).unwrap();
        assert_eq!(taken(), ["create", "hold", "set"], "it comes while time stands");
        vcpu.release_time().unwrap();
        vcpu.hold_time().unwrap();
        assert_eq!(taken(), ["release", "hold"]);
        let mut other = LateVcpu::new(vm.clone(), 2);
        other.set_state(&VcpuState::reset(2)).unwrap();
        assert_eq!(taken(), ["create", "set"]);
    }

    #[test]
    fn kicks_before_the_vcpu_reach_it_once() {
        let (kick, real) = (LateKick::default(), Arc::new(Counts::default()));
        let counts = || (real.0.load(SeqCst), real.1.load(SeqCst));
        kick.notify();
        kick.notify();
        kick.stop();
        assert!(kick.made.set(real.clone()).is_ok());
        kick.hand_on();
        assert_eq!(counts(), (1, 1));
        kick.notify();
        assert_eq!(counts(), (2, 1));
        kick.stop();
        assert_eq!(counts(), (2, 2));
    }
}
