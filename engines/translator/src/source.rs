//! What is to be translated, and what is known of it before.

use crate::{
    lower::{BASE, Check, Lowered, SITE_BITS, Short, decode_narrow, decode_short, ends, is_flow},
    spaces::plane,
    table::{Place, Text, Translated},
    width::Width,
};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use semantics::Insn;

/// What is to be translated.
#[derive(Debug)]
pub struct Source<'s> {
    pub insns: &'s [Insn],
    /// What they were decoded from.
    pub bytes: &'s [u8],
    /// RIP; it may be elsewhere, too, but for 16-bit code whose segment begins elsewhere.
    pub linear: u64,
    /// Offset in the page, which holds all of them.
    pub start: u16,
    /// See [`crate::spaces::version`].
    pub version: usize,
    /// It runs at level 0; at level 3 otherwise.
    pub supervisor: bool,
    pub width: Width,
    /// What the general registers have where it is about to run.
    pub registers: [u64; 16],
    /// The bytes may change unnoticed.
    pub check: Option<Check<'s>>,
}

impl Source<'_> {
    /// The TLB's plane for the rights with which it runs.
    pub(crate) fn plane(&self) -> usize {
        plane(self.version)
    }

    /// Of 16-bit code, the offset in its segment of the page's beginning.
    fn page(&self) -> u64 {
        match self.width.is_short() {
            true => self.linear.wrapping_sub(self.start.into()),
            false => 0,
        }
    }

    pub(crate) fn short(&self) -> Option<Short> {
        self.width.is_short().then_some(Short { real: self.width == Width::Real })
    }
}

/// What is kept of a block, of which several turns of so many instructions may have been made.
pub(crate) fn translated(
    source: &Source<'_>,
    insns: &[Instruction],
    turn: Option<usize>,
    lowered: &Lowered,
    place: Place,
) -> Translated {
    let turn = turn.unwrap_or(insns.len());
    let bytes = u16::try_from(source.bytes.len()).unwrap_or(u16::MAX);
    let count = insns.len() as u16;
    Translated {
        text: Text { bytes, turn: turn as u16, count, ..Text::default() },
        start: source.start,
        version: source.version,
        width: source.width,
        page: source.page(),
        entry: lowered.entry,
        polled: place.at[0],
        unpolled: lowered.unpolled,
        vectors: lowered.vectors,
        flow: insns.last().is_some_and(is_flow),
        cells: (place.first_cell, lowered.exits.len() as u32),
        fars: lowered.fars.saturating_sub(place.fars.0),
        incoming: Translated::UNLINKED,
        jumps: Vec::new(),
        alive: true,
        removed: false,
    }
}

/// Whether a call at the end is one that returns. What is never to be executed stands behind
/// those that do not, and behind the call of a retpoline, which replaces its return address:
/// INT3, PAUSE or LFENCE.
pub(crate) fn returns(source: &Source<'_>) -> bool {
    let end = source.insns.last().map_or(0, |i| usize::from(i.end));
    let next = source.bytes.get(end..).unwrap_or_default();
    let traps: [&[u8]; 3] = [&[0xcc], &[0xf3, 0x90], &[0x0f, 0xae, 0xe8]];
    !traps.iter().any(|trap| next.starts_with(trap))
}

/// The instructions, addressed as [`BASE`] says; as many as the interpreter found. False if they
/// are none that can be translated.
pub(crate) fn decode(source: &Source<'_>, insns: &mut Vec<Instruction>) -> bool {
    let ip = BASE + u64::from(source.start);
    insns.clear();
    match source.width {
        Width::Real | Width::Short => {
            let (page, count) = (source.page() as i64, source.insns.len());
            *insns = decode_short(source.bytes, source.start, page, count);
        }
        Width::Narrow => {
            *insns = decode_narrow(source.bytes, source.start, source.insns.len());
        }
        Width::Wide => {
            let mut decoder = Decoder::with_ip(64, source.bytes, ip, DecoderOptions::NONE);
            insns.extend(source.insns.iter().map(|_| decoder.decode()));
        }
    }
    if let Some(last) = insns.iter().position(|insn| ends(insn, source.plane())) {
        insns.truncate(last + 1);
    }
    let known = source.insns.iter().map(|known| usize::from(known.len));
    if insns.iter().zip(known).any(|(insn, len)| insn.is_invalid() || insn.len() != len) {
        return false;
    }
    !insns.is_empty() && insns.len() < 1 << SITE_BITS
}
