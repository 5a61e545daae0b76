//! Input events, and which of them a device has (Linux, include/uapi/linux/input-event-codes.h).

use crate::Kind;
use display::{Key, PointerEvent};
use serde::{Deserialize, Serialize};

/// Types of events.
pub(crate) mod kind {
    pub const SYN: u16 = 0;
    pub const KEY: u16 = 1;
    pub const REL: u16 = 2;
    pub const ABS: u16 = 3;
    pub const LED: u16 = 0x11;
    pub const REP: u16 = 0x14;
}

pub(crate) mod code {
    pub const ABS_X: u16 = 0;
    pub const ABS_Y: u16 = 1;
    pub const REL_WHEEL: u16 = 8;
    pub const BTN_LEFT: u16 = 0x110;
    pub const BTN_RIGHT: u16 = 0x111;
    pub const BTN_MIDDLE: u16 = 0x112;
    /// Lights: num lock, caps lock, scroll lock.
    pub const LEDS: std::ops::Range<u16> = 0..3;
    pub const MAX: u16 = 0x2ff;
}

/// What the configuration is asked for (5.8.2).
mod select {
    pub const NAME: u8 = 1;
    pub const SERIAL: u8 = 2;
    pub const IDS: u8 = 3;
    pub const EVENT_BITS: u8 = 0x11;
    pub const ABS_INFO: u8 = 0x12;
}

/// struct virtio_input_event (5.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub kind: u16,
    pub code: u16,
    pub value: u32,
}

impl Event {
    pub(crate) const LEN: usize = 8;
    /// The end of a group.
    pub(crate) const SYNC: Self = Self { kind: kind::SYN, code: 0, value: 0 };

    pub(crate) fn bytes(self) -> [u8; Self::LEN] {
        let [k, l] = self.kind.to_le_bytes();
        let [c, d] = self.code.to_le_bytes();
        let [v, w, x, y] = self.value.to_le_bytes();
        [k, l, c, d, v, w, x, y]
    }
}

/// The answer to a selection; empty where there is none.
pub(crate) fn describe(device: Kind, select: u8, subsel: u8) -> Vec<u8> {
    match (select, subsel) {
        (select::NAME, 0) => match device {
            Kind::Keyboard => b"Sarang virtio keyboard".to_vec(),
            Kind::Tablet => b"Sarang virtio tablet".to_vec(),
        },
        (select::SERIAL, 0) => b"0".to_vec(),
        (select::IDS, 0) => {
            /// Bus, vendor, product, version: Linux's BUS_VIRTUAL, and the vendor of virtio.
            const BUS: u16 = 6;
            const VENDOR: u16 = 0x1af4;
            let product = match device {
                Kind::Keyboard => 1,
                Kind::Tablet => 2,
            };
            [BUS, VENDOR, product, 1].iter().flat_map(|word| word.to_le_bytes()).collect()
        }
        (select::EVENT_BITS, _) => bits(codes(device, subsel.into())),
        (select::ABS_INFO, 0 | 1) if device == Kind::Tablet => {
            let range = [0, u32::from(PointerEvent::END), 0, 0, 0];
            range.iter().flat_map(|word| word.to_le_bytes()).collect()
        }
        _ => Vec::new(),
    }
}

/// The codes of one type that a device has.
fn codes(device: Kind, of: u16) -> Vec<u16> {
    match (device, of) {
        (Kind::Keyboard, kind::KEY) => {
            (0..=u16::from(u8::MAX)).filter(|code| Key::from_code(*code).is_some()).collect()
        }
        (Kind::Keyboard, kind::LED) => code::LEDS.collect(),
        // The driver repeats keys: that there is something says so.
        (Kind::Keyboard, kind::REP) => vec![0],
        (Kind::Tablet, kind::KEY) => vec![code::BTN_LEFT, code::BTN_RIGHT, code::BTN_MIDDLE],
        (Kind::Tablet, kind::REL) => vec![code::REL_WHEEL],
        (Kind::Tablet, kind::ABS) => vec![code::ABS_X, code::ABS_Y],
        _ => Vec::new(),
    }
}

fn bits(codes: Vec<u16>) -> Vec<u8> {
    let len = codes.iter().max().map_or(0, |max| usize::from(max / 8) + 1);
    let mut bytes = vec![0; len];
    for code in codes {
        if let Some(byte) = bytes.get_mut(usize::from(code / 8)) {
            *byte |= 1 << (code % 8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_fit_and_say_what_there_is() {
        for device in [Kind::Keyboard, Kind::Tablet] {
            for select in 0..=u8::MAX {
                for subsel in 0..=u8::MAX {
                    assert!(describe(device, select, subsel).len() <= 128);
                }
            }
        }
        let keys = describe(Kind::Keyboard, 0x11, 1);
        let has = |code: u16| keys[usize::from(code / 8)] >> (code % 8) & 1 == 1;
        assert!(has(1) && has(28) && has(111) && !has(0));
        assert_eq!(describe(Kind::Keyboard, 0x11, 0x11), [7]);
        assert_eq!(describe(Kind::Tablet, 0x11, 3), [3]);
        assert_eq!(describe(Kind::Tablet, 0x12, 1)[..8], [0, 0, 0, 0, 0xff, 0x7f, 0, 0]);
        assert!(describe(Kind::Keyboard, 0x12, 0).is_empty());
        assert_eq!(describe(Kind::Tablet, 0x11, 1).len(), 0x112 / 8 + 1);
    }
}
