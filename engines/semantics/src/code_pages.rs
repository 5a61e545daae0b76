//! Pages that are written and executed by turns.
//!
//! A page from which code was decoded carries a mark, so that the next write to it is noticed:
//! then the mark goes, and what was decoded is compared before it is executed again. That
//! is right for code that is made once. A page where this happens again and again within
//! a moment (an instruction is patched before each call, data lies beside code) becomes
//! *checked* for a while: it carries no mark, writes to it are not noticed, and each block of it
//! compares its bytes whenever it is entered.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A page whose mark is lost so often, which takes some ten microseconds each time ...
const TURNS: u32 = 16;
/// ... within this time becomes checked ...
const MOMENT: Duration = Duration::from_millis(5);
/// ... for this time.
const TERM: Duration = Duration::from_millis(500);
/// Pages of which turns are counted, and pages that are checked, at most.
const PAGES: usize = 4096;

/// Of one VM.
#[derive(Debug, Default)]
pub struct CodePages {
    inner: Mutex<Inner>,
    /// How many are checked.
    checked: AtomicU32,
}

#[derive(Debug, Default)]
struct Inner {
    /// Since when, and how often, a page's mark was lost.
    turns: HashMap<u64, (Instant, u32)>,
    /// Since when a page is checked.
    checked: HashMap<u64, Instant>,
}

impl CodePages {
    /// The page (guest-physical) has lost its mark by a write.
    pub fn written(&self, page: u64) {
        self.written_at(page, Instant::now());
    }

    fn written_at(&self, page: u64, now: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.turns.len() >= PAGES {
            inner.turns.clear();
        }
        let turns = inner.turns.entry(page).or_insert((now, 0));
        if now.saturating_duration_since(turns.0) > MOMENT {
            *turns = (now, 0);
        }
        turns.1 = turns.1.saturating_add(1);
        if turns.1 >= TURNS && (inner.checked.len() < PAGES || inner.checked.contains_key(&page)) {
            inner.turns.remove(&page);
            inner.checked.insert(page, now);
            self.checked.store(inner.checked.len() as u32, Relaxed);
        }
    }

    /// Blocks of the page have to compare their bytes.
    pub fn is_checked(&self, page: u64) -> bool {
        // Whoever misses that the page has just become one gives it a mark, which is as good.
        if self.checked.load(Relaxed) == 0 {
            return false;
        }
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.checked.contains_key(&page)
    }

    /// True while there are checked pages.
    #[inline]
    pub fn any(&self) -> bool {
        self.checked.load(Relaxed) != 0
    }

    /// Pages that are not checked any more: what was decoded from them should be forgotten,
    /// though it stays right.
    pub fn expired(&self) -> Vec<u64> {
        self.expired_at(Instant::now())
    }

    fn expired_at(&self, now: Instant) -> Vec<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |since: &Instant| now.saturating_duration_since(*since) > TERM;
        let gone = inner.checked.iter().filter(|(_, since)| old(since)).map(|(page, _)| *page);
        let gone: Vec<u64> = gone.collect();
        for page in &gone {
            inner.checked.remove(page);
        }
        self.checked.store(inner.checked.len() as u32, Relaxed);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_checked_after_many_turns_in_a_moment() {
        let (pages, start) = (CodePages::default(), Instant::now());
        for n in 0..TURNS - 1 {
            pages.written_at(0x1000, start + MOMENT * n / TURNS);
            pages.written_at(0x2000, start + MOMENT * n * 2);
        }
        assert!(!pages.any());
        pages.written_at(0x1000, start + MOMENT);
        pages.written_at(0x2000, start + MOMENT * 100);
        assert!(pages.is_checked(0x1000) && !pages.is_checked(0x2000));
        assert_eq!(pages.expired_at(start + TERM), Vec::<u64>::new());
        assert_eq!(pages.expired_at(start + TERM + MOMENT * 2), [0x1000]);
        assert!(!pages.is_checked(0x1000) && !pages.any());
    }

    #[test]
    fn there_are_bounds() {
        let (pages, now) = (CodePages::default(), Instant::now());
        for page in 0..3 * PAGES as u64 {
            for _ in 0..TURNS {
                pages.written_at(page * 4096, now);
            }
        }
        let inner = pages.inner.lock().unwrap();
        assert!(inner.checked.len() <= PAGES && inner.turns.len() <= PAGES);
    }
}
