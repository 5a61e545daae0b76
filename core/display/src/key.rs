//! Keys by their place on the keyboard, whatever is printed on them.

use std::fmt;

/// A key, as a Linux input event code (Linux, include/uapi/linux/input-event-codes.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u16);

/// Keys whose scan code is not their number: (event code, scan code). Scan codes are those of set
/// 1, with 0xe000 added where the byte 0xe0 comes first.
const ODD: &[(u16, u16)] = &[
    (89, 0x73),
    (92, 0x79),
    (93, 0x70),
    (94, 0x7b),
    (95, 0x7e),
    (96, 0xe01c),
    (97, 0xe01d),
    (98, 0xe035),
    (99, 0xe037),
    (100, 0xe038),
    (102, 0xe047),
    (103, 0xe048),
    (104, 0xe049),
    (105, 0xe04b),
    (106, 0xe04d),
    (107, 0xe04f),
    (108, 0xe050),
    (109, 0xe051),
    (110, 0xe052),
    (111, 0xe053),
    (113, 0xe020),
    (114, 0xe02e),
    (115, 0xe030),
    (116, 0xe05e),
    (119, 0xe046),
    (124, 0x7d),
    (125, 0xe05b),
    (126, 0xe05c),
    (127, 0xe05d),
    (142, 0xe05f),
    (143, 0xe063),
];

/// Names for the monitor prompt, with what else people call them.
const NAMES: &[(&str, u16)] = &[
    ("esc", 1),
    ("minus", 12),
    ("equal", 13),
    ("backspace", 14),
    ("tab", 15),
    ("bracket_left", 26),
    ("bracket_right", 27),
    ("ret", 28),
    ("enter", 28),
    ("ctrl", 29),
    ("semicolon", 39),
    ("apostrophe", 40),
    ("grave_accent", 41),
    ("shift", 42),
    ("backslash", 43),
    ("comma", 51),
    ("dot", 52),
    ("slash", 53),
    ("shift_r", 54),
    ("kp_multiply", 55),
    ("alt", 56),
    ("spc", 57),
    ("space", 57),
    ("caps_lock", 58),
    ("num_lock", 69),
    ("scroll_lock", 70),
    ("kp_subtract", 74),
    ("kp_add", 78),
    ("kp_decimal", 83),
    ("less", 86),
    ("kp_enter", 96),
    ("ctrl_r", 97),
    ("kp_divide", 98),
    ("sysrq", 99),
    ("print", 99),
    ("alt_r", 100),
    ("home", 102),
    ("up", 103),
    ("pgup", 104),
    ("left", 105),
    ("right", 106),
    ("end", 107),
    ("down", 108),
    ("pgdn", 109),
    ("insert", 110),
    ("delete", 111),
    ("pause", 119),
    ("meta_l", 125),
    ("meta_r", 126),
    ("menu", 127),
];

/// Letters and digits in the order of their keys, from the key with this number on.
const ROWS: &[(&str, u16)] =
    &[("1234567890", 2), ("qwertyuiop", 16), ("asdfghjkl", 30), ("zxcvbnm", 44)];

/// Function keys: F1 to F10 in a row, and two more.
fn function_key(number: u16) -> Option<u16> {
    match number {
        1..=10 => Some(58 + number),
        11 | 12 => Some(76 + number),
        _ => None,
    }
}

impl Key {
    pub const LEFT_CTRL: Self = Self(29);
    pub const LEFT_SHIFT: Self = Self(42);
    pub const RIGHT_SHIFT: Self = Self(54);
    pub const LEFT_ALT: Self = Self(56);
    pub const PRINT: Self = Self(99);
    pub const PAUSE: Self = Self(119);

    /// The key with this event code; `None` if a PC's keyboard has none.
    pub fn from_code(code: u16) -> Option<Self> {
        let plain = matches!(code, 1..=83 | 86..=88);
        (plain || ODD.iter().any(|(odd, _)| *odd == code)).then_some(Self(code))
    }

    pub fn code(self) -> u16 {
        self.0
    }

    /// Its scan code in set 1, with 0xe000 added where the byte 0xe0 comes first. Pause, which has
    /// a sequence of its own, is 0xe046, as is Ctrl with it.
    pub fn scan_code(self) -> u16 {
        ODD.iter().find(|(code, _)| *code == self.0).map_or(self.0, |(_, scan)| *scan)
    }

    /// The inverse of [`Self::scan_code`].
    pub fn from_scan_code(scan: u16) -> Option<Self> {
        let odd = ODD.iter().find(|(_, odd)| *odd == scan).map(|(code, _)| *code);
        odd.map(Self).or_else(|| Self::from_code(scan).filter(|key| key.scan_code() == scan))
    }

