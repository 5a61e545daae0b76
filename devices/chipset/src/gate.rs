//! A switch in a source's way to its wire: while HPET has taken over a line, its old source is not
//! heard.

use crate::bytes::lock;
use device::{Line, LineRef};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy)]
struct State {
    open: bool,
    level: bool,
}

pub(crate) struct Gate {
    state: Mutex<State>,
    out: LineRef,
}

impl Gate {
    /// Open, and low.
    pub(crate) fn new(out: LineRef) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { open: true, level: false }), out })
    }

    fn change(&self, change: impl FnOnce(&mut State), drive: impl FnOnce(&dyn Line, bool)) {
        let mut state = lock(&self.state);
        change(&mut state);
        drive(&*self.out, state.open && state.level);
    }

    pub(crate) fn open(&self, open: bool) {
        self.change(|state| state.open = open, |out, level| out.set(level));
    }

    /// The same without an edge, whatever comes first, this or the source's own.
    pub(crate) fn restore_open(&self, open: bool) {
        self.change(|state| state.open = open, |out, level| out.restore(level));
    }
}

impl Line for Gate {
    fn set(&self, level: bool) {
        self.change(|state| state.level = level, |out, level| out.set(level));
    }

    fn restore(&self, level: bool) {
        self.change(|state| state.level = level, |out, level| out.restore(level));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::fake::Recorder;

    #[test]
    fn a_closed_gate_lets_nothing_through() {
        let pin = Arc::new(Recorder::default());
        let gate = Gate::new(pin.clone());
        gate.pulse();
        assert_eq!(pin.take_edges(), 1);
        gate.open(false);
        gate.pulse();
        gate.set(true);
        assert_eq!((pin.take_edges(), pin.level()), (0, false));
        gate.open(true);
        assert!(pin.level(), "its level was kept");
        gate.restore_open(false);
        assert!(!pin.level());
    }
}
