//! What appears in windows: which pages, and where a frame is.

use super::{
    WINDOWS,
    map::{Reserve, SPAN},
};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

pub const PAGE: u64 = 4096;
/// Mappings that a vCPU's windows are made of, and those of all vCPUs of the process. Linux
/// allows a process 65,530 (vm.max_map_count).
const MOST: usize = 8192;
const MOST_OF_ALL: usize = 48_000;
/// Pages that are shown at most: what is kept of each is not small.
const MOST_PAGES: usize = 1 << 15;
/// What showing or hiding something adds at most: the parts before and behind it.
const EACH: usize = 2;
/// So many pages are taken out one by one.
const FEW: usize = 64;
/// Mappings in all windows of the process.
static ALL: AtomicUsize = AtomicUsize::new(0);

/// Pages that follow each other both in a window and in host memory, with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Offset in the window.
    pub at: u64,
    /// Host address of what it shows.
    pub host: u64,
    pub len: u64,
    pub writable: bool,
}

impl Run {
    /// This one and the page that is next, if that goes on where this one ends.
    fn joined(self, next: Self) -> Option<Self> {
        let adjoins = self.at + self.len == next.at
            && self.host.wrapping_add(self.len) == next.host
            && self.writable == next.writable;
        adjoins.then_some(Self { len: self.len + next.len, ..self })
    }
}

/// Joins what may be, of pages in their order; `goes_on` says whether a run may continue with the
/// page at this host address.
pub fn runs(pages: impl IntoIterator<Item = Run>, goes_on: impl Fn(u64) -> bool) -> Vec<Run> {
    let mut runs = Vec::<Run>::new();
    for page in pages {
        let joined = runs.last().and_then(|run| run.joined(page)).filter(|_| goes_on(page.host));
        match (joined, runs.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => runs.push(page),
        }
    }
    runs
}

#[derive(Debug)]
pub struct Pages {
    reserve: Reserve,
    /// In each window, by the offset, host addresses of what is shown.
    shown: [HashMap<u64, u64>; WINDOWS],
    /// Where the page at a host address is shown: windows, and offsets in them.
    places: HashMap<u64, Vec<(usize, u64)>>,
    /// How many mappings each window may consist of.
    mappings: [usize; WINDOWS],
}

impl Pages {
    pub fn new() -> Option<Self> {
        Some(Self {
            reserve: Reserve::new(WINDOWS).ok()?,
            shown: Default::default(),
            places: HashMap::new(),
            mappings: [0; WINDOWS],
        })
    }

    /// Host address of a window's beginning.
    pub fn address(&self, window: usize) -> u64 {
        self.reserve.address(window)
    }

    /// The window and the offset in it of a host address.
    pub fn find(&self, host: u64) -> Option<(usize, usize)> {
        self.reserve.find(host)
    }

    pub fn shows(&self, window: usize, at: u64) -> bool {
        self.shown.get(window).is_some_and(|shown| shown.contains_key(&at))
    }

    /// The pages appear in the window, if there may be so many mappings.
    pub fn show(&mut self, window: usize, run: Run) -> bool {
        let pages = self.shown.iter().map(HashMap::len).sum::<usize>();
        if self.mappings.iter().sum::<usize>() + EACH > MOST || pages > MOST_PAGES {
            (0..WINDOWS).for_each(|window| self.empty(window));
        }
        if window >= WINDOWS || ALL.load(Relaxed) + EACH > MOST_OF_ALL {
            return false;
        }
        let (at, len) = (run.at as usize, run.len as usize);
        self.count(window);
        if !self.reserve.show(window, at, len, run.host, run.writable) {
            // It may have been there with other rights.
            self.reserve.hide(window, at, len);
            for n in 0..run.len / PAGE {
                self.left(window, run.at + n * PAGE);
            }
            return false;
        }
        for n in 0..run.len / PAGE {
            let (at, host) = (run.at + n * PAGE, run.host.wrapping_add(n * PAGE));
            if self.shown[window].get(&at) == Some(&host) {
                continue;
            }
            self.left(window, at);
            self.shown[window].insert(at, host);
            self.places.entry(host).or_default().push((window, at));
        }
        true
    }

