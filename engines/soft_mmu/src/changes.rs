//! What whoever copies entries of a TLB has to forget.

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
}

impl Changes {
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.all && !self.local && self.pages.is_empty()
    }

    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    pub fn clear(&mut self) {
        (self.all, self.local) = (false, false);
        self.pages.clear();
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

    pub(crate) fn all(&mut self) {
        self.all = true;
        self.pages.clear();
    }
}
