//! An enhanced PS/2 keyboard: its commands, and its scan codes in sets 1, 2 and 3.

use crate::state::KeyboardState;
use display::Key;
use std::collections::VecDeque;

/// Bytes that wait at most; a keyboard's own buffer has 16, and answers need room beside keys.
pub(crate) const QUEUE: usize = 64;
const KEYS: usize = QUEUE - 8;

const ACK: u8 = 0xfa;
const PASSED: u8 = 0xaa;
const RESEND: u8 = 0xfe;

/// Set 1 to set 2, for codes that stand alone or after 0xe0; 0 where there is no key.
const SET_2: [u8; 0x80] = {
    let mut table = [0; 0x80];
    let rows: &[(usize, &[u8])] = &[
        (
            0x01,
            &[0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66],
        ),
        (
            0x0f,
            &[0x0d, 0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a],
        ),
        (0x1d, &[0x14, 0x1c, 0x1b, 0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e]),
        (0x2a, &[0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a, 0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59]),
        (
            0x37,
            &[0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03, 0x0b, 0x83, 0x0a, 0x01, 0x09],
        ),
        (
            0x45,
            &[0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69, 0x72, 0x7a, 0x70],
        ),
        (0x53, &[0x71, 0x84]),
        (0x56, &[0x61, 0x78, 0x07]),
        (0x5b, &[0x1f, 0x27, 0x2f, 0x37, 0x3f]),
        (0x63, &[0x5e]),
        (0x70, &[0x13]),
        (0x73, &[0x51]),
        (0x79, &[0x64]),
        (0x7b, &[0x67]),
        (0x7d, &[0x6a, 0x6d]),
    ];
    let mut row = 0;
    while row < rows.len() {
        let (first, codes) = rows[row];
        let mut i = 0;
        while i < codes.len() {
            table[first + i] = codes[i];
            i += 1;
        }
        row += 1;
    }
    table
};

/// What the controller makes of a byte of set 2 when it translates to set 1. Bytes that are no
/// key's stay.
pub(crate) fn translate(byte: u8) -> u8 {
    match byte {
        0 => 0xff,
        // Two functions of one key: Alt with Print is 0x54 in set 1.
        0x84 => 0x54,
        _ => SET_2.iter().position(|code| *code == byte).map_or(byte, |set_1| set_1 as u8),
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Kbd {
    queue: VecDeque<u8>,
    scanning: bool,
    set: u8,
    command: Option<u8>,
    last_sent: u8,
    leds: u8,
    rate: u8,
}

impl Default for Kbd {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            scanning: true,
            set: 2,
            command: None,
            last_sent: 0,
            leds: 0,
            rate: 0x2b,
        }
    }
}

impl Kbd {
    fn say(&mut self, bytes: &[u8]) {
        let room = QUEUE.saturating_sub(self.queue.len());
        self.queue.extend(bytes.iter().take(room));
    }

