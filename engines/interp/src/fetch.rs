//! From guest memory to blocks.

use crate::{
    Interp,
    cache::{Key, Span},
};
use guest_mem::ArenaOffset;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use semantics::{
    CodeSize, Ctx, Insn, Stop, ends_block, insn::too_long, mem::FetchPage, select, sync::Request,
};
use vcpu_state::SegReg;
use x86_defs::{MAX_INSTRUCTION_LEN, exception};

const PAGE: u64 = 4096;
/// Instructions in a block at most.
const MAX_BLOCK: usize = 64;
/// Bytes looked at for one block.
const WINDOW: usize = 512;

/// Linear address of the next instruction.
#[inline(always)]
pub fn linear_ip(ctx: &Ctx<'_>) -> u64 {
    let cpu = &*ctx.cpu;
    if cpu.mode.is64() {
        return cpu.rip;
    }
    cpu.segment(SegReg::Cs).base.wrapping_add(cpu.rip) & 0xffff_ffff
}

impl Interp {
    /// The block at RIP. Raises what fetching its first instruction raises.
    #[inline(always)]
    pub(crate) fn locate(&mut self, ctx: &mut Ctx<'_>) -> Result<Span, Stop> {
        let linear = linear_ip(ctx);
        let (tags, mode) = (ctx.cpu.mmu.tags(), ctx.cpu.mode.key());
        let tags = [tags.all << 4 | mode, tags.global << 4 | mode];
        match self.cache.jump(linear, tags) {
            Some((span, global)) if ctx.cpu.mode.is64() => {
                self.global = global;
                Ok(span)
            }
            found => self.locate_slow(ctx, linear, tags, found),
        }
    }

    #[inline(never)]
    fn locate_slow(
        &mut self,
        ctx: &mut Ctx<'_>,
        linear: u64,
        tags: [u64; 2],
        found: Option<(Span, bool)>,
    ) -> Result<Span, Stop> {
        let room = room(ctx)?;
        if let Some((span, global)) = found
            && u64::from(span.len) <= room
        {
            self.global = global;
            return Ok(span);
        }
        self.counters.searches += 1;
        self.global = false;
        let page = ctx.fetch_page(linear)?;
        self.global = page.global;
        let tag = tags[usize::from(page.global)];
        let Some(ram) = page.ram else { return self.uncached(ctx, linear, room) };
        let mode = ctx.cpu.mode.key();
        let key = Key { start: page.gpa | linear & (PAGE - 1), mode, second: None };
        if let Some(span) = self.cache.find(&key)
            && u64::from(span.len) <= room
        {
            self.cache.set_jump(linear, tag, span);
            return Ok(span);
        }
        self.counters.decoded += 1;
        self.mark(ctx, page.gpa);
        let at = (linear % PAGE) as usize;
        let mut window = [0; WINDOW];
        let len = WINDOW.min(PAGE as usize - at).min(usize::try_from(room).unwrap_or(WINDOW));
        let bytes = &mut window[..len];
        ctx.cpu.mem.arena().read(ArenaOffset(ram.0.wrapping_add(at)), bytes);
        let insns = self.decode(ctx, bytes);
        if insns.is_empty() {
            // Neither page may change.
            self.global = false;
            return self.across(ctx, linear, tags[0], page, room);
        }
        let end = insns.last().map_or(0, |i| u64::from(i.end));
        let gpa = key.start..key.start + end;
        // A block that the segment's limit cut short is not for others.
        let key = (room >= WINDOW as u64).then_some(key);
        let span = self.cache.add(key, insns, gpa, 0..0);
        if key.is_some() {
            self.cache.set_jump(linear, tag, span);
        }
        Ok(span)
    }

    /// Bytes of the page from RIP, as many as a block has at most: for code of 64 bits.
    pub(crate) fn window(&self, ctx: &mut Ctx<'_>) -> Result<Vec<u8>, Stop> {
        let linear = ctx.cpu.rip;
        let page = ctx.fetch_page(linear)?;
        let Some(ram) = page.ram else { return Ok(Vec::new()) };
        let at = (linear % PAGE) as usize;
        let mut bytes = vec![0; WINDOW.min(PAGE as usize - at)];
        ctx.cpu.mem.arena().read(ArenaOffset(ram.0.wrapping_add(at)), &mut bytes);
        Ok(bytes)
    }

    /// One instruction that begins in `first` and ends in the next page, or beyond the limit.
    fn across(
        &mut self,
        ctx: &mut Ctx<'_>,
        linear: u64,
        tag: u64,
        first: FetchPage,
        room: u64,
    ) -> Result<Span, Stop> {
        let at = linear % PAGE;
        let here = (PAGE - at) as usize;
        if room <= here as u64 || here >= MAX_INSTRUCTION_LEN {
            return Err(ctx.cpu.fault_code(exception::GP, 0));
        }
        let mut next = (linear | (PAGE - 1)).wrapping_add(1);
        if !ctx.cpu.mode.is64() {
            next &= 0xffff_ffff;
        }
        let second = ctx.fetch_page(next)?;
        let (Some(ram), Some(more)) = (first.ram, second.ram) else {
            return self.uncached(ctx, linear, room);
        };
        let mode = ctx.cpu.mode.key();
        let key = Key { start: first.gpa | at, mode, second: Some(second.gpa) };
        if let Some(span) = self.cache.find(&key)
            && u64::from(span.len) <= room
        {
            self.cache.set_jump(linear, tag, span);
            return Ok(span);
        }
        self.mark(ctx, second.gpa);
        let mut bytes = [0; MAX_INSTRUCTION_LEN];
        let arena = ctx.cpu.mem.arena();
        let (low, high) = bytes.split_at_mut(here);
        arena.read(ArenaOffset(ram.0.wrapping_add(at as usize)), low);
        arena.read(more, high);
        let len = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let mut insns = self.decode(ctx, &bytes[..len]);
        insns.truncate(1);
        let Some(end) = insns.last().map(|i| u64::from(i.end)) else {
            return Err(ctx.cpu.fault_code(exception::GP, 0));
        };
        let rest = second.gpa..second.gpa + end.saturating_sub(here as u64);
        let span = self.cache.add(Some(key), insns, key.start..first.gpa + PAGE, rest);
        self.cache.set_jump(linear, tag, span);
        Ok(span)
    }

