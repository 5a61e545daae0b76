//! Messages of a client (RFC 6143, 7.5), read once into types; what is no message ends the
//! connection.

use crate::pixel::PixelFormat;
use std::io::{self, Read};

/// The most text that a client may offer for the clipboard, which nobody takes.
const TEXT_MAX: u32 = 1 << 20;

/// Encodings and pseudo-encodings that mean something here.
pub(crate) mod encoding {
    pub const RAW: i32 = 0;
    pub const ZRLE: i32 = 16;
    pub const DESKTOP_SIZE: i32 = -223;
    /// QEMU: the pointer tells ways instead of places.
    pub const POINTER_MOTION: i32 = -257;
    /// QEMU: keys come with their scan codes.
    pub const EXTENDED_KEY: i32 = -258;
}

/// What a client asks to be sent, as far as it is known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Encodings {
    /// Rather than raw.
    pub zrle: bool,
    pub desktop_size: bool,
    pub pointer_motion: bool,
    pub extended_key: bool,
}

/// A part of the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rect {
    pub x: u16,
    pub y: u16,
    pub width: u16,
    pub height: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    SetPixelFormat(PixelFormat),
    SetEncodings(Encodings),
    UpdateRequest {
        incremental: bool,
        area: Rect,
    },
    Key {
        down: bool,
        keysym: u32,
    },
    /// QEMU's: with the key's scan code in set 1, with 0x80 where 0xe0 comes first.
    ExtendedKey {
        down: bool,
        keysym: u32,
        code: u32,
    },
    Pointer {
        buttons: u8,
        x: u16,
        y: u16,
    },
    /// Text for the clipboard, thrown away.
    CutText,
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The next so many bytes.
pub(crate) fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn message(from: &mut impl Read) -> io::Result<Message> {
    let [kind] = bytes(from)?;
    match kind {
        0 => {
            let [_, _, _, format @ ..] = bytes::<19>(from)?;
            let format = PixelFormat::parse(&format);
            format.map(Message::SetPixelFormat).ok_or(malformed("a pixel format"))
        }
        2 => {
            let [_, high, low] = bytes(from)?;
            encodings(from, u16::from_be_bytes([high, low])).map(Message::SetEncodings)
        }
        3 => {
            let [incremental, a, b, c, d, e, f, g, h] = bytes(from)?;
            let area = Rect {
                x: u16::from_be_bytes([a, b]),
                y: u16::from_be_bytes([c, d]),
                width: u16::from_be_bytes([e, f]),
                height: u16::from_be_bytes([g, h]),
            };
            Ok(Message::UpdateRequest { incremental: incremental != 0, area })
        }
        4 => {
            let [down, _, _, a, b, c, d] = bytes(from)?;
            Ok(Message::Key { down: down != 0, keysym: u32::from_be_bytes([a, b, c, d]) })
        }
        5 => {
            let [buttons, a, b, c, d] = bytes(from)?;
            let (x, y) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            Ok(Message::Pointer { buttons, x, y })
        }
        6 => {
            let [_, _, _, a, b, c, d] = bytes(from)?;
            skip(from, u32::from_be_bytes([a, b, c, d]))?;
            Ok(Message::CutText)
        }
        255 => {
            let [kind, down_high, down_low, a, b, c, d, e, f, g, h] = bytes(from)?;
            if kind != 0 {
                return Err(malformed("a message of QEMU's that was not offered"));
            }
            Ok(Message::ExtendedKey {
                down: (down_high, down_low) != (0, 0),
                keysym: u32::from_be_bytes([a, b, c, d]),
                code: u32::from_be_bytes([e, f, g, h]),
            })
        }
        _ => Err(malformed("a message that there is not")),
    }
}

fn encodings(from: &mut impl Read, count: u16) -> io::Result<Encodings> {
    let mut wanted = Encodings::default();
    let mut chosen = false;
    for _ in 0..count {
        match i32::from_be_bytes(bytes(from)?) {
            // The first of those that are there.
            encoding::ZRLE if !chosen => (wanted.zrle, chosen) = (true, true),
            encoding::RAW => chosen = true,
            encoding::DESKTOP_SIZE => wanted.desktop_size = true,
            encoding::POINTER_MOTION => wanted.pointer_motion = true,
            encoding::EXTENDED_KEY => wanted.extended_key = true,
            _ => {}
        }
    }
    Ok(wanted)
}

fn skip(from: &mut impl Read, length: u32) -> io::Result<()> {
    if length > TEXT_MAX {
        return Err(malformed("too much text"));
    }
    let copied = io::copy(&mut from.take(length.into()), &mut io::sink())?;
    if copied == u64::from(length) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> io::Result<Message> {
        message(&mut &*bytes)
    }

    #[test]
    fn messages_are_read() {
        let key = read(&[4, 1, 0, 0, 0, 0, 0xff, 0x0d]).unwrap();
        assert_eq!(key, Message::Key { down: true, keysym: 0xff0d });
        let pointer = read(&[5, 3, 0, 9, 1, 0]).unwrap();
        assert_eq!(pointer, Message::Pointer { buttons: 3, x: 9, y: 256 });
        let area = Rect { x: 1, y: 2, width: 3, height: 4 };
        let request = read(&[3, 1, 0, 1, 0, 2, 0, 3, 0, 4]).unwrap();
        assert_eq!(request, Message::UpdateRequest { incremental: true, area });
        let code = read(&[255, 0, 0, 1, 0, 0, 0, 97, 0, 0, 0, 30]).unwrap();
        assert_eq!(code, Message::ExtendedKey { down: true, keysym: 97, code: 30 });
    }

    #[test]
    fn of_encodings_the_first_that_is_there_is_taken() {
        let of = |list: &[i32]| {
            let mut bytes = vec![2, 0, 0, list.len() as u8];
            list.iter().for_each(|encoding| bytes.extend(encoding.to_be_bytes()));
            match read(&bytes).unwrap() {
                Message::SetEncodings(encodings) => encodings,
                other => panic!("{other:?}"),
            }
        };
        assert!(of(&[7, 16, 0]).zrle && !of(&[0, 16]).zrle && !of(&[]).zrle);
        let all = of(&[-223, 16, -258, -257, 99]);
        assert!(all.zrle && all.desktop_size && all.extended_key && all.pointer_motion);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [&[1][..], &[9], &[255, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[4, 1], &[]] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
        // Text of 4 GiB is not waited for; what is short ends.
        assert!(read(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(read(&[6, 0, 0, 0, 0, 0, 0, 4, 1]).is_err());
        assert_eq!(read(&[6, 0, 0, 0, 0, 0, 0, 1, 1]).unwrap(), Message::CutText);
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &*bytes;
            while message(&mut rest).is_ok() {}
        }
    }
}
