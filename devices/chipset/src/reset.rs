//! Two ways to reset a PC: port 0xcf9 and port 0x92. The third is the keyboard controller's.

use crate::bytes::lock;
use device::{Device, PioDevice, PowerEvent, PowerSink, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// The reset control register (82371AB PIIX4, 4.1.5), which ACPI's FADT names.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write there: hard reset.
pub const RESET_VALUE: u8 = 0x06;
const FAST_GATE: u16 = 0x92;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetState {
    /// Port 0xcf9.
    pub control: u8,
    /// Port 0x92.
    pub fast_gate: u8,
}

impl Schema for ResetState {
    const KIND: &'static str = "reset-control";
    const VERSION: u16 = 1;
}

pub(crate) struct ResetControl {
    state: Mutex<ResetState>,
    power: Arc<dyn PowerSink>,
}

impl ResetControl {
    pub(crate) fn build(wiring: &mut Wiring) {
        let power = wiring.power.clone();
        let device = Arc::new(Self { state: Mutex::default(), power });
        // It lies inside PCI's address register, which answers to four bytes only; this one answers
        // to single ones.
        wiring.claim_ports("reset_control", RESET_PORT..=RESET_PORT, device.clone());
        wiring.claim_ports("fast_gate", FAST_GATE..=FAST_GATE, device.clone());
        wiring.devices.push(device);
    }
}

impl PioDevice for ResetControl {
    fn read(&self, port: u16, data: &mut [u8]) {
        let state = lock(&self.state);
        match (port, data) {
            (RESET_PORT, [byte]) => *byte = state.control,
            // The A20 gate is open, always.
            (FAST_GATE, [byte, ..]) => *byte = state.fast_gate | 2,
            _ => {}
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let mut state = lock(&self.state);
        let reset = match (port, data) {
            (RESET_PORT, [value]) => {
                let rises = value & !state.control & 4 != 0;
                state.control = value & 0x0e;
                rises
            }
            (FAST_GATE, [value, ..]) => {
                let rises = value & !state.fast_gate & 1 != 0;
                state.fast_gate = value & 3;
                rises
            }
            _ => false,
        };
        drop(state);
        if reset {
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl Device for ResetControl {
    fn name(&self) -> String {
        "reset_control".into()
    }
    fn reset(&self) {
        *lock(&self.state) = ResetState::default();
    }
    fn save(&self, to: &mut Writer) {
        to.put(0, &*lock(&self.state));
    }
    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: ResetState = from.take(0)?;
        if state.control & !0x0e != 0 || state.fast_gate & !3 != 0 {
            return Err(malformed::<ResetState>("a register has bits that are not there"));
        }
        *lock(&self.state) = state;
        Ok(())
    }
}