    /// An instruction in a device's memory, fetched each time anew.
    fn uncached(&mut self, ctx: &mut Ctx<'_>, linear: u64, room: u64) -> Result<Span, Stop> {
        let mut bytes = [0; MAX_INSTRUCTION_LEN];
        let mut have = 0;
        let most = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        while have < most {
            let at = linear.wrapping_add(have as u64);
            let at = if ctx.cpu.mode.is64() { at } else { at & 0xffff_ffff };
            let page = match ctx.fetch_page(at) {
                Ok(page) => page,
                // Only the bytes of the instruction itself may fault.
                Err(_) if have > 0 && !self.decode(ctx, &bytes[..have]).is_empty() => break,
                Err(stop) => return Err(stop),
            };
            let here = (most - have).min((PAGE - at % PAGE) as usize);
            let part = &mut bytes[have..have + here];
            match page.ram {
                Some(ram) => {
                    let from = ram.0.wrapping_add((at % PAGE) as usize);
                    ctx.cpu.mem.arena().read(ArenaOffset(from), part);
                }
                None => ctx.call_flow(|host| host.mmio_read(page.gpa | (at % PAGE), part)),
            }
            have += here;
        }
        let mut insns = self.decode(ctx, &bytes[..have]);
        insns.truncate(1);
        if insns.is_empty() {
            return Err(ctx.cpu.fault_code(exception::GP, 0));
        }
        Ok(self.cache.add(None, insns, 0..0, 0..0))
    }

    /// The instructions from the beginning of `bytes` to the end of the block. Empty if not
    /// even the first is complete.
    pub(crate) fn decode(&self, ctx: &Ctx<'_>, bytes: &[u8]) -> Vec<Insn> {
        let size = ctx.cpu.mode.code;
        let bits = match size {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let mut decoder = Decoder::with_ip(bits, bytes, ctx.cpu.rip, DecoderOptions::NONE);
        let mut insns = Vec::with_capacity(8);
        let mut iced = Instruction::default();
        while decoder.can_decode() && insns.len() < MAX_BLOCK {
            let start = decoder.position();
            decoder.decode_out(&mut iced);
            let here = &bytes[start..];
            let mut insn = if decoder.last_error() == DecoderError::NoMoreBytes {
                if here.len() < MAX_INSTRUCTION_LEN {
                    break;
                }
                too_long()
            } else if iced.is_invalid() && iced.len() >= MAX_INSTRUCTION_LEN {
                // The decoder gives up after so many bytes.
                too_long()
            } else {
                let own = &here[..iced.len().min(here.len())];
                select(&iced, own, size, self.features, &self.stubs)
            };
            if let Some(handler) = crate::trap::intercept(ctx, iced.mnemonic()) {
                insn.handler = handler;
            }
            insn.len = insn.len.max(1);
            insn.end = (start + usize::from(insn.len)) as u16;
            let ends = ends_block(&iced);
            insns.push(insn);
            if ends {
                break;
            }
        }
        insns
    }

    /// The page holds code from now on: writes to it are noticed. Returns when no vCPU can
    /// write it unnoticed.
    fn mark(&self, ctx: &mut Ctx<'_>, gpa: u64) {
        let layout = ctx.cpu.mem.layout();
        let Some((region, at)) = layout.find(gpa) else { return };
        let at = at & !(PAGE - 1);
        if !region.code().set((at / PAGE) as usize) {
            return;
        }
        let page = region.arena_at(at);
        ctx.cpu.mmu.revoke_write(page);
        let slots = ctx.cpu.slots.clone();
        let asked = slots.ask_others(&Request::RevokeWrite(page), Some(&ctx.cpu.slot));
        for (slot, number) in asked {
            while !slot.has_served(number) {
                // The other may wait for this vCPU in turn.
                ctx.cpu.serve_requests();
                std::thread::yield_now();
            }
        }
    }
}

/// Bytes from RIP to the end of the code segment; #GP(0) if there are none.
fn room(ctx: &mut Ctx<'_>) -> Result<u64, Stop> {
    if ctx.cpu.mode.is64() {
        return Ok(u64::MAX);
    }
    let limit = u64::from(ctx.cpu.segment(SegReg::Cs).limit);
    match (limit + 1).checked_sub(ctx.cpu.rip) {
        Some(room) if room > 0 => Ok(room),
        _ => Err(ctx.cpu.fault_code(exception::GP, 0)),
    }
}
