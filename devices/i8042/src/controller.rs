//! The controller between the ports and its two devices.

use crate::{
    keyboard::{Kbd, translate},
    mouse::Mouse,
    state::{ControllerState, I8042State, Operand},
};
use display::{Key, PointerEvent};
use std::collections::VecDeque;

/// Bits of the command byte.
mod command_byte {
    pub const KEYBOARD_IRQ: u8 = 1;
    pub const MOUSE_IRQ: u8 = 2;
    /// The self test passed; software keeps it.
    pub const SYSTEM: u8 = 4;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const MOUSE_OFF: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
    pub const ALL: u8 = 0x7f;
    /// As firmware leaves it, for kernels that are started without one.
    pub const RESET: u8 = KEYBOARD_IRQ | SYSTEM | MOUSE_OFF | TRANSLATE;
    /// The same with nothing connected.
    pub const EMPTY: u8 = KEYBOARD_OFF | MOUSE_OFF;
}

/// Answers of the controller's own that wait at most.
const ANSWERS: usize = 4;
/// What a device that is not there comes to, with the time-out bit.
const NO_ANSWER: u8 = 0xfe;
/// The output port after a reset: A20 open, the reset line high.
const OUTPUT_PORT: u8 = 0x03;

#[derive(Clone, Debug)]
pub(crate) struct Controller {
    output: Option<u8>,
    from_mouse: bool,
    timed_out: bool,
    answers: VecDeque<(u8, bool)>,
    command_byte: u8,
    output_port: u8,
    operand: Operand,
    command_last: bool,
    release: bool,
    keyboard: Option<Kbd>,
    mouse: Option<Mouse>,
    /// The output buffer was read.
    read: bool,
    reset: bool,
}

impl Controller {
    pub(crate) fn new(connected: bool) -> Self {
        Self {
            output: None,
            from_mouse: false,
            timed_out: false,
            answers: VecDeque::new(),
            command_byte: if connected { command_byte::RESET } else { command_byte::EMPTY },
            output_port: OUTPUT_PORT,
            operand: Operand::Keyboard,
            command_last: false,
            release: false,
            keyboard: connected.then(Kbd::default),
            mouse: connected.then(Mouse::default),
            read: false,
            reset: false,
        }
    }

    pub(crate) fn take_read(&mut self) -> bool {
        std::mem::take(&mut self.read)
    }

    pub(crate) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    /// Levels of the keyboard's interrupt and of the mouse's.
    pub(crate) fn lines(&self) -> (bool, bool) {
        let on = |bit: u8| self.output.is_some() && self.command_byte & bit != 0;
        (
            on(command_byte::KEYBOARD_IRQ) && !self.from_mouse,
            on(command_byte::MOUSE_IRQ) && self.from_mouse,
        )
    }

    /// Moves the next byte to the output buffer, if that is empty.
    pub(crate) fn fill(&mut self) {
        if self.output.is_some() {
            return;
        }
        if let Some((byte, from_mouse)) = self.answers.pop_front() {
            (self.output, self.from_mouse, self.timed_out) = (Some(byte), from_mouse, false);
            return;
        }
        let on = |bit: u8| self.command_byte & bit == 0;
        let (keyboard_on, mouse_on) = (on(command_byte::KEYBOARD_OFF), on(command_byte::MOUSE_OFF));
        if keyboard_on && let Some(byte) = self.next_of_keyboard() {
            (self.output, self.from_mouse, self.timed_out) = (Some(byte), false, false);
        } else if mouse_on && let Some(byte) = self.mouse.as_mut().and_then(Mouse::take) {
            (self.output, self.from_mouse, self.timed_out) = (Some(byte), true, false);
        }
    }

    /// Of a keyboard that sends set 2, what software is to read: one byte for the two of a key that
    /// goes up.
    fn next_of_keyboard(&mut self) -> Option<u8> {
        let keyboard = self.keyboard.as_mut()?;
        let mut byte = keyboard.take()?;
        if self.command_byte & command_byte::TRANSLATE == 0 {
            return Some(byte);
        }
        if byte == 0xf0 {
            self.release = true;
            byte = keyboard.take()?;
        }
        let released = std::mem::take(&mut self.release);
        Some(translate(byte) | u8::from(released) << 7)
    }

    fn answer(&mut self, byte: u8, from_mouse: bool) {
        if self.answers.len() < ANSWERS {
            self.answers.push_back((byte, from_mouse));
        }
    }

    pub(crate) fn read_data(&mut self) -> u8 {
        self.read = self.output.is_some();
        self.output.take().unwrap_or(0)
    }

    pub(crate) fn status(&self) -> u8 {
        u8::from(self.output.is_some())
            | self.command_byte & command_byte::SYSTEM
            | u8::from(self.command_last) << 3
            // The keyboard is not locked.
            | 0x10
            | u8::from(self.from_mouse && self.output.is_some()) << 5
            | u8::from(self.timed_out && self.output.is_some()) << 6
    }

