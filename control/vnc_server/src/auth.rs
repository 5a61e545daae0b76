//! VNC authentication (RFC 6143, 7.2.2): a challenge, encrypted with the password by DES.

use des::{
    Des,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use std::{fmt, io};

/// Bytes of a challenge, and of a response.
pub(crate) const CHALLENGE: usize = 16;
/// What the protocol uses of a password.
const LENGTH: usize = 8;

/// A password for clients.
#[derive(Clone, PartialEq, Eq)]
pub struct Password([u8; LENGTH]);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// Why a text is no password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordError {
    Empty,
    TooLong,
}

impl fmt::Display for PasswordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the password is empty",
            Self::TooLong => "VNC's passwords have at most 8 bytes",
        })
    }
}

impl std::error::Error for PasswordError {}

impl Password {
    /// # Errors
    /// If it has no bytes, or more than the protocol looks at.
    pub fn new(text: &[u8]) -> Result<Self, PasswordError> {
        match text.len() {
            0 => Err(PasswordError::Empty),
            1..=LENGTH => {
                let mut key = [0; LENGTH];
                key.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
                Ok(Self(key))
            }
            _ => Err(PasswordError::TooLong),
        }
    }

    /// What a client that knows the password answers.
    pub(crate) fn response(&self, challenge: &[u8; CHALLENGE]) -> [u8; CHALLENGE] {
        // Each byte's bits are the other way round than DES has them.
        let cipher = Des::new(&self.0.map(u8::reverse_bits).into());
        let mut response = *challenge;
        for block in response.chunks_exact_mut(LENGTH) {
            if let Ok(block) = <&mut [u8; LENGTH]>::try_from(block) {
                cipher.encrypt_block(block.into());
            }
        }
        response
    }

    /// Whether this is the answer; takes as long whichever byte is wrong.
    pub(crate) fn accepts(&self, challenge: &[u8; CHALLENGE], answer: &[u8; CHALLENGE]) -> bool {
        let right = self.response(challenge);
        right.iter().zip(answer).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

/// Random bytes of the host's.
pub(crate) fn challenge() -> io::Result<[u8; CHALLENGE]> {
    let mut bytes = [0; CHALLENGE];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_those_of_other_implementations() {
        // DES of zeroes under the key whose bytes are those of "password" with their bits
        // reversed: `openssl enc -des-ecb -nopad -K 0e86ceceeef64e26`.
        let password = Password::new(b"password").unwrap();
        let zero = password.response(&[0; 16]);
        assert_eq!(zero[..8], zero[8..]);
        assert_eq!(zero[..8], DES_OF_ZERO);
    }

    const DES_OF_ZERO: [u8; 8] = [0xff, 0x97, 0x50, 0x2e, 0x94, 0x22, 0xf0, 0x89];

    #[test]
    fn one_answer_is_right() {
        let password = Password::new(b"secret").unwrap();
        let challenge = challenge().unwrap();
        let mut answer = password.response(&challenge);
        assert!(password.accepts(&challenge, &answer));
        answer[15] ^= 1;
        assert!(!password.accepts(&challenge, &answer));
        assert!(
            !Password::new(b"Secret").unwrap().accepts(&challenge, &password.response(&challenge))
        );
        assert_eq!(Password::new(b""), Err(PasswordError::Empty));
        assert_eq!(Password::new(b"123456789"), Err(PasswordError::TooLong));
    }
}
