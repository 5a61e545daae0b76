//! Windows: parts of the guest's linear address space whose pages the host's MMU translates.
//!
//! A window spans the 4 GiB of linear addresses that have the same upper 32 bits. The pages that
//! a program uses there appear at the same distances from each other in a reservation of host
//! addresses (`windows/map.rs`). An access compares the upper half of its address with that of
//! the window that is expected, and adds the window's distance, which is a constant: there is no
//! table on its way. What is not there faults, and is then mapped, if the vCPU's TLB may hold
//! it, or accessed by way of the TLB.
//!
//! A window is a copy of entries of the vCPU's TLB like any other: what that tells to forget is
//! taken out (`soft_mmu::Changes`).

mod map;
mod pages;

use crate::{
    recover,
    state::{PLANES, State, TLB},
    width::Width,
};
use engine::Stats;
use pages::{PAGE, Pages, Run};
use semantics::{Cpu, mem::Mmu};
use std::time::{Duration, Instant};

/// For each vCPU.
pub const WINDOWS: usize = 4;
const USER: usize = 2;
const RSP: usize = 4;
/// The upper half of no canonical address.
const NOWHERE: u32 = 0x8000_0000;

/// A window as translated code sees it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Slot {
    /// The upper 32 bits of its linear addresses.
    pub high: u32,
    /// Those, negated.
    pub low: u32,
    /// Host address less linear address.
    pub delta: u64,
}

impl Slot {
    /// No address is in it.
    pub const NONE: Self = Self { high: NOWHERE, low: NOWHERE.wrapping_neg(), delta: 0 };
}

/// The window that an address has, if that is free: the stack's, that of what is in the same
/// 16 TiB, such as libraries, or that of anything else, such as programs and their heaps.
fn expected(address: u64, rsp: u64) -> usize {
    match address {
        _ if address >> 32 == rsp >> 32 => 0,
        _ if address >> 44 == rsp >> 44 => 2,
        _ => 1,
    }
}

/// What tells which window an access of a block will use.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    /// The general registers, where the block is about to run, and where its page is.
    pub registers: [u64; 16],
    pub page: u64,
    /// The windows' upper halves.
    pub highs: [u32; WINDOWS],
}

impl Expectation {
    pub fn window(&self, address: u64) -> usize {
        let open = self.highs.iter().position(|high| *high == upper(address));
        open.unwrap_or_else(|| expected(address, self.registers[RSP]))
    }
}

/// When windows are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Windowing {
    /// Never.
    #[default]
    Off,
    /// Where a program runs long enough for them to pay.
    Patient,
    /// At once and always, for tests.
    Eager,
}

/// An address space has run so long before windows are opened: others are too short-lived.
const PATIENCE: Duration = Duration::from_millis(3);
/// What windows may cost in each period, by faults and by what is taken out of them; if it is
/// more, they are closed, and stay so for a while, which is longer each time, or until another
/// address space comes. What they gain is more than that where there is much to gain.
const SPEND: Duration = Duration::from_millis(6);
/// Of a fault, what the host takes for the signal, and for its own fault when the page is accessed
/// first.
const SIGNAL: Duration = Duration::from_micros(3);
const PERIOD: Duration = Duration::from_millis(50);
const REST: Duration = Duration::from_millis(20);
const LONGEST_REST: Duration = Duration::from_millis(160);
/// After so many times the last rest without another, the next one is short again.
const CALM: u32 = 4;
/// What is in no window may replace one so often.
const REPLACES: Duration = Duration::from_millis(20);
/// How often the time is asked on ways that are taken often.
const LOOKS: u32 = 16;
/// Runs at most that are shown when windows are opened.
const FIRST: usize = 1024;
/// Pages around one that faulted that are shown with it.
const AROUND: u64 = 16;

/// One vCPU's.
#[derive(Debug)]
pub struct Windows {
    pages: Option<Pages>,
    how: Windowing,
    /// User code runs in the version that uses them.
    open: bool,
    /// When there were none last.
    cleared: Instant,
    budget: Budget,
    /// Translated code is to tell what is in no window, and since when it may not.
    listens: bool,
    replaced: Instant,
    looks: u32,
    awaited: Option<Awaited>,
    pub counters: WindowCounters,
}

