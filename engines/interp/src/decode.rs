//! From bytes to instructions.
//!
//! What is known already is not decoded again: the rest of a block into which it branches itself,
//! and what has not changed of a block that was written.

use crate::{
    Interp,
    cache::{Key, Span},
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
        let mut decoder = Decoder::with_ip(bits(ctx), bytes, ctx.cpu.rip, DecoderOptions::NONE);
        let mut insns = std::mem::take(&mut self.spare);
        insns.clear();
        let mut iced = Instruction::default();
        while decoder.can_decode() && insns.len() < MAX_BLOCK {
            let start = decoder.position();
            decoder.decode_out(&mut iced);
            let error = decoder.last_error();
            let Some(mut insn) = self.insn(ctx, &iced, error, &bytes[start..]) else { break };
            insn.end = (start + usize::from(insn.len)) as u16;
            let ends = ends_block(&iced) || checked && self.may_change_code(&iced);
            insns.push(insn);
            if ends {
                break;
            }
        }
        insns
    }

    /// What was decoded from the beginning of `here`; `None` if that ends too early.
    fn insn(
        &self,
        ctx: &Ctx<'_>,
        iced: &Instruction,
        error: DecoderError,
        here: &[u8],
    ) -> Option<Insn> {
        let mut insn = if error == DecoderError::NoMoreBytes {
            if here.len() < MAX_INSTRUCTION_LEN {
                return None;
            }
            too_long()
        } else if iced.is_invalid() && iced.len() >= MAX_INSTRUCTION_LEN {
            // The decoder gives up after so many bytes.
            too_long()
        } else {
            let own = &here[..iced.len().min(here.len())];
            select(iced, own, ctx.cpu.mode.code, self.features, &self.stubs)
        };
        if let Some(handler) = crate::trap::intercept(ctx, iced.mnemonic()) {
            insn.handler = handler;
        }
        insn.len = insn.len.max(1);
        Some(insn)
    }

    /// The instructions of a new block, if it begins inside the one from which control has come,
    /// with the same `bytes`: that is what loops do.
    pub(crate) fn tail(&mut self, key: &Key, bytes: &[u8], checked: bool) -> Option<Vec<Insn>> {
        let from = self.cache.key(self.behind).filter(|_| !checked)?;
        if from.mode != key.mode || from.second.is_some() || self.cache.is_checked(self.behind) {
            return None;
        }
        let at = usize::try_from(key.start.checked_sub(from.start)?).ok()?;
        let known = self.cache.bytes(self.behind).get(at..)?;
        if known.is_empty() || !bytes.starts_with(known) {
            return None;
        }
        let insns = self.cache.insns(self.behind);
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
        let (insns, old) = (self.cache.insns(span), self.cache.bytes(span));
        let mut changed = Vec::new();
        for (index, known) in insns.iter().enumerate() {
            let end = usize::from(known.end);
            let start = end.saturating_sub(known.len.into());
            if old.get(start..end) == now.get(start..end) {
                continue;
            }
            let Some(here) = now.get(start..end) else { return false };
            let ip = ctx.cpu.rip.wrapping_add(start as u64);
            let mut decoder = Decoder::with_ip(bits(ctx), here, ip, DecoderOptions::NONE);
            let iced = decoder.decode();
            let Some(mut insn) = self.insn(ctx, &iced, decoder.last_error(), here) else {
                return false;
            };
            // Where a block ends is not decided again.
            if insn.len != known.len || ends_block(&iced) && index + 1 != insns.len() {
                return false;
            }
            insn.end = known.end;
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
