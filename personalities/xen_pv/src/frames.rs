//! What the domain's frames are used as, and by how many.
//!
//! Xen's rule, which keeps a domain to itself: a frame has one use at a time. While it is a page
//! table, or holds descriptors, nothing maps it for writing; it becomes one only when nothing maps it
//! so, and is looked through first. A count of each use says when it may change.

use crate::tables::Level;
use xen_abi::errno::Errno;

/// What a frame is used as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// Nothing that matters: read, at most.
    #[default]
    Plain,
    /// Mapped for writing.
    Writable,
    Table(Level),
    /// Segment descriptors.
    Descriptors,
}

/// Who has a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// The domain.
    #[default]
    Domain,
    /// The hypervisor, which lets the domain map it, for writing too.
    Shared,
    /// Given back, but still mapped somewhere.
    Leaving,
    Nobody,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    pub owner: Owner,
    pub used_as: Use,
    /// How often it is used as that.
    pub uses: u32,
    /// Entries of page tables that map it, and other holds.
    pub holds: u32,
    pub pinned: bool,
    /// A table that may be part of the upper half of an address space.
    pub upper: bool,
    /// When it was mapped for writing for the last time, in flushes: TLBs may still have it so that have
    /// forgotten neither all since then nor this.
    pub written: u64,
    /// When it was a page table for the last time, in flushes: a walk that began before may still
    /// read it as one.
    pub walked: u64,
}

/// All frames that a domain can name.
#[derive(Debug)]
pub struct Frames {
    all: Vec<Frame>,
    /// The first frame that is the hypervisor's.
    ram: u64,
    /// How often all TLBs have forgotten all, and one more.
    flushes: u64,
    /// Frames that the domain has, or has given back and maps still.
    in_use: u64,
    /// Those that became nobody's, whose memory the host does not have yet.
    left: Vec<u64>,
    /// Frames, at most, that TLBs may have as what they are no more, since they forgot all.
    lingering: u64,
}

/// Makes all TLBs forget that they may write a frame, and waits for walks to end that may read it as a
/// page table.
pub type Forget<'a> = &'a mut dyn FnMut(u64);

impl Frames {
    /// `ram` frames of the domain's; what `shared` names behind them are the hypervisor's, which
    /// the domain may map.
    pub fn new(ram: u64, total: u64, shared: impl Fn(u64) -> bool) -> Self {
        let owner = |frame| match frame < ram {
            true => Owner::Domain,
            false if shared(frame) => Owner::Shared,
            false => Owner::Nobody,
        };
        let all = (0..total).map(|frame| Frame { owner: owner(frame), ..Frame::default() });
        Self { all: all.collect(), ram, flushes: 1, in_use: ram, left: Vec::new(), lingering: 0 }
    }

    /// Frames of RAM, whoever has them.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// How many of them the domain has.
    pub fn owned_by_domain(&self) -> u64 {
        self.all.iter().filter(|frame| frame.owner == Owner::Domain).count() as u64
    }

    /// How many of them cannot be anybody else's: the domain has them, or has given them back and maps
    /// them still.
    pub fn in_use(&self) -> u64 {
        self.in_use
    }

    pub fn get(&self, frame: u64) -> Option<&Frame> {
        self.all.get(usize::try_from(frame).ok()?)
    }

    fn get_mut(&mut self, frame: u64) -> Option<&mut Frame> {
        self.all.get_mut(usize::try_from(frame).ok()?)
    }

    /// One that the domain may name.
    fn owned(&mut self, frame: u64) -> Result<&mut Frame, Errno> {
        match self.get_mut(frame) {
            Some(found) if matches!(found.owner, Owner::Domain | Owner::Shared) => Ok(found),
            _ => Err(Errno::Inval),
        }
    }

    /// Holds a frame, so that it stays.
    pub fn hold(&mut self, frame: u64) -> Result<(), Errno> {
        let found = self.owned(frame)?;
        found.holds = found.holds.checked_add(1).ok_or(Errno::Busy)?;
        Ok(())
    }

    /// The opposite of [`Frames::hold`].
    pub fn let_go(&mut self, frame: u64) {
        let Some(found) = self.get_mut(frame) else { return };
        found.holds = found.holds.saturating_sub(1);
        if found.holds == 0 && found.owner == Owner::Leaving {
            found.owner = Owner::Nobody;
            self.in_use -= 1;
            self.left.push(frame);
        }
    }

