//! The board's interrupt lines: each may have several sources and leads to several pins.

use crate::bytes::lock;
use device::{Line, LineRef};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

/// Pins that one line leads to.
pub(crate) struct Fan(pub(crate) Vec<LineRef>);

impl Line for Fan {
    fn set(&self, level: bool) {
        self.0.iter().for_each(|pin| pin.set(level));
    }
    fn restore(&self, level: bool) {
        self.0.iter().for_each(|pin| pin.restore(level));
    }
}

struct Wire {
    /// How many sources are high. Locked while the pins are driven, so that they see the
    /// levels in order.
    high: Mutex<usize>,
    pins: Fan,
}

/// One source of a wire: the wire is high while any source is.
pub(crate) struct SharedLine {
    wire: Arc<Wire>,
    level: AtomicBool,
}

impl SharedLine {
    pub(crate) fn new(pins: Vec<LineRef>) -> Arc<Self> {
        let wire = Arc::new(Wire { high: Mutex::new(0), pins: Fan(pins) });
        Arc::new(Self { wire, level: AtomicBool::new(false) })
    }

    fn drive(&self, level: bool, pins: impl FnOnce(&Fan, bool)) {
        let mut high = lock(&self.wire.high);
        if self.level.swap(level, SeqCst) == level {
            return;
        }
        let before = *high;
        *high = if level { before.saturating_add(1) } else { before.saturating_sub(1) };
        if (before == 0) != (*high == 0) {
            pins(&self.wire.pins, *high != 0);
        }
    }
}

impl Line for SharedLine {
    fn set(&self, level: bool) {
        self.drive(level, |pins, level| pins.set(level));
    }

    fn restore(&self, level: bool) {
        self.drive(level, |pins, level| pins.restore(level));
    }

    fn share(&self) -> Option<LineRef> {
        Some(Arc::new(Self { wire: self.wire.clone(), level: AtomicBool::new(false) }))
    }
}

/// A source that goes away lets go of its wire.
impl Drop for SharedLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::fake::Recorder;

    #[test]
    fn a_wire_is_high_while_any_source_is() {
        let pin = Arc::new(Recorder::default());
        let a = SharedLine::new(vec![pin.clone()]);
        let b = a.share().unwrap();
        a.set(true);
        b.set(true);
        b.set(true);
        assert_eq!(pin.take_edges(), 1);
        a.set(false);
        assert!(pin.level());
        b.set(false);
        assert!(!pin.level());
        b.set(true);
        drop(b);
        assert!(!pin.level());
    }

    #[test]
    fn restoring_makes_no_edge() {
        let pin = Arc::new(Recorder::default());
        let a = SharedLine::new(vec![pin.clone()]);
        a.restore(true);
        assert_eq!((pin.take_edges(), pin.level()), (0, true));
    }
}
