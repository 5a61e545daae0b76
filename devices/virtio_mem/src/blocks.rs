//! Which blocks of the region are plugged.

use std::ops::Range;

/// Bytes of a block: what Linux can give back one by one (the size of its large pages).
pub const BLOCK: u64 = 2 << 20;

/// What the blocks of a range have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Plugged,
    Unplugged,
    Mixed,
}

/// One flag for each block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    plugged: Vec<bool>,
    count: u64,
}

impl Blocks {
    /// None of `count` blocks is plugged.
    pub fn new(count: u64) -> Self {
        Self { plugged: vec![false; usize::try_from(count).unwrap_or(0)], count: 0 }
    }

    /// How many are plugged.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn part(&self, range: &Range<u64>) -> Option<&[bool]> {
        let start = usize::try_from(range.start).ok()?;
        let end = usize::try_from(range.end).ok()?;
        self.plugged.get(start..end).filter(|part| !part.is_empty())
    }

    /// `None` if there are no such blocks.
    pub fn state(&self, range: &Range<u64>) -> Option<State> {
        let part = self.part(range)?;
        let plugged = part.iter().filter(|plugged| **plugged).count();
        Some(match plugged {
            0 => State::Unplugged,
            n if n == part.len() => State::Plugged,
            _ => State::Mixed,
        })
    }

    /// Makes all of them so; the range is one that [`Self::state`] knows.
    pub fn set(&mut self, range: &Range<u64>, plugged: bool) {
        let (start, end) = (range.start as usize, range.end as usize);
        for flag in self.plugged.get_mut(start..end).unwrap_or_default() {
            self.count += u64::from(plugged && !*flag);
            self.count -= u64::from(!plugged && *flag);
            *flag = plugged;
        }
    }

    /// Each run of blocks that are alike.
    pub fn runs(&self) -> impl Iterator<Item = (bool, Range<u64>)> + '_ {
        let mut at = 0;
        self.plugged.chunk_by(|a, b| a == b).map(move |run| {
            let range = at..at + run.len() as u64;
            at = range.end;
            (run.first() == Some(&true), range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn states() {
        let mut blocks = Blocks::new(8);
        blocks.set(&(2..5), true);
        blocks.set(&(4..6), true);
        assert_eq!(blocks.count(), 4);
        assert_eq!(blocks.state(&(2..6)), Some(State::Plugged));
        assert_eq!(blocks.state(&(0..2)), Some(State::Unplugged));
        assert_eq!(blocks.state(&(1..3)), Some(State::Mixed));
        for none in [8..9, 7..9, 3..3, u64::MAX - 1..u64::MAX, Range { start: 5, end: 4 }] {
            assert_eq!(blocks.state(&none), None, "{none:?}");
        }
        let runs: Vec<_> = blocks.runs().collect();
        assert_eq!(runs, [(false, 0..2), (true, 2..6), (false, 6..8)]);
    }

    proptest! {
        #[test]
        fn the_count_is_of_what_is_plugged(steps: Vec<(u8, u8, bool)>) {
            let mut blocks = Blocks::new(100);
            for (start, len, plugged) in steps {
                let range = u64::from(start)..u64::from(start) + u64::from(len);
                if blocks.state(&range).is_some() {
                    blocks.set(&range, plugged);
                    let state = if plugged { State::Plugged } else { State::Unplugged };
                    prop_assert_eq!(blocks.state(&range), Some(state));
                }
                let runs = blocks.runs().filter(|(plugged, _)| *plugged);
                let sum: u64 = runs.map(|(_, range)| range.end - range.start).sum();
                prop_assert_eq!(sum, blocks.count());
            }
        }
    }
}
