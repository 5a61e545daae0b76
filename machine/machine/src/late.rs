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
        Self { vm, id, made: None, kick: Arc::default(), debug: None }
    }

    /// Other vCPUs do not run meanwhile.
    fn make(&mut self) -> Result<&mut Box<dyn Vcpu>, Error> {
        if self.made.is_none() {
            let mut vcpu = self.vm.create_vcpu(self.id)?;
            if let Some(debug) = self.debug.take() {
                vcpu.set_debug(&debug)?;
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
