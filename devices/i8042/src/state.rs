//! The saved state.

use saved_state::Schema;
use serde::{Deserialize, Serialize};

/// What the next byte written to port 0x60 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    /// A byte for the keyboard.
    #[default]
    Keyboard,
    CommandByte,
    OutputPort,
    /// The byte comes back as if the keyboard had sent it.
    EchoKeyboard,
    /// The byte comes back as if the mouse had sent it.
    EchoMouse,
    /// A byte for the mouse.
    Mouse,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    pub controller: ControllerState,
    /// What is connected, if anything is.
    pub keyboard: Option<KeyboardState>,
    pub mouse: Option<MouseState>,
}

impl Schema for I8042State {
    const KIND: &'static str = "i8042";
    const VERSION: u16 = 2;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerState {
    /// The output buffer, with what is in it.
    pub output: Option<u8>,
    /// The output is the mouse's.
    pub from_mouse: bool,
    /// The output came from a device that did not answer.
    pub timed_out: bool,
    /// The controller's own answers that wait for the output buffer.
    pub answers: Vec<(u8, bool)>,
    pub command_byte: u8,
    pub output_port: u8,
    pub operand: Operand,
    /// The last write was a command.
    pub command_last: bool,
    /// The last byte of the keyboard's said that the next one is of a key that went up.
    pub release: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyboardState {
    /// What waits to be sent.
    pub queue: Vec<u8>,
    /// Sends keys.
    pub scanning: bool,
    /// The scan code set: 1 to 3.
    pub set: u8,
    /// A command whose operand comes next.
    pub command: Option<u8>,
    pub last_sent: u8,
    /// Scroll lock, num lock, caps lock.
    pub leds: u8,
    pub rate: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MouseState {
    /// What waits to be sent.
    pub queue: Vec<u8>,
    pub reporting: bool,
    /// Reports only when it is asked.
    pub remote: bool,
    /// Sends back what it is sent.
    pub wrap: bool,
    pub scaled: bool,
    /// 0: three buttons; 3: with a wheel; 4: with five buttons.
    pub id: u8,
    pub resolution: u8,
    pub rate: u8,
    /// The last three rates, by which software asks for a wheel.
    pub rates: [u8; 3],
    pub command: Option<u8>,
    /// Left, right and middle in bits 0 to 2.
    pub buttons: u8,
    /// Where it was moved since the last report.
    pub dx: i32,
    pub dy: i32,
    pub wheel: i32,
    /// The buttons or the place differ from the last report's.
    pub changed: bool,
    pub last_sent: u8,
}
