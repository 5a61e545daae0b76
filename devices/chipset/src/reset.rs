//! The ways to reset a PC: port 0xcf9, port 0x92, and the keyboard controller.

use crate::bytes::{BytePorts, Bytewise, lock};
use device::{Device, LineRef, PioDevice, PowerEvent, PowerSink, Wiring};
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

/// What the next byte written to port 0x60 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// A byte for the keyboard.
    #[default]
    Keyboard,
    CommandByte,
    OutputPort,
    /// The byte comes back as if a device had sent it.
    Echo,
    /// A byte for the mouse.
    Mouse,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    /// The output buffer, with what is in it.
    pub output: Option<u8>,
    /// The output came from a device that did not answer.
    pub timed_out: bool,
    pub command_byte: u8,
    pub output_port: u8,
    pub operand: Operand,
    /// The last write was a command.
    pub command_last: bool,
    /// The self test passed.
    pub system: bool,
}

impl Schema for I8042State {
    const KIND: &'static str = "i8042";
    const VERSION: u16 = 1;
}

impl Default for I8042State {
    fn default() -> Self {
        Self {
            output: None,
            timed_out: false,
            command_byte: 0x30,
            output_port: 0x03,
            operand: Operand::Keyboard,
            command_last: false,
            system: false,
        }
    }
}

impl I8042State {
    fn irq(&self) -> bool {
        self.output.is_some() && self.command_byte & 1 != 0
    }

    fn answer(&mut self, value: u8) {
        (self.output, self.timed_out) = (Some(value), false);
    }

    /// True for a reset.
    fn command(&mut self, value: u8) -> bool {
        (self.command_last, self.operand) = (true, Operand::Keyboard);
        match value {
            0x20 => self.answer(self.command_byte),
            0x60 => self.operand = Operand::CommandByte,
            // No second port: its clock line is stuck.
            0xa9 => self.answer(0x01),
            0xaa => {
                self.system = true;
                self.answer(0x55);
            }
            0xab => self.answer(0x00),
            0xad => self.command_byte |= 0x10,
            0xae => self.command_byte &= !0x10,
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.output_port),
            0xd1 => self.operand = Operand::OutputPort,
            // Without a second port what was for it comes back as from the keyboard.
            0xd2 | 0xd3 => self.operand = Operand::Echo,
            0xd4 => self.operand = Operand::Mouse,
            0xdd => self.output_port &= !2,
            0xdf => self.output_port |= 2,
            // Pulses the output port's bits that are 0 here; bit 0 is the reset line.
            0xf0..=0xff => return value & 1 == 0,
            _ => {}
        }
        false
    }

    /// True for a reset.
    fn data(&mut self, value: u8) -> bool {
        self.command_last = false;
        match std::mem::take(&mut self.operand) {
            Operand::CommandByte => {
                self.command_byte = value & 0x7f;
                self.system = value & 4 != 0;
            }
            Operand::OutputPort => {
                self.output_port = value | 1;
                return value & 1 == 0;
            }
            Operand::Echo => self.answer(value),
            // Nothing is connected: the controller gives up and says so.
            Operand::Keyboard | Operand::Mouse => {
                (self.output, self.timed_out) = (Some(0xfe), true);
            }
        }
        false
    }

    fn status(&self) -> u8 {
        u8::from(self.output.is_some())
            | u8::from(self.system) << 2
            | u8::from(self.command_last) << 3
            | 0x10
            | u8::from(self.timed_out && self.output.is_some()) << 6
    }
}

/// A keyboard controller without a keyboard, so that its reset line is there.
pub(crate) struct I8042 {
    state: Mutex<I8042State>,
    power: Arc<dyn PowerSink>,
    irq: LineRef,
}

impl I8042 {
    pub(crate) fn build(wiring: &mut Wiring) {
        let power = wiring.power.clone();
        let device = Arc::new(Self { state: Mutex::default(), power, irq: wiring.irq(1) });
        let ports = Arc::new(Bytewise(device.clone()));
        wiring.claim_ports("i8042", 0x60..=0x60, ports.clone());
        wiring.claim_ports("i8042", 0x64..=0x64, ports);
        wiring.devices.push(device);
    }

    fn with<T>(&self, change: impl FnOnce(&mut I8042State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.irq.set(state.irq());
        result
    }
}

impl BytePorts for I8042 {
    fn read_byte(&self, port: u16) -> Option<u8> {
        match port {
            0x60 => Some(self.with(|state| state.output.take().unwrap_or(0))),
            0x64 => Some(lock(&self.state).status()),
            _ => None,
        }
    }

    fn write_byte(&self, port: u16, value: u8) {
        let reset = match port {
            0x60 => self.with(|state| state.data(value)),
            0x64 => self.with(|state| state.command(value)),
            _ => false,
        };
        if reset {
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> String {
        "i8042".into()
    }
    fn reset(&self) {
        self.with(|state| *state = I8042State::default());
    }
    fn save(&self, to: &mut Writer) {
        to.put(0, &*lock(&self.state));
    }
    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let restored: I8042State = from.take(0)?;
        if restored.command_byte & 0x80 != 0 {
            return Err(malformed::<I8042State>("the command byte has seven bits"));
        }
        let mut state = lock(&self.state);
        *state = restored;
        self.irq.restore(state.irq());
        Ok(())
    }
}