    pub(crate) fn take(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    /// The scan codes of a key, all of them or, where there is no room, the code that says so.
    pub(crate) fn key(&mut self, key: Key, down: bool) {
        if !self.scanning {
            return;
        }
        let codes = self.codes(key, down);
        if self.queue.len() + codes.len() <= KEYS {
            self.say(&codes);
        } else if self.queue.len() <= KEYS && self.queue.back() != Some(&0) {
            self.say(&[if self.set == 1 { 0xff } else { 0 }]);
        }
    }

    fn codes(&self, key: Key, down: bool) -> Vec<u8> {
        if key == Key::PAUSE {
            // It has a make code only.
            return match (down, self.set) {
                (false, _) => Vec::new(),
                (true, 1) => vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
                (true, _) => vec![0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            };
        }
        let scan = key.scan_code();
        let extended = scan >= 0xe000;
        let set_1 = (scan & 0x7f) as u8;
        let set_2 = SET_2.get(usize::from(set_1)).copied().unwrap_or(0);
        let mut codes = Vec::new();
        // Print brings a Shift of its own, which some software knows it by.
        let shifted = key == Key::PRINT;
        match (self.set, down) {
            (1, true) if shifted => codes.extend([0xe0, 0x2a]),
            (2, true) if shifted => codes.extend([0xe0, 0x12]),
            _ => {}
        }
        if extended && self.set != 3 {
            codes.push(0xe0);
        }
        match (self.set, down) {
            (1, true) => codes.push(set_1),
            (1, false) => codes.push(set_1 | 0x80),
            (_, true) => codes.push(set_2),
            (_, false) => codes.extend([0xf0, set_2]),
        }
        match (self.set, down) {
            (1, false) if shifted => codes.extend([0xe0, 0xaa]),
            (2, false) if shifted => codes.extend([0xe0, 0xf0, 0x12]),
            _ => {}
        }
        codes
    }

    fn defaults(&mut self) {
        (self.set, self.rate) = (2, 0x2b);
    }

    /// The controller sends a byte.
    pub(crate) fn receive(&mut self, byte: u8) {
        match (self.command.take(), byte) {
            (Some(0xed), leds @ 0..=0x7f) => {
                self.leds = leds & 7;
                self.say(&[ACK]);
            }
            (Some(0xf0), 0) => self.say(&[ACK, self.set]),
            (Some(0xf0), set @ 1..=3) => {
                self.set = set;
                self.say(&[ACK]);
            }
            (Some(0xf3), rate @ 0..=0x7f) => {
                self.rate = rate;
                self.say(&[ACK]);
            }
            // Which keys repeat in set 3: all do, here.
            (Some(0xfb..=0xfd), 0..=0x7f) => self.say(&[ACK]),
            (_, byte) => self.command(byte),
        }
    }

    fn command(&mut self, byte: u8) {
        match byte {
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.command = Some(byte);
                self.say(&[ACK]);
            }
            0xee => self.say(&[0xee]),
            0xf2 => self.say(&[ACK, 0xab, 0x83]),
            0xf4 => {
                self.queue.clear();
                self.scanning = true;
                self.say(&[ACK]);
            }
            0xf5 | 0xf6 => {
                self.queue.clear();
                self.defaults();
                self.scanning = byte == 0xf6;
                self.say(&[ACK]);
            }
            0xf7..=0xfa => self.say(&[ACK]),
            0xfe => self.say(&[self.last_sent]),
            0xff => {
                *self = Self::default();
                self.say(&[ACK, PASSED]);
            }
            _ => self.say(&[RESEND]),
        }
    }

    pub(crate) fn save(&self) -> KeyboardState {
        KeyboardState {
            queue: self.queue.iter().copied().collect(),
            scanning: self.scanning,
            set: self.set,
            command: self.command,
            last_sent: self.last_sent,
            leds: self.leds,
            rate: self.rate,
        }
    }

    pub(crate) fn restore(state: KeyboardState) -> Result<Self, &'static str> {
        if state.queue.len() > QUEUE {
            return Err("more waits at the keyboard than it holds");
        }
        if !(1..=3).contains(&state.set) {
            return Err("there is no such scan code set");
        }
        let KeyboardState { queue, scanning, set, command, last_sent, leds, rate } = state;
        Ok(Self { queue: queue.into(), scanning, set, command, last_sent, leds, rate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(kbd: &mut Kbd, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| kbd.receive(*byte));
        std::iter::from_fn(|| kbd.take()).collect()
    }

    fn key(code: u16) -> Key {
        Key::from_code(code).unwrap()
    }

    fn press(kbd: &mut Kbd, code: u16) -> Vec<u8> {
        kbd.key(key(code), true);
        kbd.key(key(code), false);
        std::iter::from_fn(|| kbd.take()).collect()
    }

    #[test]
    fn every_key_is_itself_again_when_it_is_translated() {
        let kbd = Kbd::default();
        for key in (1..0x200).filter_map(Key::from_code) {
            if key == Key::PAUSE || key == Key::PRINT {
                continue;
            }
            for down in [true, false] {
                let mut released = false;
                let mut scan = 0;
                for byte in kbd.codes(key, down) {
                    match byte {
                        0xe0 => scan = 0xe000,
                        0xf0 => released = true,
                        _ => scan |= u16::from(translate(byte)),
                    }
                }
                assert_eq!((Key::from_scan_code(scan), released), (Some(key), !down), "{scan:#x}");
            }
        }
        // Answers pass.
        for byte in [0xfa, 0xfe, 0xee, 0xaa, 0xab, 0xe0, 0xe1] {
            assert_eq!(translate(byte), byte);
        }
        assert_eq!(translate(0x83), 0x41);
    }

    #[test]
    fn sets() {
        let mut kbd = Kbd::default();
        assert_eq!(press(&mut kbd, 30), [0x1c, 0xf0, 0x1c]);
        assert_eq!(press(&mut kbd, 103), [0xe0, 0x75, 0xe0, 0xf0, 0x75]);
        assert_eq!(
            press(&mut kbd, 99),
            [0xe0, 0x12, 0xe0, 0x7c, 0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12]
        );
        assert_eq!(press(&mut kbd, 119), [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]);
        assert_eq!(say(&mut kbd, &[0xf0, 1, 0xf0, 0]), [ACK, ACK, ACK, ACK, 1]);
        assert_eq!(press(&mut kbd, 103), [0xe0, 0x48, 0xe0, 0xc8]);
    }

    #[test]
    fn commands() {
        let mut kbd = Kbd::default();
        assert_eq!(say(&mut kbd, &[0xff]), [ACK, PASSED]);
        assert_eq!(say(&mut kbd, &[0xf2, 0xee]), [ACK, 0xab, 0x83, 0xee]);
        assert_eq!(say(&mut kbd, &[0xed, 7, 0xf3, 0]), [ACK; 4]);
        assert_eq!((kbd.leds, kbd.rate), (7, 0));
        assert_eq!(say(&mut kbd, &[0xed, 0xf4]), [ACK; 1], "a command in place of the operand");
        assert_eq!(say(&mut kbd, &[0xf5]), [ACK]);
        assert!(press(&mut kbd, 30).is_empty(), "it does not scan");
        assert_eq!(say(&mut kbd, &[0xf4, 0x05, 0xfe]), [ACK, RESEND, ACK]);
        assert_eq!(press(&mut kbd, 57), [0x29, 0xf0, 0x29]);
    }

    #[test]
    fn a_full_keyboard_says_so_once_and_still_answers() {
        let mut kbd = Kbd::default();
        for _ in 0..100 {
            kbd.key(key(30), true);
            kbd.key(key(30), false);
        }
        kbd.receive(0xee);
        let sent: Vec<u8> = std::iter::from_fn(|| kbd.take()).collect();
        assert_eq!(sent.iter().filter(|byte| **byte == 0).count(), 1);
        assert_eq!((sent.len() <= QUEUE, sent.last()), (true, Some(&0xee)));
    }
}
