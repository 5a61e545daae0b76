//! Translating, linking and running blocks of one vCPU.

use crate::{
    asm::{Asm, Patch},
    callout,
    counters::{Cause, Counters},
    jumps::{self, Tables},
    levels,
    lower::{Lowered, Lowerer, Tools, turns},
    native::{self, Env},
    perf_map::PerfMap,
    recover::{self, Recover},
    region::Region,
    sites::{Intercept, Sites},
    source::{Source, decode, returns, translated},
    spaces::{WINDOWED, plane, space, version},
    state::{BIAS, EXPECTED, PLANES},
    table::{Cell, Code, Link, Place, Table, Translated},
    thunks::{self, EXIT_BUDGET, EXIT_JUMP, EXIT_POLL, LEFT, Thunks},
    tlb,
    width::Width,
    windows::{Expectation, Slot, Windowing, Windows},
};
use emit::{CodeMemory, StubCache};
use engine::Stats;
use iced_x86::Instruction;
use semantics::{Ctx, Stop, features::IsaFeatures};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::AtomicU32},
    time::Instant,
};
use x86_defs::rflags;

/// Code memory, at least and at most.
const CODE: std::ops::RangeInclusive<usize> = 256 << 10..=1 << 30;

/// What a budget is at most; code asks for its upper bits only.
const BUDGET: u64 = 1 << 46;
/// Evicted blocks that are dropped for each that is made: to drop many at once takes long.
const DROPPED: usize = 32;
/// Entries of the table of jumps for one block.
const MOST_JUMPS: usize = 256;

/// How translated code was left. The vCPU's state is complete, with RIP where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Through an exit that goes to the same place each time.
    Exit(Link),
    /// By a jump whose target is not known.
    Jump,
    /// Something is to be looked at first, as after any instruction that sets `Cpu::leave`.
    Boundary,
    /// The block at RIP is longer than the budget.
    Short,
}

/// One vCPU's translated code.
#[derive(Debug)]
pub struct Translator {
    memory: CodeMemory,
    thunks: Thunks,
    state: Region,
    table: Table,
    sites: Sites,
    tables: Tables,
    tools: Tools,
    features: IsaFeatures,
    /// What all may take, in bytes.
    most: usize,
    /// Blocks that were evicted, to be dropped a few at a time.
    evicted: Vec<Translated>,
    /// The last budget.
    given: u64,
    autonomous: bool,
    windows: Windows,
    recover: Recover,
    /// Code that may have been executed was replaced since translated code has run: by other
    /// blocks, or jumps were linked, or go back to the run loop.
    changed: bool,
    /// New blocks may lie where others have been.
    reused: bool,
    counters: Counters,
    perf_map: Option<Arc<PerfMap>>,
    listing: Option<Listing>,
}

/// Offsets and lengths in the code memory of the last block made at a linear address.
type Listing = HashMap<u64, [(usize, usize); 2]>;

/// The host has what translated code needs.
pub fn supported() -> bool {
    std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("lzcnt")
        && std::is_x86_feature_detected!("popcnt")
        && std::is_x86_feature_detected!("movbe")
        && std::is_x86_feature_detected!("sse4.2")
        && std::is_x86_feature_detected!("avx")
}

