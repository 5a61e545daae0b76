//! Bytes that grow at their end, a few at a time.

use std::ops::{Deref, DerefMut};

/// What is stored is mostly of a length that the compiler knows, so that it becomes a store or
/// two. A vector would call a function for it.
#[derive(Debug, Default)]
pub struct Buffer {
    /// All of it, in use or not.
    room: Vec<u8>,
    len: usize,
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.room.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.room.get_mut(..self.len).unwrap_or_default()
    }
}

impl Buffer {
    #[inline(always)]
    pub fn push(&mut self, byte: u8) {
        self.put(&[byte], 1);
    }

    /// Stores the first `len` of these, of which the others do not matter.
    #[inline(always)]
    pub fn put<const N: usize>(&mut self, bytes: &[u8; N], len: usize) {
        loop {
            let rest = self.room.get_mut(self.len..).unwrap_or_default();
            if let Some(place) = rest.first_chunk_mut::<N>() {
                *place = *bytes;
                self.len += len.min(N);
                return;
            }
            self.grow();
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.room.resize((2 * self.room.len()).max(1024), 0);
    }

    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put() {
        let (mut buffer, mut expected) = (Buffer::default(), Vec::new());
        for n in 0..1000_u32 {
            buffer.push(n as u8);
            expected.push(n as u8);
            let bytes = n.to_be_bytes();
            let len = n as usize % 5;
            buffer.put(&bytes, len);
            expected.extend_from_slice(&bytes[..len]);
            if n % 7 == 0 {
                buffer.truncate(expected.len() - 1);
                expected.pop();
            }
            assert_eq!(buffer[..], expected[..]);
        }
        buffer[3] = 9;
        assert_eq!(buffer.get(3), Some(&9));
        buffer.truncate(usize::MAX);
        assert_eq!(buffer.len(), expected.len());
    }
}
