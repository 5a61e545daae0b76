//! What whoever copies entries of a TLB has to forget.

use guest_mem::ArenaOffset;

/// More than this, and everything is forgotten.
const MOST: usize = 128;

/// Since they were last [cleared](Self::clear). A copy of an entry may be used as long as it is
/// not concerned, even after the entry itself made way for another: then its page is here.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Everything.
    pub all: bool,
    /// What is not global.
    pub local: bool,
    /// Linear addresses of pages, with whatever rights.
    pages: Vec<u64>,
    /// The same of those that only made way for others: what is wrong of them later is still
    /// told, but for the right to write.
    evicted: Vec<u64>,
    /// Pages of the arena that must not be written any more, known or not.
    revoked: Vec<ArenaOffset>,
}

impl Changes {
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.all
            && !self.local
            && self.pages.is_empty()
            && self.evicted.is_empty()
            && self.revoked.is_empty()
    }

    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    pub fn evicted(&self) -> &[u64] {
        &self.evicted
    }

    pub fn revoked(&self) -> &[ArenaOffset] {
        &self.revoked
    }

    pub fn clear(&mut self) {
        (self.all, self.local) = (false, false);
        self.empty();
    }

    fn empty(&mut self) {
        self.pages.clear();
        self.evicted.clear();
        self.revoked.clear();
    }

    pub(crate) fn page(&mut self, linear: u64) {
        if self.all {
            return;
        }
        match self.pages.len() < MOST {
            true => self.pages.push(linear),
            false => self.all(),
        }
    }

    pub(crate) fn evict(&mut self, linear: u64) {
        if self.all {
            return;
        }
        match self.evicted.len() < MOST {
            true => self.evicted.push(linear),
            false => self.all(),
        }
    }

    pub(crate) fn revoke(&mut self, page: ArenaOffset) {
        if self.all {
            return;
        }
        match self.revoked.len() < MOST {
            true => self.revoked.push(page),
            false => self.all(),
        }
    }

    pub(crate) fn all(&mut self) {
        self.all = true;
        self.empty();
    }
}