    pub(crate) fn command(&mut self, value: u8) {
        (self.command_last, self.operand) = (true, Operand::Keyboard);
        match value {
            0x20 => self.answer(self.command_byte, false),
            0x60 => self.operand = Operand::CommandByte,
            0xa7 => self.command_byte |= command_byte::MOUSE_OFF,
            0xa8 => self.command_byte &= !command_byte::MOUSE_OFF,
            // Without a mouse's port its clock line is stuck.
            0xa9 => self.answer(u8::from(self.mouse.is_none()), false),
            0xaa => {
                self.command_byte |= command_byte::SYSTEM;
                self.answer(0x55, false);
            }
            0xab => self.answer(0x00, false),
            0xad => self.command_byte |= command_byte::KEYBOARD_OFF,
            0xae => self.command_byte &= !command_byte::KEYBOARD_OFF,
            0xc0 => self.answer(0x80, false),
            0xd0 => self.answer(self.output_port, false),
            0xd1 => self.operand = Operand::OutputPort,
            0xd2 => self.operand = Operand::EchoKeyboard,
            0xd3 => self.operand = Operand::EchoMouse,
            0xd4 => self.operand = Operand::Mouse,
            0xdd => self.output_port &= !2,
            0xdf => self.output_port |= 2,
            // Pulses the output port's bits that are 0 here; bit 0 is the reset line.
            0xf0..=0xff => self.reset |= value & 1 == 0,
            _ => {}
        }
    }

    pub(crate) fn write_data(&mut self, value: u8) {
        self.command_last = false;
        match std::mem::take(&mut self.operand) {
            Operand::CommandByte => self.command_byte = value & command_byte::ALL,
            Operand::OutputPort => {
                self.output_port = value | 1;
                self.reset |= value & 1 == 0;
            }
            Operand::EchoKeyboard => self.answer(value, false),
            // Without a mouse's port what was for it comes back as from the keyboard.
            Operand::EchoMouse => self.answer(value, self.mouse.is_some()),
            Operand::Keyboard => {
                // A byte for a keyboard switches its port on.
                self.command_byte &= !command_byte::KEYBOARD_OFF;
                match &mut self.keyboard {
                    Some(keyboard) => keyboard.receive(value),
                    None => self.no_answer(),
                }
            }
            Operand::Mouse => match &mut self.mouse {
                Some(mouse) => {
                    self.command_byte &= !command_byte::MOUSE_OFF;
                    mouse.receive(value);
                }
                None => self.no_answer(),
            },
        }
    }

    /// The controller gives up, and says so.
    fn no_answer(&mut self) {
        (self.output, self.from_mouse, self.timed_out) = (Some(NO_ANSWER), false, true);
    }

    pub(crate) fn key(&mut self, key: Key, down: bool) {
        if let Some(keyboard) = &mut self.keyboard {
            keyboard.key(key, down);
        }
    }

    pub(crate) fn point(&mut self, event: PointerEvent) {
        if let Some(mouse) = &mut self.mouse {
            mouse.point(event);
        }
    }

    pub(crate) fn mouse_reports(&self) -> bool {
        self.mouse.as_ref().is_some_and(Mouse::reports)
    }

    pub(crate) fn save(&self) -> I8042State {
        I8042State {
            controller: ControllerState {
                output: self.output,
                from_mouse: self.from_mouse,
                timed_out: self.timed_out,
                answers: self.answers.iter().copied().collect(),
                command_byte: self.command_byte,
                output_port: self.output_port,
                operand: self.operand,
                command_last: self.command_last,
                release: self.release,
            },
            keyboard: self.keyboard.as_ref().map(Kbd::save),
            mouse: self.mouse.as_ref().map(Mouse::save),
        }
    }

    pub(crate) fn restore(state: I8042State, connected: bool) -> Result<Self, &'static str> {
        let I8042State { controller: saved, keyboard, mouse } = state;
        if keyboard.is_some() != connected || mouse.is_some() != connected {
            return Err("another number of devices is connected");
        }
        if saved.command_byte & !command_byte::ALL != 0 {
            return Err("the command byte has seven bits");
        }
        if saved.answers.len() > ANSWERS {
            return Err("more answers wait than the controller holds");
        }
        Ok(Self {
            output: saved.output,
            from_mouse: saved.from_mouse,
            timed_out: saved.timed_out,
            answers: saved.answers.into(),
            command_byte: saved.command_byte,
            output_port: saved.output_port,
            operand: saved.operand,
            command_last: saved.command_last,
            release: saved.release,
            keyboard: keyboard.map(Kbd::restore).transpose()?,
            mouse: mouse.map(Mouse::restore).transpose()?,
            read: false,
            reset: false,
        })
    }
}