    /// Uses a frame as something. True: it was not used as that before, so that a table or
    /// descriptors have to be looked through; nothing writes to them any more.
    pub fn start(&mut self, frame: u64, want: Use, forget: Forget<'_>) -> Result<bool, Errno> {
        let now = self.flushes;
        let found = self.owned(frame)?;
        if found.owner == Owner::Shared && want != Use::Writable {
            return Err(Errno::Inval);
        }
        if found.uses > 0 {
            if found.used_as != want {
                return Err(Errno::Busy);
            }
            found.uses = found.uses.checked_add(1).ok_or(Errno::Busy)?;
            return Ok(false);
        }
        found.used_as = want;
        found.uses = 1;
        found.upper = false;
        let lingers = found.walked == now || (want != Use::Writable && found.written == now);
        if lingers {
            (found.written, found.walked) = (0, 0);
            forget(frame);
        }
        Ok(true)
    }

    /// The opposite of [`Frames::start`]; true if it was the last use.
    pub fn end(&mut self, frame: u64) -> bool {
        let now = self.flushes;
        self.end_since(frame, now)
    }

    /// The same of a use for writing that no TLB knows of: a back end's. TLBs may know of others.
    pub fn end_outside(&mut self, frame: u64) {
        let written = self.get(frame).map_or(0, |found| found.written);
        self.end_since(frame, written);
    }

    fn end_since(&mut self, frame: u64, now: u64) -> bool {
        let Some(found) = self.get_mut(frame) else { return false };
        found.uses = found.uses.saturating_sub(1);
        let last = found.uses == 0;
        let before = (found.written, found.walked);
        match found.used_as {
            // Not only the last: that may be a back end's, of which TLBs know nothing.
            Use::Writable => found.written = now,
            Use::Table(_) if last => found.walked = now,
            _ => {}
        }
        if last {
            found.used_as = Use::Plain;
        }
        if (found.written, found.walked) != before {
            self.lingering += 1;
        }
        last
    }

    /// A table may be part of the upper half; false if that is known.
    pub fn reach_from_above(&mut self, frame: u64) -> bool {
        self.get_mut(frame).is_some_and(|found| !std::mem::replace(&mut found.upper, true))
    }

    pub fn set_pinned(&mut self, frame: u64, pinned: bool) {
        if let Some(found) = self.get_mut(frame) {
            found.pinned = pinned;
        }
    }

    /// All TLBs have forgotten all.
    pub fn flushed(&mut self) {
        self.flushes += 1;
        self.lingering = 0;
    }

    /// How many frames all TLBs may have to be made to forget, one by one, while the domain is locked.
    pub fn lingering(&self) -> u64 {
        self.lingering
    }

    /// Whether a walk may still read the frame as a page table, which only a flush ends.
    pub fn is_walked(&self, frame: u64) -> bool {
        self.get(frame).is_some_and(|found| found.uses == 0 && found.walked == self.flushes)
    }

    /// Whether the frame is used as this now.
    pub fn is(&self, frame: u64, what: Use) -> bool {
        self.get(frame).is_some_and(|found| found.uses > 0 && found.used_as == what)
    }

    /// The domain gives a frame back, which nobody has once nothing holds it.
    pub fn give_back(&mut self, frame: u64) -> Result<(), Errno> {
        match self.get_mut(frame) {
            Some(found) if found.owner == Owner::Domain && !found.pinned => {
                let gone = found.holds == 0;
                found.owner = if gone { Owner::Nobody } else { Owner::Leaving };
                if gone {
                    self.in_use -= 1;
                    self.left.push(frame);
                }
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// Frames that have become nobody's, and are so still, since this was called last: the first one of
    /// each run, and how many.
    pub fn take_left(&mut self) -> Vec<(u64, u64)> {
        let mut left = std::mem::take(&mut self.left);
        left.sort_unstable();
        left.dedup();
        left.retain(|frame| self.get(*frame).is_some_and(|found| found.owner == Owner::Nobody));
        let runs = left.chunk_by(|frame, next| frame + 1 == *next);
        runs.filter_map(|run| Some((*run.first()?, run.len() as u64))).collect()
    }

    /// The domain gets a frame of its RAM again.
    pub fn take(&mut self, frame: u64, forget: Forget<'_>) -> Result<(), Errno> {
        let now = self.flushes;
        if frame >= self.ram {
            return Err(Errno::Inval);
        }
        match self.get_mut(frame) {
            Some(found) if found.owner == Owner::Nobody => {
                let lingers = found.written == now || found.walked == now;
                *found = Frame::default();
                self.in_use += 1;
                if lingers {
                    forget(frame);
                }
                Ok(())
            }
            _ => Err(Errno::NoMem),
        }
    }
}
