//! Pieces of a buffer given out in a circle, so that the oldest make room for new ones.

/// A bounded buffer, whose memory is touched when it is first used.
#[derive(Debug)]
pub struct Ring<T> {
    items: Vec<T>,
    capacity: usize,
    /// Where the next piece goes, if there is room.
    head: usize,
}

impl<T> Ring<T> {
    pub fn new(capacity: usize) -> Self {
        Self { items: Vec::with_capacity(capacity), capacity, head: 0 }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Items in whose place there was one already.
    pub fn touched(&self) -> usize {
        self.items.len()
    }

    /// Where `n` items can be put. `None`: the oldest piece in use, which begins at `oldest`,
    /// has to go first. Of a ring without pieces that is `None`, and then any `n` up to the
    /// capacity fits.
    pub fn place(&self, n: usize, oldest: Option<usize>) -> Option<usize> {
        let end = self.head.checked_add(n)?;
        match oldest {
            None if end <= self.capacity => Some(self.head),
            None => (n <= self.capacity).then_some(0),
            Some(oldest) if oldest < self.head => match end <= self.capacity {
                true => Some(self.head),
                false => (n <= oldest).then_some(0),
            },
            Some(oldest) => (end <= oldest).then_some(self.head),
        }
    }

    /// Puts items where [`Self::place`] said.
    pub fn put(&mut self, at: usize, mut items: impl ExactSizeIterator<Item = T>) {
        self.head = at + items.len();
        let end = self.head.min(self.items.len());
        let old = self.items.get_mut(at..end).unwrap_or_default();
        old.iter_mut().zip(items.by_ref()).for_each(|(old, new)| *old = new);
        self.items.extend(items);
    }

    /// Puts copies of items where [`Self::place`] said.
    pub fn put_slice(&mut self, at: usize, items: &[T])
    where
        T: Copy,
    {
        self.head = at + items.len();
        let end = self.head.min(self.items.len());
        let old = self.items.get_mut(at..end).unwrap_or_default();
        let (over, more) = items.split_at(old.len().min(items.len()));
        old.copy_from_slice(over);
        self.items.extend_from_slice(more);
    }

    #[inline(always)]
    pub fn get(&self, start: usize, count: usize) -> &[T] {
        self.items.get(start..start + count).unwrap_or_default()
    }

    pub fn get_mut(&mut self, start: usize, count: usize) -> &mut [T] {
        self.items.get_mut(start..start + count).unwrap_or_default()
    }

    pub fn clear(&mut self) {
        self.items.clear();
        self.head = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn pieces_in_use_are_never_overwritten() {
        let mut ring = Ring::new(100);
        let mut pieces = VecDeque::<(usize, usize, u32)>::new();
        let mut seed = 1_u32;
        for n in 0..10_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let len = (seed >> 16) as usize % 30 + 1;
            let at = loop {
                match ring.place(len, pieces.front().map(|p| p.0)) {
                    Some(at) => break at,
                    None => drop(pieces.pop_front().unwrap()),
                }
            };
            ring.put(at, std::iter::repeat_n(n, len));
            pieces.push_back((at, len, n));
            for (at, len, n) in &pieces {
                assert!(ring.get(*at, *len).iter().all(|i| i == n));
                assert_eq!(ring.get(*at, *len).len(), *len);
            }
            assert!(ring.items.len() <= 100);
        }
    }
}