/// An access by a window that the guest had nothing for, either.
#[derive(Clone, Copy, Debug)]
pub struct Awaited {
    /// The instruction, to which the guest returns if it means the access to succeed.
    pub rip: u64,
    pub window: usize,
    pub linear: u64,
    pub write: bool,
}

/// What windows may cost.
#[derive(Debug)]
struct Budget {
    /// The period under way, and what was spent in it.
    since: Instant,
    spent: Duration,
    /// Until when there are no windows, and for how long it is the next time.
    until: Option<Instant>,
    rest: Duration,
}

impl Budget {
    fn new(since: Instant) -> Self {
        Self { since, spent: Duration::ZERO, until: None, rest: REST }
    }

    /// Spends some, now; false if there is none left, from now on for a while.
    fn spend(&mut self, cost: Duration, now: Instant) -> bool {
        self.spent += cost;
        if self.spent <= SPEND {
            return true;
        }
        if now.duration_since(self.since) >= PERIOD {
            (self.since, self.spent) = (now, Duration::ZERO);
            return true;
        }
        let calm = self.until.is_none_or(|until| now >= until + CALM * self.rest);
        self.rest = if calm { REST } else { (2 * self.rest).min(LONGEST_REST) };
        self.until = Some(now + self.rest);
        (self.since, self.spent) = (now + self.rest, Duration::ZERO);
        false
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct WindowCounters {
    pub opened: u64,
    pub windows: u64,
    pub faults: u64,
    pub shown: u64,
    pub hidden: u64,
    pub exhausted: u64,
}

impl WindowCounters {
    pub fn report(&self, stats: &mut Stats) {
        stats
            .group("windows")
            .count("address spaces", self.opened)
            .count("windows opened", self.windows)
            .count("faults", self.faults)
            .count("pages shown", self.shown)
            .count("pages hidden", self.hidden)
            .count("closed for their cost", self.exhausted);
    }
}

impl Windows {
    /// None if there is no room for them, either.
    pub fn new(how: Windowing) -> Self {
        let wanted = how != Windowing::Off && recover::install();
        let now = Instant::now();
        Self {
            pages: wanted.then(Pages::new).flatten(),
            how,
            open: false,
            cleared: now,
            budget: Budget::new(now),
            listens: true,
            replaced: now,
            looks: 0,
            awaited: None,
            counters: WindowCounters::default(),
        }
    }

    pub fn exist(&self) -> bool {
        self.pages.is_some()
    }

    /// User code runs in the version that uses them.
    #[inline]
    pub fn are_open(&self) -> bool {
        self.open
    }

    /// Before code goes on that may be a user's: whether it uses windows, which may be opened
    /// now. `seldom`: on a way that is not taken often, and may take its time.
    #[inline]
    pub fn choose(&mut self, state: &mut State, cpu: &Cpu, seldom: bool) -> bool {
        if self.pages.is_none() {
            return false;
        }
        let user = cpu.mmu.plane() == Some(USER) && Width::of(cpu) == Some(Width::Wide);
        match (user, self.open) {
            (true, true) if state.window_missed != 0 => self.missed(state, &cpu.mmu),
            (true, false) if !self.waits(seldom) => self.open(state, &cpu.mmu),
            _ => {}
        }
        self.open
    }

    /// Translated code, about to run, tells what is in no window or not: it finds something to
    /// look at then.
    pub fn listen(&self, state: &mut State) {
        state.window_poll = if self.listens { state.always() } else { state.poll };
    }

    /// It would not pay now.
    fn waits(&mut self, seldom: bool) -> bool {
        if self.how == Windowing::Eager {
            return false;
        }
        self.looks = self.looks.wrapping_add(1);
        if !seldom && !self.looks.is_multiple_of(LOOKS) {
            return true;
        }
        let now = Instant::now();
        now.duration_since(self.cleared) < PATIENCE
            || self.budget.until.is_some_and(|until| now < until)
    }

    /// The linear address that an access by a window meant.
    pub fn linear(&self, state: &State, host: u64) -> Option<(usize, u64)> {
        let (window, offset) = self.pages.as_ref()?.find(host)?;
        let high = state.windows.get(window)?.high;
        (high != NOWHERE).then_some((window, u64::from(high) << 32 | offset as u64))
    }

    /// What the vCPU's TLB holds of the page appears in its window, and what it holds of pages
    /// around; false if it cannot, above all if the address belongs to the window no more.
    pub fn show(
        &mut self,
        state: &State,
        window: usize,
        mmu: &Mmu,
        linear: u64,
        write: bool,
    ) -> bool {
        if !self.open || state.windows.get(window).is_none_or(|slot| slot.high != upper(linear)) {
            return false;
        }
        let Some(pages) = &mut self.pages else { return false };
        if held(mmu, linear).is_none_or(|run| write && !run.writable) {
            return false;
        }
        let page = linear & !(PAGE - 1);
        let first = page & !(AROUND * PAGE - 1);
        let around = (0..AROUND).map(|n| first + n * PAGE);
        let new = around
            .filter(|other| *other == page || !pages.shows(window, *other & 0xffff_ffff))
            .filter_map(|other| held(mmu, other));
        let mut shown = false;
        for run in pages::runs(new, |host| goes_on(mmu, host)) {
            let here = (run.at..run.at + run.len).contains(&(page & 0xffff_ffff));
            let done = pages.show(window, run);
            self.counters.shown += if done { run.len / PAGE } else { 0 };
            shown |= here && done;
        }
        shown
    }

    /// What is not as it was is in no window any more. What the vCPU's TLB has no room for, it
    /// still tells.
    pub fn forget(&mut self, state: &mut State, mmu: &Mmu) {
        if !self.exist() {
            return;
        }
        let changes = mmu.tlb_changes();
        if changes.all || changes.local {
            self.clear(state);
            self.budget = Budget::new(self.cleared);
            return;
        }
        let Some(pages) = self.pages.as_mut().filter(|_| self.open) else { return };
        if changes.pages().is_empty() && changes.revoked().is_empty() {
            return;
        }
        let (began, before) = (Instant::now(), self.counters.hidden);
        for linear in changes.pages() {
            let (high, at) = (upper(*linear), linear & 0xffff_f000);
            for window in (0..WINDOWS).filter(|n| state.windows[*n].high == high) {
                self.counters.hidden += u64::from(pages.hide(window, at));
            }
        }
        for page in changes.revoked() {
            self.counters.hidden += pages.hide_frame(mmu.host_address(*page));
        }
        if self.counters.hidden != before {
            self.spend(state, began, Duration::ZERO);
        }
    }

    /// An access by a window faulted, and was looked at from `began` on. False if there are to be
    /// no windows for a while.
    pub fn faulted(&mut self, state: &mut State, began: Instant) -> bool {
        self.counters.faults += 1;
        self.spend(state, began, SIGNAL)
    }

    /// What faulted is refused: the guest has nothing there, either.
    pub fn vain(&mut self, awaited: Option<Awaited>) {
        self.awaited = awaited;
    }

    /// What was refused when the instruction at `rip` ran last, if windows are as they were.
    pub fn answered(&mut self, rip: u64) -> Option<Awaited> {
        self.awaited.filter(|awaited| self.open && awaited.rip == rip)?;
        self.awaited.take()
    }

    fn spend(&mut self, state: &mut State, began: Instant, more: Duration) -> bool {
        let now = Instant::now();
        let cost = now.duration_since(began) + more;
        if self.how == Windowing::Eager || self.budget.spend(cost, now) {
            return true;
        }
        self.counters.exhausted += 1;
        self.clear(state);
        // To the other version.
        state.poll = state.always();
        false
    }

    /// Opens windows for what the program has used, and shows it there.
    fn open(&mut self, state: &mut State, mmu: &Mmu) {
        self.open = true;
        self.listens = true;
        self.counters.opened += 1;
        let used = used(state, mmu);
        let high = |linear: &u64| upper(*linear);
        let mut highs: Vec<(usize, u32)> = used
            .chunk_by(|a, b| high(a) == high(b))
            .map(|pages| (pages.len(), high(&pages[0])))
            .collect();
        highs.sort_unstable_by(|a, b| b.cmp(a));
        let stack = upper(state.registers()[RSP]);
        highs.retain(|(_, high)| *high != stack);
        highs.insert(0, (0, stack));
        let mut left = FIRST;
        for (_, high) in highs.into_iter().take(WINDOWS) {
            left = self.open_filled(state, mmu, high, &used, left);
        }
    }

    /// Opens a window, and shows in it those of the pages that belong there: so many runs.
    fn open_filled(
        &mut self,
        state: &mut State,
        mmu: &Mmu,
        high: u32,
        used: &[u64],
        mut left: usize,
    ) -> usize {
        let Some(window) = self.open_one(state, high) else { return left };
        let Some(pages) = &mut self.pages else { return left };
        let inside = used.iter().filter(|linear| upper(**linear) == high);
        let held = inside.filter_map(|linear| held(mmu, *linear));
        for run in pages::runs(held, |host| goes_on(mmu, host)) {
            if left == 0 || !pages.show(window, run) {
                break;
            }
            left -= 1;
            self.counters.shown += run.len / PAGE;
        }
        left
    }

    /// Opens a window in a free place, if there is one.
    fn open_one(&mut self, state: &mut State, high: u32) -> Option<usize> {
        let address = u64::from(high) << 32;
        if !is_user(address) || state.windows.iter().any(|window| window.high == high) {
            return None;
        }
        let free = |n: &usize| state.windows[*n].high == NOWHERE;
        let wanted = expected(address, state.registers()[RSP]);
        let window = [wanted].into_iter().chain((1..WINDOWS).rev()).find(free)?;
        let pages = self.pages.as_ref()?;
        let delta = pages.address(window).wrapping_sub(address);
        state.windows[window] = Slot { high, low: high.wrapping_neg(), delta };
        self.counters.windows += 1;
        Some(window)
    }

    /// Something was in no window.
    fn missed(&mut self, state: &mut State, mmu: &Mmu) {
        if !self.listens {
            self.looks = self.looks.wrapping_add(1);
            if self.looks.is_multiple_of(LOOKS) && self.replaced.elapsed() >= REPLACES {
                self.listens = true;
            }
            return;
        }
        let missed = std::mem::take(&mut state.window_missed);
        let high = upper(missed);
        let free = state.windows.iter().any(|window| window.high == NOWHERE);
        let known = state.windows.iter().any(|window| window.high == high);
        if !free || known || !is_user(missed) {
            (self.listens, self.replaced) = (false, Instant::now());
        }
        if known || !is_user(missed) {
            return;
        }
        if !free {
            // The last takes turns.
            self.close(state, WINDOWS - 1);
        }
        let used = used(state, mmu);
        self.open_filled(state, mmu, high, &used, FIRST);
    }

    /// There are no windows, until some are opened again.
    pub fn clear(&mut self, state: &mut State) {
        if !self.exist() {
            return;
        }
        if self.open {
            (0..WINDOWS).for_each(|window| self.close(state, window));
            self.open = false;
        }
        self.cleared = Instant::now();
    }

    fn close(&mut self, state: &mut State, window: usize) {
        state.windows[window] = Slot::NONE;
        if let Some(pages) = &mut self.pages {
            pages.empty(window);
        }
    }
}

/// The upper half of an address.
fn upper(linear: u64) -> u32 {
    (linear >> 32) as u32
}

/// A canonical address in the lower half.
fn is_user(linear: u64) -> bool {
    linear >> 47 == 0
}

/// Pages that translated code's TLB has of the user's, in their order.
fn used(state: &State, mmu: &Mmu) -> Vec<u64> {
    let tlb = &state.tlb[USER % PLANES];
    let positions = state.filled.local().iter().map(|position| usize::from(*position));
    let user = positions.filter(|position| position / TLB == USER);
    let pages = user.map(|position| tlb.read[position % TLB].wrapping_neg());
    let known = |page: &u64| is_user(*page) && mmu.held(*page).is_some();
    let mut pages: Vec<u64> = pages.filter(known).collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// What the vCPU's TLB holds of a page.
fn held(mmu: &Mmu, linear: u64) -> Option<Run> {
    let held = mmu.held(linear).filter(|held| held.read)?;
    let (at, host) = (linear & 0xffff_f000, mmu.host_address(held.page));
    Some(Run { at, host, len: PAGE, writable: held.write })
}

/// What is at a host address is part of the same mapping as the page before.
fn goes_on(mmu: &Mmu, host: u64) -> bool {
    let end = mmu.mapped_until(host);
    end.is_some() && end == mmu.mapped_until(host.wrapping_sub(PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::{Change, GuestMem, Memfd};

    /// When windows may be opened again after `cost`, spent at once.
    fn closed(budget: &mut Budget, cost: Duration, now: Instant) -> Option<Duration> {
        let open = budget.spend(cost, now);
        (!open).then(|| budget.until.unwrap().duration_since(now))
    }

    #[test]
    fn what_costs_much_closes_windows_for_longer_each_time() {
        let mut now = Instant::now();
        let mut budget = Budget::new(now);
        let much = SPEND + Duration::from_nanos(1);
        assert_eq!(closed(&mut budget, SPEND, now), None);
        for rest in [REST, 2 * REST, 4 * REST, LONGEST_REST, LONGEST_REST] {
            assert_eq!(closed(&mut budget, much, now), Some(rest));
            now += rest;
        }
        // After a while without, it is as at first.
        now += CALM * LONGEST_REST;
        assert_eq!(closed(&mut budget, much, now), None);
        assert_eq!(closed(&mut budget, much, now), Some(REST));
    }

    #[test]
    fn what_was_spent_long_ago_does_not_count() {
        let mut now = Instant::now();
        let mut budget = Budget::new(now);
        for _ in 0..100 {
            assert_eq!(closed(&mut budget, SPEND / 2, now), None);
            now += PERIOD;
        }
    }

    #[test]
    fn each_fault_is_paid_for() {
        let mut state = crate::region::Region::new().unwrap();
        state.index_mask = crate::tlb::INDEX_MASK;
        let mut windows = Windows::new(Windowing::Patient);
        windows.open = true;
        // Time that passes meanwhile counts, too: at most so many.
        let most = (SPEND.as_nanos() / SIGNAL.as_nanos()) as u64 + 1;
        while windows.open && windows.counters.faults <= most {
            windows.faulted(&mut state, Instant::now());
        }
        assert!(!windows.open && windows.counters.exhausted == 1);
    }

    #[test]
    fn only_in_a_window_that_is_open_does_a_page_appear() {
        let ram = Memfd::new(1 << 20).unwrap();
        let memory = GuestMem::new(1 << 20).unwrap();
        let slot =
            guest_mem::Slot { id: 0, gpa: 0, mem: ram, offset: 0, len: 1 << 20, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        let mut mmu = Mmu::new(&memory);
        assert!(mmu.fill(0x5000, true));
        let mut state = crate::region::Region::new().unwrap();
        state.index_mask = crate::tlb::INDEX_MASK;
        state.windows.fill(Slot::NONE);
        let mut windows = Windows::new(Windowing::Patient);
        windows.open = true;
        assert_eq!(windows.open_one(&mut state, 0), Some(0));
        assert!(windows.show(&state, 0, &mmu, 0x5000, true));
        assert!(!windows.show(&state, 1, &mmu, 0x5000, true), "it belongs to the other");
        windows.clear(&mut state);
        assert!(!windows.show(&state, 0, &mmu, 0x5000, true));
        assert!(!windows.pages.as_ref().unwrap().shows(0, 0x5000));
    }

    #[test]
    fn what_the_guest_answers_is_known_once() {
        let mut windows = Windows::new(Windowing::Patient);
        windows.open = true;
        windows.vain(Some(Awaited { rip: 7, window: 0, linear: 0x5000, write: true }));
        assert!(windows.answered(8).is_none(), "it went elsewhere");
        assert_eq!(windows.answered(7).map(|awaited| awaited.linear), Some(0x5000));
        assert!(windows.answered(7).is_none(), "once");
    }
}
