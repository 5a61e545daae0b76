//! Keys by what X calls what is printed on them (X11, keysymdef.h).

use display::Key;

/// (keysym, event code)
const NAMED: &[(u32, u16)] = &[
    (0xfe03, 100),
    (0xfe20, 15),
    (0xff08, 14),
    (0xff09, 15),
    (0xff0a, 28),
    (0xff0d, 28),
    (0xff13, 119),
    (0xff14, 70),
    (0xff15, 99),
    (0xff1b, 1),
    (0xff50, 102),
    (0xff51, 105),
    (0xff52, 103),
    (0xff53, 106),
    (0xff54, 108),
    (0xff55, 104),
    (0xff56, 109),
    (0xff57, 107),
    (0xff61, 99),
    (0xff63, 110),
    (0xff67, 127),
    (0xff6b, 119),
    (0xff7e, 100),
    (0xff7f, 69),
    (0xff80, 57),
    (0xff8d, 96),
    (0xff95, 71),
    (0xff96, 75),
    (0xff97, 72),
    (0xff98, 77),
    (0xff99, 80),
    (0xff9a, 73),
    (0xff9b, 81),
    (0xff9c, 79),
    (0xff9d, 76),
    (0xff9e, 82),
    (0xff9f, 83),
    (0xffaa, 55),
    (0xffab, 78),
    (0xffac, 83),
    (0xffad, 74),
    (0xffae, 83),
    (0xffaf, 98),
    (0xffb0, 82),
    (0xffb1, 79),
    (0xffb2, 80),
    (0xffb3, 81),
    (0xffb4, 75),
    (0xffb5, 76),
    (0xffb6, 77),
    (0xffb7, 71),
    (0xffb8, 72),
    (0xffb9, 73),
    (0xffe1, 42),
    (0xffe2, 54),
    (0xffe3, 29),
    (0xffe4, 97),
    (0xffe5, 58),
    (0xffe7, 125),
    (0xffe8, 126),
    (0xffe9, 56),
    (0xffea, 100),
    (0xffeb, 125),
    (0xffec, 126),
    (0xffff, 111),
];

const F1: u32 = 0xffbe;
const F12: u32 = 0xffc9;

/// The key that a US keyboard has for it, and, for a character, whether Shift makes it.
pub(crate) fn key(keysym: u32) -> Option<(Key, Option<bool>)> {
    if let Some((_, code)) = NAMED.iter().find(|(known, _)| *known == keysym) {
        return Some((Key::from_code(*code)?, None));
    }
    if (F1..=F12).contains(&keysym) {
        let number = (keysym - F1) as u16;
        let code = if number < 10 { 59 + number } else { 77 + number };
        return Some((Key::from_code(code)?, None));
    }
    // Characters of Latin-1 are their own keysyms.
    let c = char::from_u32(keysym).filter(|c| (' '..='~').contains(c))?;
    Key::for_char(c).map(|(key, shift)| (key, Some(shift)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keysyms_have_keys() {
        let code = |keysym| key(keysym).map(|(key, shift)| (key.code(), shift));
        assert_eq!((code(0x61), code(0x41)), (Some((30, Some(false))), Some((30, Some(true)))));
        assert_eq!(
            (code(0xff0d), code(0xffbe), code(0xffc9)),
            (Some((28, None)), Some((59, None)), Some((88, None)))
        );
        for none in [0, 7, 0xe4, 0xffca, 0x100_0020, u32::MAX] {
            assert_eq!(code(none), None, "{none:#x}");
        }
        assert!(NAMED.iter().all(|(keysym, _)| code(*keysym).is_some()));
    }
}
