//! The instructions of callouts.
//!
//! Of a translated block only the bytes are kept. Most of its instructions are never executed by
//! their handlers, so each is decoded when it first is; those used last stay decoded.

use crate::{table::Site, width::Width};
use emit::StubCache;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use semantics::{CodeSize, Ctx, Handler, Insn, features::IsaFeatures, select};

/// Instructions that stay decoded, at most.
const KNOWN: usize = 256;

/// The handler that offers an instruction to the host instead, if the host wants it.
pub type Intercept = fn(&Ctx<'_>, Mnemonic) -> Option<Handler>;

/// The instruction of a callout.
#[derive(Debug)]
pub struct Decoded {
    number: u32,
    pub insn: Insn,
    pub mnemonic: Mnemonic,
}

/// Decoded instructions, by the number of their site.
#[derive(Debug)]
pub struct Sites {
    known: Vec<Option<Decoded>>,
    features: IsaFeatures,
    stubs: StubCache,
    pub intercept: Intercept,
}

fn place(number: u32) -> usize {
    (number.wrapping_mul(0x9e37_79b9) >> 16) as usize % KNOWN
}

impl Sites {
    pub fn new(features: IsaFeatures, stubs: StubCache) -> Self {
        let known = std::iter::repeat_with(|| None).take(KNOWN).collect();
        Self { known, features, stubs, intercept: |_, _| None }
    }

    /// The instruction of a site with this number, to be given back by [`Self::put`]. `rip` is
    /// where it is.
    pub fn take(&mut self, ctx: &Ctx<'_>, number: u32, site: &Site<'_>, rip: u64) -> Decoded {
        let known = self.known.get_mut(place(number)).and_then(|known| {
            let same = known.as_ref().is_some_and(|known| known.number == number);
            if same { known.take() } else { None }
        });
        known.unwrap_or_else(|| self.decode(ctx, number, site, rip))
    }

    #[cold]
    fn decode(&self, ctx: &Ctx<'_>, number: u32, site: &Site<'_>, rip: u64) -> Decoded {
        let bits = site.width.bits();
        let iced = Decoder::with_ip(bits, site.bytes, rip, DecoderOptions::NONE).decode();
        let size = match site.width {
            Width::Wide => CodeSize::Bits64,
            Width::Narrow => CodeSize::Bits32,
            Width::Real | Width::Short => CodeSize::Bits16,
        };
        let mut insn = select(&iced, site.bytes, size, self.features, &self.stubs);
        if let Some(handler) = (self.intercept)(ctx, iced.mnemonic()) {
            insn.handler = handler;
        }
        insn.end = site.end;
        Decoded { number, insn, mnemonic: iced.mnemonic() }
    }

    pub fn put(&mut self, decoded: Decoded) {
        if let Some(known) = self.known.get_mut(place(decoded.number)) {
            *known = Some(decoded);
        }
    }

    /// Numbers may stand for other sites from now on.
    pub fn clear(&mut self) {
        self.known.fill_with(|| None);
    }
}
