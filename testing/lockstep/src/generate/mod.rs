//! Makes cases: of every instruction alone, of several in a row, and of random bytes.

pub mod encode;
pub mod select;
mod sequence;
pub(crate) mod state;
pub mod values;

use crate::{
    Rng,
    case::{Background, Case, Mode},
};
use encode::Style;
use iced_x86::{Code, EncodingKind};

/// Where cases of one mode come from.
#[derive(Clone, Debug)]
pub struct Generator {
    mode: Mode,
    bases: bool,
    codes: Vec<Code>,
    plain: Vec<Code>,
    /// Codes are taken in turn, so that each comes up as often as any other.
    next: usize,
}

impl Generator {
    /// `bases`: FS and GS may have bases.
    pub fn new(mode: Mode, bases: bool) -> Self {
        let codes = select::codes(mode);
        let plain = sequence::plain(&codes);
        Self { mode, bases, codes, plain, next: 0 }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The instructions that cases are made of.
    pub fn codes(&self) -> &[Code] {
        &self.codes
    }

    /// Only these instructions from now on.
    pub fn only(&mut self, keep: impl Fn(Code) -> bool) {
        self.codes.retain(|&code| keep(code));
    }

    pub fn case(&mut self, rng: &mut Rng, background: &Background) -> Case {
        let code = match rng.below(16) {
            0..3 if !self.plain.is_empty() => sequence::sequence(rng, &self.plain, self.mode),
            3 => self.random(rng),
            _ => self.single(rng),
        };
        state::case(rng, self.mode, &code, self.bases, background)
    }

    /// One instruction.
    fn single(&mut self, rng: &mut Rng) -> Vec<u8> {
        for _ in 0..self.codes.len() {
            self.next = (self.next + 1 + rng.below(3)) % self.codes.len();
            let style = Style { registers: rng.one_in(6), wild: rng.one_in(4) };
            if let Some(bytes) = encode::encode(rng, self.codes[self.next], self.mode, style)
                && self.allows(&bytes)
            {
                return bytes;
            }
        }
        vec![0x90]
    }

    /// Bytes that need not be an instruction.
    fn random(&self, rng: &mut Rng) -> Vec<u8> {
        const OFTEN: [u8; 12] =
            [0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x4c, 0x67, 0xc5, 0xc4, 0xf0, 0x64, 0x2e];
        loop {
            let odd = rng.below(4);
            let mut bytes: Vec<u8> = (0..odd).map(|_| rng.pick(&OFTEN)).collect();
            bytes.extend((0..15).map(|_| rng.u8()));
            let insn = encode::decode(&bytes, self.mode, 0);
            if insn.is_invalid() {
                // What the decoder does not know the host may.
                if rng.one_in(8) && known_invalid(&bytes) {
                    return bytes;
                }
                continue;
            }
            bytes.truncate(insn.len());
            if self.allows(&bytes) {
                return bytes;
            }
        }
    }

    fn allows(&self, bytes: &[u8]) -> bool {
        select::allowed(&encode::decode(bytes, self.mode, 0), self.mode)
    }
}

/// The bytes are an instruction that LOCK makes invalid, or are too long: invalid on every
/// processor.
fn known_invalid(bytes: &[u8]) -> bool {
    let start = bytes.iter().position(|b| *b != 0xf0).unwrap_or(0);
    if start == 0 || start > 3 {
        return false;
    }
    let insn = encode::decode(&bytes[start..], Mode::Long, 0);
    let encoding = insn.code().op_code().encoding();
    select::allowed(&insn, Mode::Long) && encoding == EncodingKind::Legacy
}
