//! Grants that back ends use.

use xen_front::{Access, GrantRef};

/// Of one grant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mapped {
    pub frame: u64,
    pub readers: u32,
    pub writers: u32,
}

/// By reference: a network takes and gives back some hundred thousand a second.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    of: Vec<Mapped>,
    /// How many are in use.
    count: usize,
}

impl Grants {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// One that is in use.
    pub fn get(&self, grant: GrantRef) -> Option<&Mapped> {
        self.of.get(grant as usize).filter(|mapped| mapped.readers != 0 || mapped.writers != 0)
    }

    /// One user more, of a reference that the domain's table has; the frame is the same for all.
    pub fn add(&mut self, grant: GrantRef, frame: u64, access: Access) {
        let fresh = self.get(grant).is_none();
        let index = grant as usize;
        if self.of.len() <= index {
            self.of.resize(index + 1, Mapped::default());
        }
        let Some(mapped) = self.of.get_mut(index) else { return };
        if fresh {
            mapped.frame = frame;
            self.count += 1;
        }
        match access {
            Access::Read => mapped.readers += 1,
            Access::Write => mapped.writers += 1,
        }
    }

    /// One user less; the frame, if there was one.
    pub fn take(&mut self, grant: GrantRef, access: Access) -> Option<u64> {
        let mapped = self.of.get_mut(grant as usize)?;
        let users = match access {
            Access::Read => &mut mapped.readers,
            Access::Write => &mut mapped.writers,
        };
        *users = users.checked_sub(1)?;
        if mapped.readers == 0 && mapped.writers == 0 {
            self.count -= 1;
        }
        Some(mapped.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_grant_are_counted() {
        let mut grants = Grants::default();
        assert!(grants.is_empty() && grants.take(3, Access::Read).is_none());
        grants.add(3, 7, Access::Read);
        grants.add(3, 7, Access::Write);
        assert_eq!(grants.take(3, Access::Read), Some(7));
        assert_eq!(grants.take(3, Access::Read), None);
        assert_eq!(grants.get(3).map(|found| (found.readers, found.writers)), Some((0, 1)));
        assert!(!grants.is_empty() && grants.get(2).is_none() && grants.get(4).is_none());
        assert_eq!(grants.take(3, Access::Write), Some(7));
        assert!(grants.is_empty() && grants.get(3).is_none());
        grants.add(3, 9, Access::Read);
        assert_eq!(grants.take(3, Access::Read), Some(9));
    }
}