impl Translator {
    /// With about `bytes` for code and for what is kept of it; handlers are those for `features`,
    /// with these stubs. `Ok(None)` if the host is not enough.
    pub fn new(bytes: usize, features: IsaFeatures, stubs: StubCache) -> io::Result<Option<Self>> {
        if !supported() {
            return Ok(None);
        }
        let (entries, tables) = jumps::entries(bytes);
        let bytes = bytes.saturating_sub(tables);
        let len = (bytes / 3 * 2).clamp(*CODE.start(), *CODE.end()).next_multiple_of(4096);
        let memory = CodeMemory::new(len)?;
        let mut asm = Asm::new(0, len);
        let thunks = thunks::build(&mut asm);
        native::write(&memory, 0, &asm.code);
        let first = asm.here().next_multiple_of(64);
        let mut state = Region::new()?;
        state.index_mask = tlb::INDEX_MASK;
        state.jump_mask = jumps::mask(entries);
        state.stack_mask = 8 * (EXPECTED as u64 - 1);
        state.half = 1 << 47;
        state.status_mask = rflags::STATUS;
        state.host_mxcsr = x86_defs::xsave::MXCSR_RESET;
        (state.retired, state.x87_retired) = (1, 1);
        state.far_turn = 1;
        state.fcw_masks = callout::X87_MASKS.into();
        state.dead.fill(1);
        (state.outside_16, state.outside_32) = (!0xff0, !0xfe0);
        (state.below_16, state.below_32) = (15, 31);
        state.below_64 = 63;
        state.mxcsr_masks = callout::MASKS.into();
        state.mxcsr_reserved = 0xffff_0000;
        (state.space, state.spaces) = (u64::MAX, [u64::MAX; PLANES]);
        state.sysret_odd = rflags::TF | rflags::AC;
        tlb::init(&mut state);
        debug_assert_eq!((std::ptr::from_ref(&*state) as usize + BIAS) % 64, 12);
        let (cold, most) = (split(len), bytes / 3);
        let table = Table::new([first, cold], [cold, len], most);
        let mut translator = Self {
            memory,
            thunks,
            state,
            table,
            sites: Sites::new(features, stubs),
            tables: Tables::default(),
            tools: Tools::default(),
            features,
            most: len + most + tables,
            evicted: Vec::new(),
            given: 0,
            autonomous: false,
            windows: Windows::new(Windowing::Off),
            recover: Recover::default(),
            changed: false,
            reused: false,
            counters: Counters::default(),
            perf_map: None,
            listing: None,
        };
        translator.state.windows.fill(Slot::NONE);
        translator.tables.relink = translator.memory.address(translator.thunks.relink) as u64;
        let elsewhere = translator.memory.address(translator.thunks.jump) as u64;
        translator.state.elsewhere = elsewhere;
        translator.tables.clear(&mut translator.state);
        translator.forget_returns();
        Ok(Some(translator))
    }

    /// Translated code does what the run loop would do between two instructions, as far as that
    /// is nothing or the delivery of an exception that the host does not want to see.
    #[must_use]
    pub fn autonomous(mut self) -> Self {
        self.autonomous = true;
        self
    }

    /// Some instructions are the host's.
    #[must_use]
    pub fn intercepting(mut self, intercept: Intercept) -> Self {
        self.sites.intercept = intercept;
        self
    }

    /// Uses windows: see `docs/translator.md`.
    #[must_use]
    pub fn windows(mut self, how: Windowing) -> Self {
        self.windows = Windows::new(how);
        self
    }

    /// What code and what is kept of it may take.
    pub fn bytes(&self) -> usize {
        self.most
    }

