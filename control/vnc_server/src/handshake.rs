//! How a client and a server get to know each other (RFC 6143, 7.1 to 7.3).

use crate::{
    auth::{self, Password},
    pixel::PixelFormat,
    wire,
};
use std::io::{self, Read, Write};

const VERSION: &[u8; 12] = b"RFB 003.008\n";
const NONE: u8 = 1;
const VNC: u8 = 2;

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Minor versions in which the handshake differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V3,
    V7,
    V8,
}

fn version(text: &[u8; 12]) -> Option<Version> {
    let number = |part: &[u8]| std::str::from_utf8(part).ok()?.parse::<u16>().ok();
    if !text.starts_with(b"RFB ") || text[7] != b'.' || text[11] != b'\n' {
        return None;
    }
    match (number(&text[4..7])?, number(&text[8..11])?) {
        (3, 7) => Some(Version::V7),
        (3, 8..) | (4.., _) => Some(Version::V8),
        // What else there is follows 3.3, as others do.
        (3, _) => Some(Version::V3),
        _ => None,
    }
}

/// Everything up to the first message. What a client must know is sent in it.
pub(crate) fn perform(
    stream: &mut (impl Read + Write),
    password: Option<&Password>,
    name: &str,
    (width, height): (u16, u16),
) -> io::Result<()> {
    stream.write_all(VERSION)?;
    let text = wire::bytes(stream)?;
    let version = version(&text).ok_or(refused("no version of the protocol"))?;
    let kind = if password.is_some() { VNC } else { NONE };
    if version == Version::V3 {
        stream.write_all(&[0, 0, 0, kind])?;
    } else {
        stream.write_all(&[1, kind])?;
        let [chosen] = wire::bytes(stream)?;
        if chosen != kind {
            return deny(stream, version, "That is not offered");
        }
    }
    match password {
        Some(password) => {
            let challenge = auth::challenge()?;
            stream.write_all(&challenge)?;
            let answer = wire::bytes(stream)?;
            if !password.accepts(&challenge, &answer) {
                return deny(stream, version, "The password is wrong");
            }
            stream.write_all(&[0; 4])?;
        }
        None if version == Version::V8 => stream.write_all(&[0; 4])?,
        None => {}
    }
    // Whether others may look on: they may.
    let [_shared] = wire::bytes(stream)?;
    let mut init = Vec::new();
    init.extend(width.to_be_bytes());
    init.extend(height.to_be_bytes());
    init.extend(PixelFormat::default().encode());
    init.extend((name.len() as u32).to_be_bytes());
    init.extend(name.as_bytes());
    stream.write_all(&init)
}

/// Tells a client that it is not let in, and why if its version has that.
fn deny(stream: &mut impl Write, version: Version, why: &'static str) -> io::Result<()> {
    stream.write_all(&[0, 0, 0, 1])?;
    if version == Version::V8 {
        stream.write_all(&(why.len() as u32).to_be_bytes())?;
        stream.write_all(why.as_bytes())?;
    }
    Err(refused(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a client sends, and what it was sent.
    struct Client<'a>(&'a [u8], Vec<u8>);

    impl Read for Client<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.0.read(out)
        }
    }

    impl Write for Client<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn meet(sends: &[u8], password: Option<&Password>) -> (bool, Vec<u8>) {
        let mut client = Client(sends, Vec::new());
        let met = perform(&mut client, password, "vm", (640, 400)).is_ok();
        (met, client.1)
    }

    #[test]
    fn each_version_has_its_way() {
        let init = [2, 0x80, 1, 0x90, 32, 24];
        for (sends, security) in [
            (&b"RFB 003.003\n\x01"[..], &[0u8, 0, 0, 1][..]),
            (b"RFB 003.005\n\x01", &[0, 0, 0, 1]),
            (b"RFB 003.007\n\x01\x01", &[1, 1]),
            (b"RFB 003.008\n\x01\x00", &[1, 1, 0, 0, 0, 0]),
            (b"RFB 003.889\n\x01\x00", &[1, 1, 0, 0, 0, 0]),
        ] {
            let (met, sent) = meet(sends, None);
            let want = [&VERSION[..], security, &init].concat();
            assert!(met && sent.starts_with(&want), "{sends:?}: {sent:?}");
            assert!(sent.ends_with(b"\0\0\0\x02vm"));
        }
    }

    #[test]
    fn who_does_not_know_the_password_is_not_let_in() {
        let password = Password::new(b"secret").unwrap();
        let wrong = [b"RFB 003.008\n\x02".as_slice(), &[0; 16]].concat();
        let (met, sent) = meet(&wrong, Some(&password));
        assert!(!met && sent.ends_with(b"The password is wrong"));
        // Nor who asks for no authentication.
        let (met, sent) = meet(b"RFB 003.008\n\x01\x01", Some(&password));
        assert!(!met && sent.ends_with(b"That is not offered"));
        let old = [b"RFB 003.003\n".as_slice(), &[0; 16]].concat();
        assert!(!meet(&old, Some(&password)).0);
    }

    #[test]
    fn who_knows_the_password_is_let_in() {
        // The challenge is random: a client that computes as it comes.
        struct Knows(Password, Vec<u8>, Vec<u8>);
        impl Read for Knows {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                if self.1.is_empty() {
                    let challenge = self.2[self.2.len() - 16..].try_into().unwrap();
                    self.1 = self.0.response(&challenge).to_vec();
                    self.1.push(1);
                }
                let count = out.len().min(self.1.len());
                out[..count].copy_from_slice(&self.1[..count]);
                self.1.drain(..count);
                Ok(count)
            }
        }
        impl Write for Knows {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.2.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let password = Password::new(b"secret").unwrap();
        let mut client = Knows(password.clone(), b"RFB 003.008\n\x02".to_vec(), Vec::new());
        perform(&mut client, Some(&password), "", (1, 1)).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_end(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            begun: bool,
            secret: bool
        ) {
            let password = Password::new(b"x").unwrap();
            let start = if begun { &VERSION[..] } else { &[] };
            let (met, _) = meet(&[start, &bytes].concat(), secret.then_some(&password));
            prop_assert!(!(met && secret));
        }
    }
}
