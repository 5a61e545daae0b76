//! What the guest is to hear of its watches.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
};

/// A path and a watch's token, in the order in which they came to be.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<(u64, (String, String))>,
    /// Strings are long, and may be alike but for their ends: those that differ are told apart by this.
    hasher: RandomState,
}

impl Events {
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }

    pub(crate) fn push(&mut self, event: (String, String)) {
        self.queue.push_back((self.hasher.hash_one(&event), event));
    }

    /// Unless it is there.
    pub(crate) fn push_once(&mut self, event: (String, String)) {
        let hash = self.hasher.hash_one(&event);
        if !self.queue.iter().any(|(old, there)| *old == hash && *there == event) {
            self.queue.push_back((hash, event));
        }
    }

    pub(crate) fn pop(&mut self) -> Option<(String, String)> {
        self.queue.pop_front().map(|(_, event)| event)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.queue.iter().map(|(_, event)| event)
    }
}

impl FromIterator<(String, String)> for Events {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Self {
        let mut events = Self::default();
        all.into_iter().for_each(|event| events.push(event));
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_same_says_no_more() {
        let event = |path: &str, token: &str| (path.to_owned(), token.to_owned());
        let mut events = Events::default();
        for (path, token) in [("a", "1"), ("a", "2"), ("a", "1"), ("b", "1"), ("a", "2")] {
            events.push_once(event(path, token));
        }
        assert_eq!(events.iter().count(), 3);
        assert_eq!(events.pop(), Some(event("a", "1")));
        // It has been heard of.
        events.push_once(event("a", "1"));
        assert_eq!(events.len(), 3);
    }
}
