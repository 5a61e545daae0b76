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

use crate::{recover, state::State};
use engine::Stats;
use map::Reserve;
use semantics::mem::Mmu;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// For each vCPU.
pub const WINDOWS: usize = 4;
/// Pages in all of a vCPU's windows, and in those of all vCPUs of the process: each may take
/// two of the mappings that Linux allows a process (vm.max_map_count, 65,530).
const MOST: usize = 4096;
const MOST_OF_ALL: usize = 24_000;
/// Pages in all windows of the process.
static ALL: AtomicUsize = AtomicUsize::new(0);
/// So many pages are taken out one by one.
const FEW: usize = 64;
const PAGE: u64 = 4096;
const RSP: usize = 4;
/// The upper half of no canonical address.
const NOWHERE: u64 = 0x8000_0000;

/// A window as translated code sees it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Slot {
    /// The upper 32 bits of its linear addresses.
    pub high: u64,
    /// Those, negated.
    pub low: u64,
    /// Host address less linear address.
    pub delta: u64,
}

impl Slot {
    /// No address is in it.
    pub const NONE: Self = Self { high: NOWHERE, low: NOWHERE.wrapping_neg(), delta: 0 };
}

/// The window that an address has, if that is free: the stack's, that of what is in the same
/// 16 TiB, such as libraries, or that of anything else, such as programs and their heaps.
pub fn expected(address: u64, rsp: u64) -> usize {
    match address {
        _ if address >> 32 == rsp >> 32 => 0,
        _ if address >> 44 == rsp >> 44 => 2,
        _ => 1,
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
/// Faults at most in each period; with more, windows are closed to its end. A fault costs some
/// 10 us, with what follows from it.
const FAULTS: u64 = 2048;
const PERIOD: Duration = Duration::from_millis(500);

/// One vCPU's.
#[derive(Debug)]
pub struct Windows {
    reserve: Option<Reserve>,
    how: Windowing,
    /// The pages in each, with the host addresses of what they show.
    pages: [HashMap<u64, u64>; WINDOWS],
    /// Where the page at a host address is shown: windows, and pages there.
    shown: HashMap<u64, Vec<(usize, u64)>>,
    /// When they were last cleared.
    cleared: Instant,
    /// The period under way, and the number of faults when it began.
    period: (Instant, u64),
    pub counters: WindowCounters,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct WindowCounters {
    pub opened: u64,
    pub faults: u64,
    pub shown: u64,
    pub closed: u64,
}

impl WindowCounters {
    pub fn report(&self, stats: &mut Stats) {
        stats
            .group("windows")
            .count("opened", self.opened)
            .count("closed", self.closed)
            .count("faults", self.faults)
            .count("pages shown", self.shown);
    }
}

impl Windows {
    /// None if there is no room for them, either.
    pub fn new(how: Windowing) -> Self {
        let wanted = how != Windowing::Off && recover::install();
        let now = Instant::now();
        Self {
            reserve: wanted.then(|| Reserve::new(WINDOWS).ok()).flatten(),
            how,
            pages: Default::default(),
            shown: HashMap::new(),
            cleared: now,
            period: (now, 0),
            counters: WindowCounters::default(),
        }
    }

    pub fn exist(&self) -> bool {
        self.reserve.is_some()
    }

    /// The linear address that an access by a window meant.
    pub fn linear(&self, state: &State, host: u64) -> Option<(usize, u64)> {
        let (window, offset) = self.reserve.as_ref()?.find(host)?;
        let high = state.windows.get(window)?.high;
        (high != NOWHERE).then_some((window, high << 32 | offset as u64))
    }

    /// What the vCPU's TLB holds of the page appears in its window; false if it cannot.
    pub fn show(&mut self, window: usize, mmu: &Mmu, linear: u64, write: bool) -> bool {
        let Some(held) = mmu.held(linear).filter(|held| held.read && (held.write || !write)) else {
            return false;
        };
        if self.pages.iter().map(HashMap::len).sum::<usize>() >= MOST {
            (0..WINDOWS).for_each(|window| self.empty(window));
        }
        let (Some(reserve), Some(pages)) = (&self.reserve, self.pages.get_mut(window)) else {
            return false;
        };
        let page = linear & 0xffff_f000;
        if !pages.contains_key(&page) && ALL.load(Relaxed) >= MOST_OF_ALL {
            return false;
        }
        let host = mmu.host_address(held.page);
        let shown = reserve.show(window, page as usize, host, held.write);
        if shown {
            self.counters.shown += 1;
            let old = pages.insert(page, host);
            ALL.fetch_add(usize::from(old.is_none()), Relaxed);
            if let Some(old) = old.filter(|old| *old != host) {
                self.not_shown(window, page, old);
            }
            let places = self.shown.entry(host).or_default();
            if !places.contains(&(window, page)) {
                places.push((window, page));
            }
        }
        shown
    }

    fn not_shown(&mut self, window: usize, page: u64, host: u64) {
        if let Some(places) = self.shown.get_mut(&host) {
            places.retain(|place| *place != (window, page));
            if places.is_empty() {
                self.shown.remove(&host);
            }
        }
    }

    /// What is not as it was is in no window any more. What the vCPU's TLB has no room for, it
    /// still tells.
    pub fn forget(&mut self, state: &mut State, mmu: &Mmu) {
        if !self.exist() {
            return;
        }
        let changes = mmu.tlb_changes();
        if changes.all || changes.local {
            return self.clear(state);
        }
        for linear in changes.pages() {
            let (high, page) = (linear >> 32, linear & 0xffff_f000);
            for window in (0..WINDOWS).filter(|n| state.windows[*n].high == high) {
                self.hide(window, page);
            }
        }
        for page in changes.revoked() {
            let places = self.shown.get(&mmu.host_address(*page)).cloned();
            for (window, page) in places.unwrap_or_default() {
                self.hide(window, page);
            }
        }
    }

    /// Before a program goes on: opens a window for what was in none.
    #[inline]
    pub fn prepare(&mut self, state: &mut State) {
        if state.window_missed != 0 {
            self.missed(state);
        }
    }

    fn missed(&mut self, state: &mut State) {
        let missed = std::mem::take(&mut state.window_missed);
        let high = missed >> 32;
        // The next misses ask again.
        if !is_user(missed)
            || state.windows.iter().any(|window| window.high == high)
            || !self.exist()
            || self.waits()
        {
            return;
        }
        let wanted = expected(missed, state.gpr[RSP]);
        // The last is for those whose place is taken.
        let free = state.windows[wanted].high == NOWHERE;
        let window = if free { wanted } else { WINDOWS - 1 };
        self.close(state, window);
        self.open(state, window, high);
    }

    /// It would not pay now.
    fn waits(&self) -> bool {
        let spent = self.counters.faults - self.period.1 > FAULTS;
        self.how == Windowing::Patient
            && (self.cleared.elapsed() < PATIENCE || spent && self.period.0.elapsed() < PERIOD)
    }

    /// An access by a window faulted. False if there are to be none for a while.
    pub fn fault(&mut self, state: &mut State) -> bool {
        self.counters.faults += 1;
        if self.counters.faults - self.period.1 <= FAULTS || self.how == Windowing::Eager {
            return true;
        }
        if self.period.0.elapsed() >= PERIOD {
            self.period = (Instant::now(), self.counters.faults);
            return true;
        }
        self.clear(state);
        false
    }

    fn open(&mut self, state: &mut State, window: usize, high: u64) {
        if let Some(reserve) = &self.reserve {
            self.counters.opened += 1;
            let delta = reserve.address(window).wrapping_sub(high << 32);
            state.windows[window] = Slot { high, low: high.wrapping_neg(), delta };
        }
    }

    /// The page is not in the window any more.
    fn hide(&mut self, window: usize, page: u64) {
        if let (Some(host), Some(reserve)) = (self.pages[window].remove(&page), &self.reserve) {
            reserve.hide(window, page as usize, PAGE as usize);
            ALL.fetch_sub(1, Relaxed);
            self.not_shown(window, page, host);
        }
    }

    /// There are no windows, until some are opened again.
    pub fn clear(&mut self, state: &mut State) {
        if !self.exist() {
            return;
        }
        if state.windows.iter().any(|window| window.high != NOWHERE) {
            (0..WINDOWS).for_each(|window| self.close(state, window));
        }
        self.cleared = Instant::now();
    }

    fn close(&mut self, state: &mut State, window: usize) {
        if state.windows[window].high != NOWHERE {
            self.counters.closed += 1;
        }
        state.windows[window] = Slot::NONE;
        self.empty(window);
    }

    fn empty(&mut self, window: usize) {
        let Some(reserve) = &self.reserve else { return };
        let pages = std::mem::take(&mut self.pages[window]);
        if pages.len() > FEW {
            reserve.hide(window, 0, map::SPAN);
        } else {
            pages.keys().for_each(|page| reserve.hide(window, *page as usize, PAGE as usize));
        }
        ALL.fetch_sub(pages.len(), Relaxed);
        pages.into_iter().for_each(|(page, host)| self.not_shown(window, page, host));
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        ALL.fetch_sub(self.pages.iter().map(HashMap::len).sum(), Relaxed);
    }
}

/// A canonical address in the lower half.
fn is_user(linear: u64) -> bool {
    linear >> 47 == 0
}
