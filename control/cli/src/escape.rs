//! The escape sequence: what of the operator's typing is for us and not for the guest.

/// Ctrl-A.
pub const ESCAPE: u8 = 0x01;

/// What a byte of input comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// For the guest.
    Byte(u8),
    /// Ctrl-A x.
    Quit,
    /// Ctrl-A c.
    Monitor,
    /// Ctrl-A h or Ctrl-A ?.
    Help,
}

/// Finds escape sequences.
#[derive(Debug, Default)]
pub struct Escape {
    escaped: bool,
}

impl Escape {
    /// What the byte comes to; nothing yet, if it begins a sequence.
    pub fn feed(&mut self, byte: u8) -> Option<Typed> {
        if !std::mem::take(&mut self.escaped) {
            self.escaped = byte == ESCAPE;
            return (!self.escaped).then_some(Typed::Byte(byte));
        }
        Some(match byte {
            b'x' | b'X' => Typed::Quit,
            b'c' | b'C' => Typed::Monitor,
            b'h' | b'H' | b'?' => Typed::Help,
            ESCAPE | b'a' | b'A' => Typed::Byte(ESCAPE),
            // Not a sequence of ours: as if Ctrl-A had not been typed.
            other => Typed::Byte(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Typed::*;

    fn feed(bytes: &[u8]) -> Vec<Typed> {
        let mut escape = Escape::default();
        bytes.iter().filter_map(|b| escape.feed(*b)).collect()
    }

    #[test]
    fn plain_input_passes() {
        assert_eq!(feed(b"l\x03\n"), [Byte(b'l'), Byte(3), Byte(b'\n')]);
    }

    #[test]
    fn sequences_are_taken_out() {
        assert_eq!(
            feed(b"a\x01cb\x01x\x01hx"),
            [Byte(b'a'), Monitor, Byte(b'b'), Quit, Help, Byte(b'x')]
        );
        assert_eq!(feed(b"\x01"), []);
    }

    #[test]
    fn the_escape_itself_can_be_sent() {
        assert_eq!(feed(b"\x01\x01\x01ac\x01z"), [Byte(1), Byte(1), Byte(b'c'), Byte(b'z')]);
    }
}
