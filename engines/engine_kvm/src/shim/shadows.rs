//! Page tables that the kernel keeps for a guest whose processor cannot walk two at once.
//!
//! It sees what the guest writes to its tables, and not what we do, nor would it look again when the
//! guest loads CR3. It drops all that it has when a slot of memory goes.

use crate::sys;
use engine::{Error, TableChanges};
use guest_mem::GuestMem;
use kvm_ioctls::VmFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub(crate) struct Shadows(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    changes: TableChanges,
    /// They may have what is not in the tables any more.
    wrong: bool,
}

impl Shadows {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often what was present has changed so far.
    pub(super) fn changed(&self, changes: TableChanges) {
        let mut state = self.lock();
        state.wrong |= state.changes != changes;
        state.changes = changes;
    }

    pub(super) fn are_wrong(&self) {
        self.lock().wrong = true;
    }

    pub(super) fn drop_wrong(&self, vm: &VmFd, memory: &GuestMem) -> Result<(), Error> {
        let mut state = self.lock();
        if !state.wrong {
            return Ok(());
        }
        if let Some(region) = memory.layout().regions().first() {
            sys::come_and_go(vm, region)?;
        }
        state.wrong = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_make_them_wrong() {
        let shadows = Shadows::default();
        let some = TableChanges { any: 1, ..TableChanges::default() };
        shadows.changed(TableChanges::default());
        assert!(!shadows.lock().wrong);
        shadows.changed(some);
        assert!(shadows.lock().wrong);
        shadows.lock().wrong = false;
        shadows.changed(some);
        assert!(!shadows.lock().wrong);
        shadows.are_wrong();
        assert!(shadows.lock().wrong);
    }
}