    /// Counts retired instructions: runs take [`Self::set_budget`].
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.state.counted = true;
        self
    }

    pub fn counts(&self) -> bool {
        self.state.counted
    }

    /// The next run retires so many instructions at most.
    pub fn set_budget(&mut self, budget: u64) {
        self.state.budget = budget.min(BUDGET);
        self.given = self.state.budget;
    }

    /// How many were retired since.
    pub fn take_retired(&mut self) -> u64 {
        std::mem::take(&mut self.given).saturating_sub(self.state.budget)
    }

    /// Names what is translated from now on.
    pub fn set_perf_map(&mut self, map: Arc<PerfMap>) {
        let first = self.memory.address(0);
        let len = self.table.place().at[0];
        map.add(first, len, format_args!("translator_thunks"));
        self.perf_map = Some(map);
    }

    /// Remembers from now on where code is, for [`Self::host_code`].
    pub fn keep_listing(&mut self) {
        self.listing = Some(Listing::default());
    }

    /// Host addresses and bytes of the two parts of the block last made at this linear address,
    /// for those who look for its fault.
    pub fn host_code(&mut self, linear: u64) -> Option<[(u64, Vec<u8>); 2]> {
        let parts = *self.listing.as_ref()?.get(&linear)?;
        Some(parts.map(|(at, len)| (self.memory.address(at) as u64, self.memory.copy(at, len))))
    }

    /// Raised and delivered in callouts, by vector.
    pub fn exceptions(&self) -> [u64; 32] {
        self.counters.exceptions
    }

    /// What was counted.
    pub fn report(&self, stats: &mut Stats) {
        self.counters.report(stats, &self.table, self.most, self.tables.resident());
        self.windows.counters.report(stats);
    }

    /// Translates a block; `None` if that would not pay.
    pub fn translate(&mut self, source: &Source<'_>) -> Option<Code> {
        self.evicted.truncate(self.evicted.len().saturating_sub(DROPPED));
        if source.width.is_short() && source.linear >= 1 << 16 {
            return None;
        }
        let mut insns = std::mem::take(&mut self.tools.insns);
        let code = if decode(source, &mut insns) { self.turned(source, &mut insns) } else { None };
        self.tools.insns = insns;
        code
    }

    /// Makes several turns of a short loop.
    fn turned(&mut self, source: &Source<'_>, insns: &mut Vec<Instruction>) -> Option<Code> {
        let once = source.check.is_some() || source.width.is_short();
        let turns = turns(insns, source.start).filter(|_| !once);
        let Some((turn, times)) = turns else { return self.make(source, insns, None) };
        *insns = repeat(insns, turn, times);
        let known = repeat(source.insns, turn, times);
        self.make(&Source { insns: &known, ..*source }, insns, Some(turn))
    }

    /// `turn`: instructions of each turn, if several were made.
    fn make(
        &mut self,
        source: &Source<'_>,
        insns: &[Instruction],
        turn: Option<usize>,
    ) -> Option<Code> {
        loop {
            let place = self.table.place();
            let lowered = self.lower(source, insns, place, (turn, false));
            let lowered = lowered.or_else(|| self.lower(source, insns, place, (turn, true)))?;
            let copied = insns.len() - lowered.callouts.min(insns.len());
            // Few callouts cost less than leaving translated code for them.
            if lowered.callouts > 4 && copied < 2 * lowered.callouts {
                self.counters.refused += 1;
                return None;
            }
            let block = translated(source, insns, turn, &lowered, place);
            match self.table.fits(&block, [lowered.hot.len(), lowered.cold.len()]) {
                Some(true) => return self.keep(source, insns, (block, lowered), place),
                // Made once more, in another place.
                Some(false) => {
                    self.tools.spare.take_code([lowered.hot, lowered.cold]);
                    self.make_room();
                }
                None => return None,
            }
        }
    }

    /// If `steady`, the guest's flags stay where they are.
    fn lower(
        &mut self,
        source: &Source<'_>,
        insns: &[Instruction],
        place: Place,
        (turn, steady): (Option<usize>, bool),
    ) -> Option<Lowered> {
        let Place { at, number, first_cell, fars } = place;
        let expectation = (source.version == WINDOWED).then(|| Expectation {
            registers: source.registers,
            page: source.linear & !(x86_defs::PAGE_SIZE - 1),
            highs: self.state.windows.map(|window| window.high),
        });
        let tools = &mut self.tools;
        let lowerer = Lowerer::new(at, &self.thunks, tools, source.plane(), number, first_cell);
        let lowerer = lowerer.windows(expectation).supervisor(source.supervisor);
        let lowerer = lowerer.fars(fars).counted(self.state.counted).returning(returns(source));
        let lowerer = lowerer.knowing(source.insns).narrow(source.width.is_narrow());
        let lowerer = lowerer.turning(turn).steady(steady);
        let lowerer = lowerer.short(source.short());
        let (start, features) = (i64::from(source.start), self.features);
        lowerer.run(start, insns, source.check.as_ref(), |insn| features.allow(insn))
    }

    fn keep(
        &mut self,
        source: &Source<'_>,
        insns: &[Instruction],
        (block, lowered): (Translated, Lowered),
        place: Place,
    ) -> Option<Code> {
        let [entry, aside] = place.at;
        let parts = [(entry, lowered.hot.len()), (aside, lowered.cold.len())];
        if !native::write(&self.memory, entry, &lowered.hot)
            || !native::write(&self.memory, aside, &lowered.cold)
        {
            return None;
        }
        self.changed |= self.reused;
        self.made(source, insns, lowered.callouts, parts);
        for far in place.fars.0..lowered.fars {
            self.tables.set_far(&mut self.state, far);
        }
        for [from, to, then] in &lowered.recover {
            self.recover.add(*from, *to, *then);
        }
        let lengths = source.insns.iter().map(|insn| insn.len);
        let text = (source.bytes, lengths);
        let code = self.table.add(block, &lowered.exits, parts.map(|part| part.1), text);
        self.table.grow(place.number, lowered.recover.len() * Recover::BYTES);
        self.tools.spare.take_code([lowered.hot, lowered.cold]);
        code
    }

    /// Counts a new block, and names it.
    fn made(
        &mut self,
        source: &Source<'_>,
        insns: &[Instruction],
        callouts: usize,
        parts: [(usize, usize); 2],
    ) {
        let counters = &mut self.counters;
        counters.blocks += 1;
        counters.insns += insns.len() as u64;
        counters.untranslated += callouts as u64;
        counters.guest_bytes += insns.iter().map(|i| i.len() as u64).sum::<u64>();
        counters.host_bytes += parts[0].1 as u64;
        counters.cold_bytes += parts[1].1 as u64;
        if let Some(listing) = &mut self.listing {
            listing.insert(source.linear, parts);
        }
        if let Some(map) = &self.perf_map {
            let whose = if source.plane() == 2 { "user" } else { "kernel" };
            for ((at, len), part) in parts.into_iter().zip(["", "_cold"]) {
                let at = self.memory.address(at);
                map.add(at, len, format_args!("guest_{whose}_{:x}{part}", source.linear));
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let since = Instant::now();
        let evicted = self.table.clear();
        self.sites.clear();
        self.recover = Recover::default();
        self.tables.clear(&mut self.state);
        self.forget_blocks(evicted, since);
    }

    /// Forgets the oldest segment's blocks.
    fn make_room(&mut self) {
        let since = Instant::now();
        let segment = self.table.advance();
        for number in self.table.blocks_of(segment) {
            while let Some(cell) = self.table.take_incoming(number) {
                self.unlink(cell);
            }
        }
        self.recover.forget(self.table.hot(segment));
        let evicted = self.table.empty(segment);
        self.sites.clear();
        for block in &evicted {
            let entry = self.memory.address(block.entry) as u64;
            for jump in &block.jumps {
                if self.state.jump_goes(*jump, entry) {
                    self.tables.forget(&mut self.state, *jump);
                }
            }
        }
        self.forget_blocks(evicted, since);
    }

    /// Blocks to which nothing leads any more but what calls expect.
    fn forget_blocks(&mut self, mut blocks: Vec<Translated>, since: Instant) {
        self.forget_returns();
        self.reused = true;
        self.counters.evicted(blocks.len(), since);
        self.evicted.append(&mut blocks);
    }

    /// What calls expect leads to code that may not be there any more.
    fn forget_returns(&mut self) {
        let elsewhere = self.memory.address(self.thunks.jump) as u64;
        for plane in 0..PLANES {
            let space = self.state.expected[plane].space;
            self.state.forget_returns(plane, space, elsewhere);
        }
    }

    fn block(&self, code: Code) -> Option<&Translated> {
        self.table.get(code).filter(|block| block.alive)
    }

    /// The block had to go for want of room.
    pub fn is_evicted(&self, code: Code) -> bool {
        self.table.get(code).is_none()
    }

    /// Which translations are to run now: [`crate::Source::version`]. This may open windows.
    pub fn version(&mut self, ctx: &Ctx<'_>) -> Option<usize> {
        let plane = ctx.cpu.mmu.plane()?;
        let windows = self.windows.choose(&mut self.state, ctx.cpu, false);
        Some(version(plane, Width::of(ctx.cpu)?, windows))
    }

    /// The bytes that it was made of; nothing if it had to go.
    pub fn text(&self, code: Code) -> &[u8] {
        self.table.text(code).unwrap_or_default()
    }

    /// The block, which is what it was, can be run in this version.
    pub fn revive(&mut self, code: Code, version: usize) -> bool {
        let Some(block) = self.table.get_mut(code).filter(|b| b.version == version) else {
            return false;
        };
        block.alive = !block.removed;
        block.alive
    }

    /// The blocks are not to be run any more.
    pub fn remove(&mut self, codes: &[Code]) {
        self.suspend(codes);
        for code in codes {
            if let Some(block) = self.table.get_mut(*code) {
                block.removed = true;
            }
        }
    }

    /// The blocks are not to be run until they are revived.
    pub fn suspend(&mut self, codes: &[Code]) {
        let mut expected = false;
        for code in codes {
            let Some(block) = self.table.get_mut(*code) else { continue };
            self.counters.removed += u64::from(block.alive);
            block.alive = false;
            let (first, count) = block.cells;
            let entry = self.memory.address(block.entry) as u64;
            for jump in std::mem::take(&mut block.jumps) {
                if self.state.jump_goes(jump, entry) {
                    self.tables.forget(&mut self.state, jump);
                }
            }
            while let Some(cell) = self.table.take_incoming(code.number) {
                self.unlink(cell);
            }
            let mut cells = (first..first + count).filter_map(|cell| self.table.cell(cell));
            expected |= cells.any(|cell| cell.returned);
        }
        if expected {
            self.forget_returns();
        }
    }

    fn unlink(&mut self, cell: u32) {
        if let Some(Cell { jump, stub, .. }) = self.table.cell(cell) {
            let (jump, stub) = (*jump as usize, *stub as usize);
            self.point(jump, stub);
        }
    }

    /// The jump with its displacement at this offset goes to that one. No translated code runs.
    fn point(&mut self, jump: usize, to: usize) {
        native::write(&self.memory, jump, &Patch::distance(jump, to).to_le_bytes());
        self.changed = true;
    }

    /// The exit goes straight to this block, which is where it was seen to go.
    pub fn link(&mut self, link: Link, code: Code) {
        let Some(to) = self.block(code) else { return };
        let Some(exit) = self.table.linked(link) else { return };
        let Some(block) = self.table.block(exit.block) else { return };
        if usize::from(exit.plane) != plane(to.version)
            || (block.version == WINDOWED) != (to.version == WINDOWED)
            || block.width != to.width
            || block.page != to.page
            || exit.offset != to.start
            || !block.alive
        {
            return;
        }
        // Each cycle of jumps has one that does not go forward, each of returns a call that does
        // not.
        let forward = to.start > block.start || exit.returned;
        let live = to.vectors & !block.vectors == 0;
        let at = match (live, forward) {
            // Who returns is not known.
            _ if exit.returned && to.vectors != 0 => to.entry,
            (false, _) => to.entry,
            (true, false) => to.polled,
            (true, true) => to.unpolled,
        };
        self.point(exit.jump as usize, at);
        self.table.attach(link.cell, code.number);
        self.counters.links += 1;
    }

    /// Jumps like the one by which translated code was just left, to the present RIP, go to
    /// the block; `global` as for [`Self::run`].
    pub fn set_jump(&mut self, ctx: &Ctx<'_>, code: Code, global: bool) {
        let windows = self.windows.are_open();
        let Some(space) = space(ctx, &mut self.tables, global, windows) else { return };
        let (rip, Some(block)) = (ctx.cpu.rip, self.block(code)) else { return };
        if !block.fits(rip) {
            return;
        }
        // From one space to another: what is right under the first may not last as long.
        if space != self.state.space || self.now(ctx) != Some(block.version) {
            return;
        }
        let host = self.memory.address(block.entry) as u64;
        let page = rip.wrapping_sub(block.start.into());
        let number = self.tables.set_in(&mut self.state, rip, page, host);
        let Some(number) = number else { return };
        self.counters.jumps += 1;
        if let Some(block) = self.table.get_mut(code)
            && !block.jumps.contains(&number)
        {
            if block.jumps.len() >= MOST_JUMPS {
                block.jumps.retain(|n| self.state.jump_goes(*n, host));
            }
            // More than a few are rare; what is not noted must not outlive the block.
            if block.jumps.len() < MOST_JUMPS {
                block.jumps.push(number);
                self.table.grow(code.number, size_of::<u64>());
            } else {
                self.tables.forget(&mut self.state, number);
            }
        }
    }

    /// As [`Self::version`], of what there is.
    fn now(&self, ctx: &Ctx<'_>) -> Option<usize> {
        let (plane, width) = (ctx.cpu.mmu.plane()?, Width::of(ctx.cpu)?);
        Some(version(plane, width, self.windows.are_open()))
    }

    /// Runs from the present RIP, where `code` is the block; `None` if it cannot be run.
    /// `global`: RIP is in a page for which `Tags::global` holds.
    pub fn run(
        &mut self,
        ctx: &mut Ctx<'_>,
        code: Code,
        global: bool,
    ) -> Option<Result<Left, Stop>> {
        let block = self.block(code)?;
        let rip = ctx.cpu.rip;
        let width = Width::of(ctx.cpu) == Some(block.width);
        if self.now(ctx) != Some(block.version) || !width || !block.fits(rip) {
            return None;
        }
        let (at, vectors, plane) = (block.entry, block.vectors, plane(block.version));
        let page = rip.wrapping_sub(block.start.into());
        let space = space(ctx, &mut self.tables, global, self.windows.are_open())?;
        let (elsewhere, state) = (self.memory.address(self.thunks.jump) as u64, &mut *self.state);
        state.page = page;
        // The slot lives as long as the vCPU.
        state.poll = std::ptr::from_ref::<AtomicU32>(&ctx.cpu.slot.flags) as u64;
        self.windows.listen(state);
        let counters = &mut self.counters;
        counters.entries += 1;
        let mut env = Env {
            ctx,
            table: &self.table,
            sites: &mut self.sites,
            counters,
            tables: &mut self.tables,
            windows: &mut self.windows,
            elsewhere,
            autonomous: self.autonomous,
            stop: None,
        };
        levels::enter(state, &mut env, plane, space);
        callout::give(state, &mut env);
        if !callout::may_run(state, vectors) {
            return None;
        }
        if std::mem::take(&mut self.changed) {
            emit::serialize();
        }
        let code = self.memory.address(0);
        let _guard = env
            .windows
            .exist()
            .then(|| recover::Guard::new(code, self.memory.len(), &self.recover));
        let how = native::enter(&self.memory, self.thunks.enter, at, state, &mut env);
        if how != LEFT {
            return Some(env.stop.map_or(Ok(Left::Boundary), Err));
        }
        callout::take(state, &mut env);
        env.ctx.cpu.rip = state.rip;
        let (left, cause) = match state.exit {
            EXIT_JUMP => (Left::Jump, Cause::Jump),
            EXIT_POLL => (Left::Boundary, Cause::Poll),
            EXIT_BUDGET => (Left::Short, Cause::Budget),
            cell => (Left::Exit(self.table.link(cell)), Cause::Unlinked),
        };
        self.counters.exit(cause);
        Some(Ok(left))
    }
}

/// The first ones of a list, so many times.
fn repeat<T: Clone>(list: &[T], len: usize, times: usize) -> Vec<T> {
    let turn = list.iter().take(len);
    std::iter::repeat_n(turn, times).flatten().cloned().collect()
}

/// Where the cold parts begin in code memory of so many bytes: of real guests they are three
/// quarters, of vector code less.
fn split(len: usize) -> usize {
    (len / 10 * 3).next_multiple_of(4096)
}
