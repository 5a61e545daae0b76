//! Blocks of pages whose writes are not noticed.

use crate::{
    Interp,
    cache::{Heat, Span},
    fetch::linear_ip,
};
use guest_mem::ArenaOffset;
use semantics::{Ctx, Insn};
use translator::{Check, immediate};

/// Code that changes more often is not translated any more.
const CHANGES: u32 = 16;

impl Interp {
    /// Takes over what a checked block has now, if only immediate operands have changed that
    /// translations can load.
    pub(crate) fn soften(&mut self, ctx: &Ctx<'_>, span: Span, now: &[u8]) -> bool {
        if let Some(changed) = changed(self.cache.insns(span), self.cache.bytes(span), now) {
            let mut insns = self.decode(ctx, now, true);
            if insns.len() == usize::from(span.count) {
                self.cache.soften(span, &mut insns, now, changed);
                self.spare = insns;
                return true;
            }
        }
        self.replaced = self.cache.changes(span).map_or(0, |n| *n).saturating_add(1);
        false
    }

    /// What is decoded where other code was before.
    pub(crate) fn inherit(&mut self, span: Span, changes: u32) {
        if changes == 0 {
            return;
        }
        self.cache.changes(span).into_iter().for_each(|n| *n = changes);
        if changes >= CHANGES {
            self.cache.heat(span).into_iter().for_each(|heat| *heat = Heat::Never);
        }
    }

    /// How the translation of a checked block at RIP finds its bytes.
    pub(crate) fn check<'b>(
        &self,
        ctx: &mut Ctx<'_>,
        span: Span,
        bytes: &'b [u8],
    ) -> Option<Check<'b>> {
        let rip = linear_ip(ctx);
        let ram = ctx.fetch_page(rip).ok()?.ram?;
        let at = ArenaOffset(ram.0.wrapping_add((rip % x86_defs::PAGE_SIZE) as usize));
        let host = ctx.cpu.mem.arena().host_address(at);
        Some(Check { host, soft: self.cache.soft(span), bytes })
    }
}

/// A bit for each instruction that has changed, if only in an operand that can be loaded.
fn changed(insns: &[Insn], old: &[u8], new: &[u8]) -> Option<u64> {
    let mut changed = 0;
    for (n, insn) in insns.iter().enumerate() {
        let end = usize::from(insn.end);
        let own = end.checked_sub(insn.len.into())?..end;
        let (old, new) = (old.get(own.clone())?, new.get(own)?);
        if old == new {
            continue;
        }
        let operand = immediate(new)?;
        if operand != immediate(old)? {
            return None;
        }
        let same = |part: std::ops::Range<usize>| old.get(part.clone()) == new.get(part);
        if !same(0..operand.start) || !same(operand.end..new.len()) {
            return None;
        }
        changed |= 1_u64.checked_shl(n as u32)?;
    }
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_operands_that_can_be_loaded_may_change() {
        // mov eax, imm32; nop; ret
        let insns = |ends: &[(u16, u8)]| -> Vec<Insn> {
            let insn = |(end, len): &(u16, u8)| Insn {
                end: *end,
                len: *len,
                ..semantics::insn::too_long()
            };
            ends.iter().map(insn).collect()
        };
        let list = insns(&[(5, 5), (6, 1), (7, 1)]);
        let old = [0xb8, 1, 2, 3, 4, 0x90, 0xc3];
        let with = |at: usize, byte| {
            let mut new = old;
            new[at] = byte;
            changed(&list, &old, &new)
        };
        assert_eq!(with(1, 9), Some(1));
        assert_eq!(with(4, 9), Some(1));
        assert_eq!(with(0, 0xb9), None, "another register");
        assert_eq!(with(0, 0x05), None, "another operation");
        assert_eq!(with(5, 0x91), None);
        // add dword ptr [rax], imm32: a miss would take the operand that was there before.
        let list = insns(&[(6, 6)]);
        let old = [0x81, 0x00, 1, 2, 3, 4];
        assert_eq!(changed(&list, &old, &[0x81, 0x00, 1, 2, 3, 5]), None);
        let old = [0x81, 0xc0, 1, 2, 3, 4];
        assert_eq!(changed(&list, &old, &[0x81, 0xc0, 1, 2, 3, 5]), Some(1));
    }
}
