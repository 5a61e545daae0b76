//! One structure: a header, fields, and texts behind them (SMBIOS, 6.1).

use crate::TEXT_MAX;

/// Texts are numbered in a byte, from 1 on.
pub(crate) const TEXTS_MAX: usize = 255;
/// Type, length, handle.
const HEADER: usize = 4;

pub(crate) struct Structure {
    fields: Vec<u8>,
    texts: Vec<u8>,
    count: u8,
}

impl Structure {
    pub(crate) fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { fields: vec![kind, HEADER as u8, low, high], texts: Vec::new(), count: 0 }
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.fields.extend(bytes);
        self
    }

    pub(crate) fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn double(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn quad(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A field with a text's number; 0 if it is empty.
    pub(crate) fn text(self, text: &str) -> Self {
        if text.is_empty() {
            return self.byte(0);
        }
        let number = self.count.saturating_add(1);
        self.string(text).byte(number)
    }

    /// A text without a field. A zero would end it, and an empty one all texts.
    pub(crate) fn string(mut self, text: &str) -> Self {
        let bytes = text.bytes().filter(|byte| *byte != 0).take(TEXT_MAX);
        let before = self.texts.len();
        self.texts.extend(bytes);
        if self.texts.len() == before {
            self.texts.push(b' ');
        }
        self.texts.push(0);
        self.count = self.count.saturating_add(1);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        // Those here are all far shorter.
        self.fields[1] = self.fields.len().min(u8::MAX.into()) as u8;
        if self.texts.is_empty() {
            self.texts.push(0);
        }
        self.fields.append(&mut self.texts);
        self.fields.push(0);
        self.fields
    }
}