    /// The key that a US keyboard has for this character, and whether Shift is held for it.
    pub fn for_char(c: char) -> Option<(Self, bool)> {
        const SHIFTED: &str = "!@#$%^&*()_+{}:\"~|<>?";
        const PLAIN: &str = "1234567890-=[];'`\\,./";
        let shifted = SHIFTED.chars().zip(PLAIN.chars()).find(|(shifted, _)| *shifted == c);
        let (plain, shift) = match shifted {
            Some((_, plain)) => (plain, true),
            None => (c.to_ascii_lowercase(), c.is_ascii_uppercase()),
        };
        let in_rows = ROWS.iter().find_map(|(row, first)| {
            let index = row.chars().position(|c| c == plain)?;
            Some(first + index as u16)
        });
        let code = in_rows.or(match plain {
            '\x1b' => Some(1),
            '-' => Some(12),
            '=' => Some(13),
            '\x08' => Some(14),
            '\t' => Some(15),
            '[' => Some(26),
            ']' => Some(27),
            '\r' | '\n' => Some(28),
            ';' => Some(39),
            '\'' => Some(40),
            '`' => Some(41),
            '\\' => Some(43),
            ',' => Some(51),
            '.' => Some(52),
            '/' => Some(53),
            ' ' => Some(57),
            _ => None,
        })?;
        Some((Self(code), shift))
    }

    fn by_name(name: &str) -> Option<Self> {
        if let Some((_, code)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Some(Self(*code));
        }
        let mut chars = name.chars();
        if let (Some(c), None) = (chars.next(), chars.next()) {
            return Self::for_char(c).filter(|(_, shift)| !shift).map(|(key, _)| key);
        }
        let keypad = name.strip_prefix("kp_").and_then(|digit| {
            let place = ["7", "8", "9", "", "4", "5", "6", "", "1", "2", "3", "0"]
                .iter()
                .position(|d| !d.is_empty() && *d == digit)?;
            Some(71 + place as u16)
        });
        let function = name.strip_prefix('f').and_then(|n| function_key(n.parse().ok()?));
        keypad.or(function).map(Self)
    }
}

/// There is no key of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey(pub String);

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no key {:?}", self.0)
    }
}

impl std::error::Error for UnknownKey {}

/// Keys pressed together, by their names with `-` between: `ctrl-alt-delete`, `a`, `shift-f1`.
///
/// # Errors
/// The first name that is no key's.
pub fn parse_chord(text: &str) -> Result<Vec<Key>, UnknownKey> {
    let text = text.trim();
    if text == "-" {
        return parse_chord("minus");
    }
    let key = |name: &str| Key::by_name(name).ok_or_else(|| UnknownKey(name.into()));
    text.split('-').map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_one_scan_code() {
        let keys: Vec<Key> = (0..0x300).filter_map(Key::from_code).collect();
        assert!(keys.len() > 110, "{}", keys.len());
        for key in &keys {
            assert_eq!(Key::from_scan_code(key.scan_code()), Some(*key), "{key:?}");
        }
        for scan in [0, 0x54, 0x60, 0xe000, 0xe001, 0xffff] {
            assert_eq!(Key::from_scan_code(scan), None, "{scan:#x}");
        }
    }

    #[test]
    fn characters_are_where_a_us_keyboard_has_them() {
        let key = |c| Key::for_char(c).map(|(key, shift)| (key.code(), shift));
        assert_eq!((key('a'), key('A')), (Some((30, false)), Some((30, true))));
        assert_eq!(
            (key('!'), key('0'), key('|')),
            (Some((2, true)), Some((11, false)), Some((43, true)))
        );
        assert_eq!((key('\n'), key('~'), key('ä')), (Some((28, false)), Some((41, true)), None));
        assert!((' '..='~').all(|c| key(c).is_some()));
    }

    #[test]
    fn chords_are_read() {
        let codes =
            |text| parse_chord(text).map(|k| k.iter().map(|k| k.code()).collect::<Vec<_>>());
        assert_eq!(codes("ctrl-alt-delete"), Ok(vec![29, 56, 111]));
        assert_eq!(codes("shift-f12"), Ok(vec![42, 88]));
        assert_eq!(
            (codes("kp_7"), codes("kp_0"), codes("f1")),
            (Ok(vec![71]), Ok(vec![82]), Ok(vec![59]))
        );
        assert_eq!((codes("-"), codes("a")), (Ok(vec![12]), Ok(vec![30])));
        for bad in ["", "A", "ctrl-", "f13", "f0", "kp_", "ctrl--a", "ä", "hyper"] {
            assert!(codes(bad).is_err(), "{bad:?}");
        }
    }
}
