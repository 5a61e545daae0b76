//! A root port and the slot behind it (PCIe, 6.7 and 7.5.3): what is in the slot, whether it has
//! power, and what software is told of changes.
//!
//! A slot has an attention button, which [asks](Port::press) the guest to let go of what is there,
//! a power controller, and an indicator that nobody looks at. What is put in appears when the
//! guest gives the slot power; when it takes the power away, what is there may go.

use crate::{
    config::{Bar, BarKind, Capability, EXPRESS, FunctionConfig, MsixConfig},
    lock,
};
use device::LineRef;
use saved_state::Schema;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Mutex};

/// Offsets in the capability (PCIe, 7.5.3).
const LINK_STATUS: usize = 0x12;
pub(crate) const SLOT_CONTROL: usize = 0x18;
pub(crate) const SLOT_STATUS: usize = 0x1a;
const LENGTH: usize = 0x3c;

/// Bits of slot control; those of events are where the status has them, but for the link's.
const HOT_PLUG_INTERRUPT: u16 = 1 << 5;
const POWER_OFF: u16 = 1 << 10;
const LINK_CHANGED_ENABLE: u16 = 1 << 12;
const CONTROL_WRITABLE: u16 = 0x1fff;

/// Bits of slot status.
const PRESSED: u16 = 1 << 0;
const PRESENCE_CHANGED: u16 = 1 << 3;
const PRESENT: u16 = 1 << 6;
const LINK_CHANGED: u16 = 1 << 8;
/// Those that software clears by writing ones.
const EVENTS: u16 = PRESSED | PRESENCE_CHANGED | LINK_CHANGED;

/// The link is active, at 2.5 GT/s and one lane wide.
const LINK_ACTIVE: u16 = 1 << 13;
const LINK: u16 = 0x11;

/// QEMU's generic root port, which drivers take as it comes.
pub(crate) fn function(number: u8) -> FunctionConfig {
    FunctionConfig {
        vendor: 0x1b36,
        device: 0x000c,
        class: 0x06_04_00,
        // The message table, and nothing else.
        bars: vec![Bar { index: 0, kind: BarKind::Memory32, prefetchable: false, size: 4096 }],
        msix: Some(MsixConfig { vectors: 1, bar: 0, table: 0, pba: 0x800 }),
        capabilities: vec![capability(number)],
        interrupt_pin: true,
        bridge: true,
        ..FunctionConfig::default()
    }
}

fn capability(number: u8) -> Capability {
    // What cannot be read says how it was made, for which a body is filled in its order.
    let mut body = vec![0; LENGTH];
    let mut writable = vec![0; LENGTH];
    let mut put = |at: usize, bytes: &[u8], mask: &[u8]| {
        body.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        writable.iter_mut().skip(at).zip(mask).for_each(|(to, from)| *to = *from);
    };
    // Version 2, root port, with a slot.
    put(0x02, &0x0142u16.to_le_bytes(), &[]);
    // Role-based error reporting; the device control register.
    put(0x04, &0x8000u32.to_le_bytes(), &[]);
    put(0x08, &[], &0x00ffu16.to_le_bytes());
    // 2.5 GT/s, one lane, says whether it is active; the port's number.
    let link = 1 | 1 << 4 | 1 << 20 | u32::from(number) << 24;
    put(0x0c, &link.to_le_bytes(), &[]);
    put(0x10, &[], &0x00c0u16.to_le_bytes());
    put(LINK_STATUS, &LINK.to_le_bytes(), &[]);
    // Attention button, power controller, power indicator, hot-plug capable, commands are carried
    // out at once; the slot's number.
    let slot = 1 | 1 << 1 | 1 << 4 | 1 << 6 | 1 << 18 | u32::from(number) << 19;
    put(0x14, &slot.to_le_bytes(), &[]);
    put(SLOT_CONTROL, &[], &CONTROL_WRITABLE.to_le_bytes());
    // Root control.
    put(0x1c, &[], &0x000fu16.to_le_bytes());
    // Link speed that is aimed at.
    put(0x30, &1u16.to_le_bytes(), &0x000fu16.to_le_bytes());
    let writable = writable.split_off(2);
    Capability { id: EXPRESS, body: body.split_off(2), writable, window: false }
}

/// Its instance is the port's slot on the root bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// Events that software has not cleared: bits of the slot status register.
    pub events: u16,
    /// Something is in the slot.
    pub occupied: bool,
    /// It has power, and answers.
    pub link: bool,
}

impl Schema for PortState {
    const KIND: &'static str = "pci-port";
    const VERSION: u16 = 1;
}

impl PortState {
    pub(crate) fn is_sound(&self) -> bool {
        self.events & !EVENTS == 0 && (self.occupied || !self.link)
    }

    fn interrupts(&self, control: u16) -> bool {
        let mut enabled = control & (PRESSED | PRESENCE_CHANGED);
        if control & LINK_CHANGED_ENABLE != 0 {
            enabled |= LINK_CHANGED;
        }
        control & HOT_PLUG_INTERRUPT != 0 && self.events & enabled != 0
    }
}

/// What follows a write of the slot's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct After {
    /// What is behind the port answers, or no longer.
    pub(crate) map: bool,
    /// What is in the slot may go.
    pub(crate) eject: bool,
}

#[derive(Debug, Default)]
struct Inner {
    state: PortState,
    /// It asks for an interrupt.
    level: bool,
}

