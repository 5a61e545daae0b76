//! Scratch registers that happen to hold guest registers whose home is memory.
//!
//! The memory is always right, too: a change is stored at once. So nothing has to be done where
//! a block is left, and a scratch register may be taken for anything else at any time. Where
//! control comes back into the block after a handler, they are loaded again.

use super::{Lowerer, Untranslated};
use crate::{
    regs::{self, SA, SB, SC},
    state::gpr,
};

/// Host registers that an instruction under way uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Busy(u16);

impl Busy {
    pub fn push(&mut self, host: u8) {
        self.0 |= 1 << (host & 15);
    }

    pub fn contains(self, host: u8) -> bool {
        self.0 >> (host & 15) & 1 != 0
    }
}

/// In the order in which they are taken.
const REGISTERS: [u8; 3] = [SA, SC, SB];

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scratch {
    /// The guest register in each, and when it was last used.
    guests: [Option<(u8, u32)>; 3],
    clock: u32,
    /// The instruction under way keeps account.
    on: bool,
}

impl Scratch {
    /// Before an instruction, which keeps account of what it does to them or does not.
    pub fn begin(&mut self, on: bool) {
        self.on = on;
        if !on {
            self.clear();
        }
    }

    pub fn clear(&mut self) {
        self.guests = [None; 3];
    }

    /// Which holds a guest register.
    pub fn find(&mut self, guest: u8) -> Option<u8> {
        self.clock += 1;
        let clock = self.clock;
        let held = REGISTERS.iter().zip(&mut self.guests);
        held.filter_map(|(host, held)| Some((*host, held.as_mut()?)))
            .find(|(_, (known, _))| *known == guest)
            .map(|(host, (_, used))| {
                *used = clock;
                host
            })
    }

    /// A host register is used otherwise.
    pub fn lost(&mut self, host: u8) {
        for (register, held) in REGISTERS.iter().zip(&mut self.guests) {
            if *register == host {
                *held = None;
            }
        }
    }

    /// A guest register is only in memory, or in `host` if that is a scratch register.
    pub fn now_in(&mut self, host: u8, guest: u8) {
        self.clock += 1;
        for (register, held) in REGISTERS.iter().zip(&mut self.guests) {
            if held.is_some_and(|(known, _)| known == guest) {
                *held = None;
            }
            if *register == host {
                *held = self.on.then_some((guest, self.clock));
            }
        }
    }

    /// One to use for something else: none of `busy`, and rather none that holds anything.
    fn take(&mut self, busy: Busy) -> Option<u8> {
        let free = |host: &&u8| !busy.contains(**host);
        let age = |host: &&u8| {
            let held = REGISTERS.iter().zip(&self.guests).find(|(register, _)| register == host);
            held.and_then(|(_, held)| *held).map_or(0, |(_, used)| used)
        };
        let host = REGISTERS.iter().filter(free).min_by_key(age).copied()?;
        self.lost(host);
        Some(host)
    }

    /// Host and guest registers.
    pub fn held(&self) -> impl Iterator<Item = (u8, u8)> {
        REGISTERS.iter().zip(self.guests).filter_map(|(host, held)| Some((*host, held?.0)))
    }
}

impl Lowerer<'_> {
    /// A guest register's value in its own host register, or in one that holds it already, or
    /// in `scratch`.
    pub(super) fn value(&mut self, guest: u8, scratch: u8) -> u8 {
        if let Some(host) = regs::home(guest).or_else(|| self.scratch.find(guest)) {
            return host;
        }
        self.asm.load(scratch, gpr(guest));
        self.scratch.now_in(scratch, guest);
        if scratch == SB {
            self.reuse.lost();
        }
        scratch
    }

    /// Writes all of a guest register.
    pub(super) fn set(&mut self, guest: u8, from: u8) {
        match regs::home(guest) {
            Some(host) if host == from => {}
            Some(host) => self.asm.mov(host, from, true),
            None => {
                self.asm.store(gpr(guest), from);
                self.scratch.now_in(from, guest);
            }
        }
    }

    /// The scratch register for an operand whose home is memory; loaded with its value if that
    /// is `read`. It becomes one of those that are `busy`.
    pub(super) fn operand_in(
        &mut self,
        guest: u8,
        read: bool,
        busy: &mut Busy,
    ) -> Result<u8, Untranslated> {
        let found = self.scratch.find(guest);
        let host = match found {
            Some(host) => host,
            None => self.scratch.take(*busy).ok_or(Untranslated)?,
        };
        if found.is_none() && read {
            self.asm.load(host, gpr(guest));
        }
        if found.is_none() {
            self.scratch.now_in(host, guest);
        }
        if host == SB {
            self.reuse.lost();
        }
        busy.push(host);
        Ok(host)
    }

    /// What the code after an instruction takes for granted.
    pub(super) fn load_again(&mut self, index: usize) {
        let Some(scratch) = self.scratches.get(index).copied() else { return };
        for (host, guest) in scratch.held() {
            self.asm.load(host, gpr(guest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_register_is_in_one_place_at_most() {
        let mut scratch = Scratch::default();
        scratch.begin(true);
        scratch.now_in(SA, 10);
        scratch.now_in(SC, 11);
        scratch.now_in(SB, 10);
        assert_eq!(scratch.held().collect::<Vec<_>>(), [(SC, 11), (SB, 10)]);
        assert_eq!((scratch.find(11), scratch.find(14)), (Some(SC), None));
        // What was used longest ago goes first.
        scratch.now_in(SA, 14);
        let busy = |hosts: &[u8]| {
            let mut busy = Busy::default();
            hosts.iter().for_each(|host| busy.push(*host));
            busy
        };
        assert_eq!(scratch.take(busy(&[])), Some(SB));
        scratch.now_in(SB, 10);
        assert_eq!(scratch.take(busy(&[SC])), Some(SA));
        assert_eq!(scratch.take(busy(&[SA, SB, SC])), None);
        // A write elsewhere makes the copy stale.
        scratch.now_in(0, 11);
        assert_eq!(scratch.find(11), None);
        scratch.begin(false);
        scratch.now_in(SA, 10);
        assert_eq!(scratch.held().count(), 0);
    }
}
