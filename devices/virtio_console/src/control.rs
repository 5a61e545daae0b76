//! Messages of the control queue (5.3.6.2).

use std::collections::VecDeque;

/// struct virtio_console_control: the port, the event, a value.
pub(crate) const HEAD: usize = 8;
/// No message is longer.
pub(crate) const LEN_MAX: usize = HEAD + NAME_MAX;
/// Bytes of a name that the driver is told.
const NAME_MAX: usize = 128;
/// More than can wait: of each port, one of each event.
pub(crate) const PENDING_MAX: usize = 8 * crate::PORTS_MAX;

pub(crate) const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
pub(crate) const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
pub(crate) const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// One for the driver, as its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn new(port: u32, event: u16, value: u16) -> Self {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        Self(bytes)
    }

    pub(crate) fn add(port: u32) -> Self {
        Self::new(port, DEVICE_ADD, 1)
    }

    pub(crate) fn console(port: u32) -> Self {
        Self::new(port, CONSOLE_PORT, 1)
    }

    pub(crate) fn resize(port: u32, columns: u16, rows: u16) -> Self {
        let mut message = Self::new(port, RESIZE, 0);
        message.0.extend(columns.to_le_bytes());
        message.0.extend(rows.to_le_bytes());
        message
    }

    pub(crate) fn name(port: u32, name: &str) -> Self {
        let mut message = Self::new(port, PORT_NAME, 1);
        message.0.extend(name.bytes().take(NAME_MAX));
        message
    }

    pub(crate) fn open(port: u32, open: bool) -> Self {
        Self::new(port, PORT_OPEN, open.into())
    }
}

/// What the driver is still to be told.
#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) messages: VecDeque<Message>,
    /// Columns and rows, once they are known.
    pub(crate) size: Option<(u16, u16)>,
}

impl Control {
    /// Of a driver that takes nothing, messages that tell the same in new words replace old ones.
    pub(crate) fn push(&mut self, message: Message) {
        let same = |other: &Message| other.0.get(..6) == message.0.get(..6);
        self.messages.retain(|other| !same(other));
        self.messages.push_back(message);
    }
}

/// Port, event and value of a driver's message.
pub(crate) fn decode(bytes: [u8; HEAD]) -> (u32, u16, u16) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]))
}
