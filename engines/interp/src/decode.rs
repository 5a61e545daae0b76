//! From bytes to instructions.
//!
//! What is known already is not decoded again: the rest of a block into which it branches itself,
//! and what has not changed of a block that was written.

use crate::{
    Interp,
    cache::{Key, Span},
    templates::{Decoded, LOOK},
};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind};
use semantics::{CodeSize, Ctx, Insn, ends_block, insn::too_long, select};
use x86_defs::MAX_INSTRUCTION_LEN;

/// Instructions in a block at most.
const MAX_BLOCK: usize = 64;

fn bits(ctx: &Ctx<'_>) -> u32 {
    match ctx.cpu.mode.code {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

impl Interp {
    /// The instructions from the beginning of `bytes` to the end of the block. Empty if not
    /// even the first is complete. A `checked` block ends where code may have changed.
    pub(crate) fn decode(&mut self, ctx: &Ctx<'_>, bytes: &[u8], checked: bool) -> Vec<Insn> {
        let mut insns = std::mem::take(&mut self.spare);
        insns.clear();
        let mut start = 0;
        while insns.len() < MAX_BLOCK
            && let Some(here) = bytes.get(start..).filter(|here| !here.is_empty())
        {
            let ip = ctx.cpu.rip.wrapping_add(start as u64);
            let Some(Decoded { mut insn, ends, writes }) = self.insn(ctx, here, ip, checked) else {
                break;
            };
            start += usize::from(insn.len);
            insn.end = start as u16;
            insns.push(insn);
            if ends || writes == Some(true) {
                break;
            }
        }
        insns
    }

    /// The instruction at `ip`, at the beginning of `here`; `None` if that ends too early. What
    /// it writes is asked only of checked code.
    fn insn(&mut self, ctx: &Ctx<'_>, here: &[u8], ip: u64, checked: bool) -> Option<Decoded> {
        let wide = ctx.cpu.mode.code == CodeSize::Bits64;
        if wide && let Some(mut known) = self.templates.find(here) {
            known.writes = known.writes.filter(|_| checked);
            if known.writes.is_some() == checked {
                return Some(known);
            }
        }
        let mut decoder = Decoder::with_ip(bits(ctx), here, ip, DecoderOptions::NONE);
        let iced = decoder.decode();
        let mut insn = if decoder.last_error() == DecoderError::NoMoreBytes {
            if here.len() < MAX_INSTRUCTION_LEN {
                return None;
            }
            too_long()
        } else if iced.is_invalid() && iced.len() >= MAX_INSTRUCTION_LEN {
            // The decoder gives up after so many bytes.
            too_long()
        } else {
            let own = &here[..iced.len().min(here.len())];
            select(&iced, own, ctx.cpu.mode.code, self.features, &self.stubs)
        };
        if let Some(handler) = crate::trap::intercept(ctx, iced.mnemonic()) {
            insn.handler = handler;
        }
        insn.len = insn.len.max(1);
        let writes = checked.then(|| self.may_change_code(&iced));
        let decoded = Decoded { insn, ends: ends_block(&iced), writes };
        if wide {
            let offsets = decoder.get_constant_offsets(&iced);
            self.templates.learn(here, &iced, &offsets, &decoded);
        }
        Some(decoded)
    }

    /// The instructions of a new block, if it begins inside the one from which control has come,
    /// with the same `bytes`: that is what loops do.
    pub(crate) fn tail(&mut self, key: &Key, bytes: &[u8], checked: bool) -> Option<Vec<Insn>> {
        // Where its instructions are now, if it has any.
        let behind = self.cache.current(self.behind);
        let from = self.cache.key(behind).filter(|_| !checked)?;
        if from.mode != key.mode || from.second.is_some() || self.cache.is_checked(behind) {
            return None;
        }
        let at = usize::try_from(key.start.checked_sub(from.start)?).ok()?;
        let known = self.cache.bytes(behind).get(at..)?;
        if known.is_empty() || !bytes.starts_with(known) {
            return None;
        }
        let insns = self.cache.insns(behind);
        let starts = |insn: &Insn| usize::from(insn.end).checked_sub(insn.len.into()) == Some(at);
        let first = insns.iter().position(starts)?;
        let mut tail = std::mem::take(&mut self.spare);
        tail.clear();
        tail.extend(insns.get(first..)?.iter().map(|insn| {
            let end = insn.end - at as u16;
            Insn { end, ..insn.clone() }
        }));
        Some(tail)
    }

    /// Takes over what a block has `now` where it was written, if it still has instructions of
    /// the same lengths.
    pub(crate) fn amend(&mut self, ctx: &Ctx<'_>, span: Span, now: &[u8]) -> bool {
        let old = self.cache.bytes(span);
        let differ = |(old, new): (&u8, &u8)| old != new;
        let Some(first) = old.iter().zip(now).position(differ) else { return true };
        let insns = self.cache.insns(span);
        let (from, count) = (insns.partition_point(|i| usize::from(i.end) <= first), insns.len());
        let mut changed = Vec::new();
        for index in from..count {
            let Some(known) = self.cache.insns(span).get(index) else { return false };
            let end = usize::from(known.end);
            let own = end.saturating_sub(known.len.into())..end;
            let Some(bytes) = now.get(own.clone()) else { return false };
            if self.cache.bytes(span).get(own.clone()) == Some(bytes) {
                continue;
            }
            // With bytes that do not matter, so that it is complete.
            let mut here = [0; LOOK];
            let Some(copy) = here.get_mut(..bytes.len()) else { return false };
            copy.copy_from_slice(bytes);
            let ip = ctx.cpu.rip.wrapping_add(own.start as u64);
            let decoded = self.insn(ctx, &here, ip, false);
            let Some(Decoded { mut insn, ends, .. }) = decoded else { return false };
            // Where a block ends is not decided again.
            if usize::from(insn.len) != own.len() || ends && index + 1 != count {
                return false;
            }
            insn.end = end as u16;
            changed.push((index, insn));
        }
        self.cache.amend(span, changed, now);
        true
    }

    /// What follows may be other code than before: the instruction may write memory, have a
    /// device write it, or is one after which other processors' writes must be seen.
    fn may_change_code(&mut self, iced: &Instruction) -> bool {
        use iced_x86::{Mnemonic::*, OpAccess};
        let info = self.factory.info(iced);
        let writes =
            |access| !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead);
        // STI and CLI are privileged and do none of that.
        iced.is_privileged() && !matches!(iced.mnemonic(), Sti | Cli)
            || matches!(iced.mnemonic(), Cpuid | Serialize | In | Out)
            || info.used_memory().iter().any(|m| writes(m.access()))
            || (0..iced.op_count())
                .any(|n| iced.op_kind(n) == OpKind::Memory && writes(info.op_access(n)))
    }
}
