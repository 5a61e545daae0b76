//! From guest memory to blocks.

use crate::{
    Interp,
    cache::{Key, New, Span, Trust},
};
use guest_mem::ArenaOffset;
use semantics::{Ctx, Stop, mem::FetchPage, sync::Request};
use vcpu_state::SegReg;
use x86_defs::{MAX_INSTRUCTION_LEN, exception};

const PAGE: u64 = 4096;
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
        let at = ArenaOffset(ram.0.wrapping_add((linear % PAGE) as usize));
        let known = Known { linear, tag, room, code: [at, ArenaOffset(0)] };
        self.replaced = 0;
        if let Some(span) = self.known(ctx, &key, &known) {
            return Ok(span);
        }
        let checked = self.mark(ctx, page.gpa);
        self.counters.decoded += 1;
        let mut window = [0; WINDOW];
        let len = WINDOW
            .min((PAGE - linear % PAGE) as usize)
            .min(usize::try_from(room).unwrap_or(WINDOW));
        let bytes = &mut window[..len];
        ctx.cpu.mem.arena().read(at, bytes);
        let tail = self.tail(&key, bytes, checked);
        let mut insns = match tail {
            Some(insns) => insns,
            None => self.decode(ctx, bytes, checked),
        };
        if insns.is_empty() {
            // Neither page may change.
            self.global = false;
            return self.across(ctx, linear, tags[0], page, room);
        }
        // A block that the segment's limit cut short is not for others.
        let key = (room >= WINDOW as u64).then_some(key);
        let before = std::mem::take(&mut self.replaced);
        let span = self.keep(New { key, insns: &mut insns, bytes, checked });
        self.spare = insns;
        self.inherit(span, before);
        if key.is_some() && !checked {
            self.cache.set_jump(linear, tag, span);
        }
        Ok(span)
    }

    /// The block of this key, if what it was decoded from is still there.
    fn known(&mut self, ctx: &mut Ctx<'_>, key: &Key, at: &Known) -> Option<Span> {
        let (span, trust) = self.cache.find(key)?;
        if u64::from(span.len) > at.room {
            return None;
        }
        if trust == Trust::Suspect {
            // Marks come before comparing: what is written after that is noticed.
            let mut checked = self.mark(ctx, key.start & !(PAGE - 1));
            if let Some(second) = key.second {
                checked |= self.mark(ctx, second);
            }
            if checked != self.cache.is_checked(span) {
                self.cache.forget(span.id);
                return None;
            }
        }
        if trust != Trust::Live && !self.unchanged(ctx, span, key, at) {
            self.cache.forget(span.id);
            return None;
        }
        if trust == Trust::Suspect {
            self.cache.revive(span);
        }
        if !self.cache.is_checked(span) {
            self.cache.set_jump(at.linear, at.tag, span);
        }
        Some(span)
    }

    /// Memory has what the block was decoded from, or is decoded anew in its place.
    fn unchanged(&mut self, ctx: &Ctx<'_>, span: Span, key: &Key, at: &Known) -> bool {
        let bytes = if span.is_bare() { self.text(span) } else { self.cache.bytes(span) };
        if bytes.len() != usize::from(span.len) {
            return false;
        }
        let first = (PAGE - key.start % PAGE) as usize;
        let mut now = [0; WINDOW];
        let Some(now) = now.get_mut(..bytes.len()) else { return false };
        let (low, high) = now.split_at_mut(first.min(bytes.len()));
        let arena = ctx.cpu.mem.arena();
        arena.read(at.code[0], low);
        if !high.is_empty() {
            arena.read(at.code[1], high);
        }
        if now == bytes {
            return true;
        }
        if key.second.is_some() || span.is_bare() {
            return false;
        }
        match self.cache.is_checked(span) {
            true => ctx.cpu.mode.is64() && self.soften(ctx, span, now),
            false => self.amend(ctx, span, now),
        }
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
        let low_at = ArenaOffset(ram.0.wrapping_add(at as usize));
        let known = Known { linear, tag, room, code: [low_at, more] };
        if let Some(span) = self.known(ctx, &key, &known) {
            return Ok(span);
        }
        let checked = self.mark(ctx, first.gpa) | self.mark(ctx, second.gpa);
        let mut bytes = [0; MAX_INSTRUCTION_LEN];
        let arena = ctx.cpu.mem.arena();
        let (low, high) = bytes.split_at_mut(here);
        arena.read(low_at, low);
        arena.read(more, high);
        let len = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let mut insns = self.decode(ctx, &bytes[..len], checked);
        insns.truncate(1);
        if insns.is_empty() {
            return Err(ctx.cpu.fault_code(exception::GP, 0));
        }
        let new = New { key: Some(key), insns: &mut insns, bytes: &bytes, checked };
        let span = self.keep(new);
        if !checked {
            self.cache.set_jump(linear, tag, span);
        }
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
                Err(_) if have > 0 && !self.decode(ctx, &bytes[..have], false).is_empty() => break,
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
        let mut insns = self.decode(ctx, &bytes[..have], false);
        insns.truncate(1);
        if insns.is_empty() {
            return Err(ctx.cpu.fault_code(exception::GP, 0));
        }
        let new = New { key: None, insns: &mut insns, bytes: &bytes, checked: false };
        Ok(self.keep(new))
    }

    /// The page holds code from now on: writes to it are noticed. Returns when no vCPU can
    /// write it unnoticed. True if writes are not noticed, and whoever decodes it has to compare
    /// before each execution.
    fn mark(&self, ctx: &mut Ctx<'_>, gpa: u64) -> bool {
        // The layout by which it was fetched: with another one, all is decoded anew.
        let Some((region, number, page)) = ctx.cpu.mmu.phys().page(gpa) else { return false };
        if region.code().get(number) {
            return false;
        }
        if ctx.cpu.slots.code_pages().is_checked(gpa & !(PAGE - 1)) {
            return true;
        }
        if !region.code().set(number) {
            return false;
        }
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
        false
    }
}

/// Where code was found.
struct Known {
    linear: u64,
    /// The MMU's tag and the mode.
    tag: u64,
    /// Bytes to the end of the code segment.
    room: u64,
    /// In the first page and the second.
    code: [ArenaOffset; 2],
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
