//! Pages that the domain lets back ends use, and ports that they bind: what Xen does for a driver
//! domain (`grant_table.h`, `event_channel.h`).

use crate::{
    Domain, XenPv,
    events::Port,
    frames::{Owner, Use},
    lock,
};
use guest_mem::PAGE;
use std::{collections::btree_map::Entry, sync::Arc};
use xen_abi::grant_table::flag;
use xen_front::{Access, Error, GrantRef, Page};

/// Entries of a frame of the table, in version 1.
const PER_FRAME: u64 = PAGE / 8;
/// How often an entry may change while it is marked; Xen looks five times.
const RETRIES: u32 = 16;
/// The number of the domain that back ends are in.
const BACKEND: u16 = 0;

/// What a back end is told by.
pub(crate) type Notified = Arc<dyn Fn() + Send + Sync>;

/// A grant in use.
#[derive(Debug)]
pub(crate) struct Mapped {
    frame: u64,
    readers: u32,
    writers: u32,
}

impl Domain {
    /// Where a grant's entry is, if the domain's table has that many.
    fn entry(&self, grant: GrantRef) -> Option<u64> {
        let there = u64::from(grant) < u64::from(self.grant_frames) * PER_FRAME;
        there.then(|| self.layout.grants() + u64::from(grant) * 8)
    }

    /// Marks an entry as in use, so that the domain does not take the page back; its frame.
    fn mark(&self, grant: GrantRef, access: Access) -> Result<u64, Error> {
        let at = self.entry(grant).ok_or(Error::Grant(grant))?;
        let mut used = flag::READING;
        if access == Access::Write {
            used |= flag::WRITING;
        }
        // Who changes it all the time has granted nothing.
        for _ in 0..RETRIES {
            let entry = self.tables.memory.load(at);
            let (flags, domain) = (entry as u16, (entry >> 16) as u16);
            if flags & flag::TYPE != flag::PERMIT_ACCESS || domain != BACKEND {
                return Err(Error::Grant(grant));
            }
            if access == Access::Write && flags & flag::READONLY != 0 {
                return Err(Error::ReadOnly(grant));
            }
            let marked = entry | u64::from(used);
            if self.tables.memory.exchange(at, entry, marked) {
                return Ok(entry >> 32);
            }
        }
        Err(Error::Grant(grant))
    }

    /// The opposite, as far as nobody else uses it.
    fn unmark(&self, grant: GrantRef) {
        let Some(at) = self.entry(grant) else { return };
        let kept = match self.mapped.get(&grant) {
            None => 0,
            Some(Mapped { writers: 0, .. }) => flag::READING,
            Some(_) => flag::READING | flag::WRITING,
        };
        let gone = u64::from((flag::READING | flag::WRITING) & !kept);
        crate::events::change(&self.tables.memory, at, |entry| entry & !gone);
    }

    fn map_grant(&mut self, grant: GrantRef, access: Access) -> Result<u64, Error> {
        let frame = self.mark(grant, access)?;
        let used = self.use_frame(grant, frame, access);
        if used.is_err() {
            self.unmark(grant);
        }
        used.map(|()| frame)
    }

    fn use_frame(&mut self, grant: GrantRef, frame: u64, access: Access) -> Result<(), Error> {
        let frames = &mut self.tables.frames;
        let own = frames.get(frame).is_some_and(|found| found.owner == Owner::Domain);
        // An entry in use that names another frame now: the domain changed it, against the rules.
        let same = self.mapped.get(&grant).is_none_or(|mapped| mapped.frame == frame);
        if !own || !same {
            return Err(Error::Frame(grant));
        }
        // It was a page table a moment ago. A kernel that maps it for writing first, as all do, has
        // made the TLBs forget that.
        if access == Access::Write && frames.is_walked(frame) {
            return Err(Error::Frame(grant));
        }
        frames.hold(frame).map_err(|_| Error::Frame(grant))?;
        if access == Access::Write && frames.start(frame, Use::Writable, &mut || {}).is_err() {
            frames.let_go(frame);
            return Err(Error::Frame(grant));
        }
        let mapped = self.mapped.entry(grant).or_insert(Mapped { frame, readers: 0, writers: 0 });
        match access {
            Access::Read => mapped.readers += 1,
            Access::Write => mapped.writers += 1,
        }
        Ok(())
    }

    fn unmap_grant(&mut self, grant: GrantRef, access: Access) {
        let Entry::Occupied(mut entry) = self.mapped.entry(grant) else { return };
        let mapped = entry.get_mut();
        let frame = mapped.frame;
        let count = match access {
            Access::Read => &mut mapped.readers,
            Access::Write => &mut mapped.writers,
        };
        let Some(left) = count.checked_sub(1) else { return };
        *count = left;
        if mapped.readers == 0 && mapped.writers == 0 {
            entry.remove();
        }
        if access == Access::Write {
            self.tables.frames.end_outside(frame);
        }
        self.tables.frames.let_go(frame);
        self.unmark(grant);
    }
}

impl xen_front::Domain for XenPv {
    fn map(&self, grant: GrantRef, access: Access) -> Result<Page, Error> {
        let mut domain = lock(&self.domain);
        let frame = domain.map_grant(grant, access)?;
        let page = Page::new(domain.tables.memory.whole().clone(), frame * PAGE);
        if page.is_none() {
            domain.unmap_grant(grant, access);
        }
        let page = page.ok_or(Error::Frame(grant))?;
        Ok(if access == Access::Read { page.read_only() } else { page })
    }

    fn unmap(&self, grant: GrantRef, access: Access) {
        lock(&self.domain).unmap_grant(grant, access);
    }

    fn bind(&self, port: u32, notified: Notified) -> Result<(), Error> {
        let mut domain = lock(&self.domain);
        match domain.events.get(port).map(|channel| channel.port) {
            Some(Port::Unbound(BACKEND)) => {
                domain.events.set(port, Port::Bound);
                domain.notified.insert(port, notified);
                Ok(())
            }
            _ => Err(Error::Port(port)),
        }
    }

    fn unbind(&self, port: u32) {
        let mut domain = lock(&self.domain);
        // Not if the domain has closed it, and may have another there.
        if domain.notified.remove(&port).is_some() {
            domain.events.set(port, Port::Unbound(BACKEND));
        }
    }

    fn notify(&self, port: u32) {
        let domain = lock(&self.domain);
        if domain.notified.contains_key(&port) {
            self.raise_in(&domain, port);
        }
    }
}