    fn count(&mut self, window: usize) {
        self.mappings[window] += EACH;
        ALL.fetch_add(EACH, Relaxed);
    }

    /// The window does not show what it showed there.
    fn left(&mut self, window: usize, at: u64) -> bool {
        let Some(host) = self.shown.get_mut(window).and_then(|shown| shown.remove(&at)) else {
            return false;
        };
        if let Some(places) = self.places.get_mut(&host) {
            places.retain(|place| *place != (window, at));
            if places.is_empty() {
                self.places.remove(&host);
            }
        }
        true
    }

    /// The page is not in the window any more; whether it was.
    pub fn hide(&mut self, window: usize, at: u64) -> bool {
        let was = self.left(window, at);
        if was {
            self.count(window);
            self.reserve.hide(window, at as usize, PAGE as usize);
        }
        was
    }

    /// What is at a host address is in no window any more; in how many places it was.
    pub fn hide_frame(&mut self, host: u64) -> u64 {
        let places = self.places.get(&host).cloned().unwrap_or_default();
        places.into_iter().map(|(window, at)| u64::from(self.hide(window, at))).sum()
    }

    /// The window shows nothing any more.
    pub fn empty(&mut self, window: usize) {
        let Some(shown) = self.shown.get_mut(window).map(std::mem::take) else { return };
        if shown.len() > FEW {
            self.reserve.hide(window, 0, SPAN);
        } else {
            shown.keys().for_each(|at| self.reserve.hide(window, *at as usize, PAGE as usize));
        }
        self.places.retain(|_, places| {
            places.retain(|place| place.0 != window);
            !places.is_empty()
        });
        ALL.fetch_sub(std::mem::take(&mut self.mappings[window]), Relaxed);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        ALL.fetch_sub(self.mappings.iter().sum(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::map::tests::shared, *};

    fn page(at: u64, host: u64, writable: bool) -> Run {
        Run { at: at * PAGE, host: host * PAGE, len: PAGE, writable }
    }

    #[test]
    fn what_is_shown_is_bounded_and_is_found_by_its_frame() {
        let mut pages = Pages::new().unwrap();
        let len = (MOST_PAGES as u64 + 1) * PAGE;
        let host = shared(len as usize);
        let all = Run { at: 0, host, len, writable: true };
        assert!(pages.show(1, all));
        assert!(pages.shows(1, 0) && pages.shows(1, len - PAGE));
        pages.hide_frame(host + PAGE);
        assert!(pages.shows(1, 0) && !pages.shows(1, PAGE));
        // One more than the most is room for one.
        assert!(pages.show(2, Run { len: PAGE, ..all }));
        assert!(pages.shows(1, 0) && pages.shows(2, 0));
        assert!(pages.show(3, Run { len: PAGE, ..all }));
        assert!(!pages.shows(1, 0) && !pages.shows(2, 0) && pages.shows(3, 0));
        pages.hide_frame(host);
        assert!(!pages.shows(3, 0) && pages.places.is_empty());
    }

    #[test]
    fn runs_end_where_anything_differs() {
        let pages = [
            page(1, 11, true),
            page(2, 12, true),
            page(3, 13, false),
            page(4, 14, false),
            page(6, 16, false),
            page(7, 18, false),
            page(8, 19, false),
            page(9, 20, false),
        ];
        let found = runs(pages, |host| host != 20 * PAGE);
        let lens: Vec<u64> = found.iter().map(|run| run.len / PAGE).collect();
        assert_eq!(lens, [2, 2, 1, 2, 1]);
        assert_eq!(found[3], Run { len: 2 * PAGE, ..page(7, 18, false) });
    }
}