pub(crate) struct Port {
    /// Counted from 0.
    pub(crate) index: usize,
    /// Pin INTA# of what is in the slot.
    pub(crate) line: LineRef,
    inner: Mutex<Inner>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Port {
    pub(crate) fn new(index: usize, line: LineRef) -> Self {
        Self { index, line, inner: Mutex::default() }
    }

    pub(crate) fn state(&self) -> PortState {
        lock(&self.inner).state
    }

    /// The byte at this offset of the capability, where it is not what the space holds.
    pub(crate) fn byte(&self, offset: usize) -> Option<u8> {
        let state = self.state();
        let link = LINK | if state.link { LINK_ACTIVE } else { 0 };
        let slot = state.events | if state.occupied { PRESENT } else { 0 };
        match offset.checked_sub(LINK_STATUS) {
            Some(at @ 0..=1) => Some(link.to_le_bytes()[at]),
            _ => match offset.checked_sub(SLOT_STATUS) {
                Some(at @ 0..=1) => Some(slot.to_le_bytes()[at]),
                _ => None,
            },
        }
    }

    /// Slot control went from one value to another, and ones were written to these bits of the
    /// status.
    pub(crate) fn write(&self, before: u16, after: u16, cleared: u16) -> After {
        let mut inner = lock(&self.inner);
        let state = &mut inner.state;
        state.events &= !cleared;
        if (before ^ after) & POWER_OFF == 0 || !state.occupied {
            return After::default();
        }
        state.link = after & POWER_OFF == 0;
        state.events |= LINK_CHANGED;
        if !state.link {
            state.occupied = false;
            state.events |= PRESENCE_CHANGED;
        }
        After { map: true, eject: !state.link }
    }

    /// Something is put into the slot; false if there is something.
    pub(crate) fn occupy(&self, control: u16) -> bool {
        let mut inner = lock(&self.inner);
        let state = &mut inner.state;
        if state.occupied {
            return false;
        }
        (state.occupied, state.link) = (true, control & POWER_OFF == 0);
        // As by whoever puts a card in: Linux looks at nothing else where there is a button.
        state.events |= PRESSED | PRESENCE_CHANGED | if state.link { LINK_CHANGED } else { 0 };
        true
    }

    /// What is in the slot goes without being asked; false if there is nothing.
    pub(crate) fn vacate(&self) -> bool {
        let mut inner = lock(&self.inner);
        let state = &mut inner.state;
        if !state.occupied {
            return false;
        }
        state.events |= PRESENCE_CHANGED | if state.link { LINK_CHANGED } else { 0 };
        (state.occupied, state.link) = (false, false);
        true
    }

    /// Somebody presses the attention button; false if there is nothing to let go of.
    pub(crate) fn press(&self) -> bool {
        let mut inner = lock(&self.inner);
        inner.state.events |= if inner.state.occupied { PRESSED } else { 0 };
        inner.state.occupied
    }

    /// Whether it asks for an interrupt now, and whether it did not before.
    pub(crate) fn level(&self, control: u16) -> (bool, bool) {
        let mut inner = lock(&self.inner);
        let level = inner.state.interrupts(control);
        let rises = level && !inner.level;
        inner.level = level;
        (level, rises)
    }

    /// What is in the slot stays, with power, as after a reset of the machine.
    pub(crate) fn reset(&self) {
        let mut inner = lock(&self.inner);
        let occupied = inner.state.occupied;
        *inner = Inner { state: PortState { events: 0, occupied, link: occupied }, level: false };
    }

    pub(crate) fn restore(&self, state: PortState, control: u16) {
        let level = state.interrupts(control);
        *lock(&self.inner) = Inner { state, level };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::NoLine;
    use std::sync::Arc;

    fn port() -> Port {
        Port::new(0, Arc::new(NoLine))
    }

    fn status(port: &Port) -> u16 {
        u16::from_le_bytes([port.byte(SLOT_STATUS).unwrap(), port.byte(SLOT_STATUS + 1).unwrap()])
    }

    #[test]
    fn what_is_put_in_waits_for_power() {
        let port = port();
        assert_eq!((status(&port), port.byte(SLOT_CONTROL)), (0, None));
        assert!(port.occupy(POWER_OFF) && !port.occupy(POWER_OFF));
        assert_eq!(status(&port), PRESENT | PRESENCE_CHANGED | PRESSED);
        assert_eq!(port.write(POWER_OFF, POWER_OFF, EVENTS), After::default());
        let after = port.write(POWER_OFF, 0, 0);
        assert_eq!(after, After { map: true, eject: false });
        assert_eq!(status(&port), PRESENT | LINK_CHANGED);
        assert_eq!(port.byte(LINK_STATUS + 1), Some(0x20));
        let after = port.write(0, POWER_OFF, LINK_CHANGED);
        assert_eq!(after, After { map: true, eject: true });
        assert_eq!(status(&port), PRESENCE_CHANGED | LINK_CHANGED);
        assert_eq!(port.write(POWER_OFF, 0, 0), After::default(), "nothing is there");
    }

    #[test]
    fn interrupts_are_of_events_that_are_enabled() {
        let port = port();
        assert!(!port.press(), "nothing is there");
        port.occupy(0);
        assert!(port.press());
        for (control, wanted) in [
            (0, false),
            (HOT_PLUG_INTERRUPT, false),
            (PRESSED, false),
            (HOT_PLUG_INTERRUPT | PRESSED, true),
            (HOT_PLUG_INTERRUPT | PRESENCE_CHANGED, true),
            (HOT_PLUG_INTERRUPT | LINK_CHANGED_ENABLE, true),
            (HOT_PLUG_INTERRUPT | 1 << 8, false),
        ] {
            assert_eq!(port.level(control).0, wanted, "{control:#x}");
            port.level(0);
        }
        let on = HOT_PLUG_INTERRUPT | PRESSED;
        assert_eq!([port.level(on), port.level(on)], [(true, true), (true, false)]);
        port.write(on, on, PRESSED);
        assert_eq!(port.level(on), (false, false));
    }
}
