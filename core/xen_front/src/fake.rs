//! A domain without a guest, for the tests of back ends: what its driver would do is what the test
//! does.

use crate::{Access, Domain, Error, GrantRef, Notified, Page};
use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use std::{
    collections::BTreeMap,
    fmt,
    mem::offset_of,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use xen_abi::ring::{ENTRIES, Shared, entries};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Entry {
    frame: u64,
    access: Access,
    /// How often it is mapped.
    used: u32,
}

#[derive(Default)]
struct State {
    grants: BTreeMap<GrantRef, Entry>,
    /// With who hears of each, once it is bound.
    ports: BTreeMap<u32, Option<Arc<dyn Fn() + Send + Sync>>>,
    /// How often the back end notified each.
    notified: BTreeMap<u32, u64>,
    next_frame: u64,
}

/// Memory, a grant table and ports.
pub struct FakeDomain {
    memory: Arc<GuestMem>,
    frames: u64,
    state: Mutex<State>,
    changed: Condvar,
}

impl fmt::Debug for FakeDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDomain").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl FakeDomain {
    /// With so many pages.
    ///
    /// # Panics
    /// If the host has no memory for it.
    pub fn new(frames: u64) -> Arc<Self> {
        let len = frames * PAGE;
        let memory = GuestMem::new(len.next_multiple_of(1 << 20)).expect("address space");
        let mem = Memfd::new(len).expect("memory");
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).expect("one slot");
        Arc::new(Self { memory, frames, state: Mutex::default(), changed: Condvar::new() })
    }

    pub fn memory(&self) -> &Arc<GuestMem> {
        &self.memory
    }

    /// The next page that nobody has asked for.
    ///
    /// # Panics
    /// If there is none.
    pub fn page(&self) -> Page {
        let frame = {
            let mut state = lock(&self.state);
            state.next_frame += 1;
            state.next_frame - 1
        };
        Page::new(self.memory.clone(), frame * PAGE).expect("enough pages for the test")
    }

    /// Grants a page by a reference of which nobody has heard.
    pub fn grant(&self, page: &Page, access: Access) -> GrantRef {
        let mut state = lock(&self.state);
        // As Linux has them, from 8 on.
        let grant = state.grants.keys().next_back().map_or(8, |last| last + 1);
        state.grants.insert(grant, Entry { frame: page.gpa() / PAGE, access, used: 0 });
        grant
    }

    /// Takes a page back, if nobody uses it.
    pub fn take_back(&self, grant: GrantRef) -> bool {
        let mut state = lock(&self.state);
        let free = state.grants.get(&grant).is_some_and(|entry| entry.used == 0);
        free && state.grants.remove(&grant).is_some()
    }

    /// How many mappings there are of all pages.
    pub fn used(&self) -> u32 {
        lock(&self.state).grants.values().map(|entry| entry.used).sum()
    }

    /// A port that a back end may bind.
    pub fn port(&self) -> u32 {
        let mut state = lock(&self.state);
        let port = state.ports.keys().next_back().map_or(1, |last| last + 1);
        state.ports.insert(port, None);
        port
    }

    pub fn is_bound(&self, port: u32) -> bool {
        lock(&self.state).ports.get(&port).is_some_and(Option::is_some)
    }

    /// Notifies the back end, if it has bound the port.
    pub fn kick(&self, port: u32) {
        let notified = lock(&self.state).ports.get(&port).cloned().flatten();
        if let Some(notified) = notified {
            notified();
        }
    }

    /// How often the back end notified a port.
    pub fn notified(&self, port: u32) -> u64 {
        lock(&self.state).notified.get(&port).copied().unwrap_or(0)
    }

    /// Waits until the back end has notified a port more often than so.
    pub fn wait(&self, port: u32, after: u64, longest: Duration) -> bool {
        let before = |state: &mut State| state.notified.get(&port).copied().unwrap_or(0) <= after;
        let waited = self.changed.wait_timeout_while(lock(&self.state), longest, before);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Domain for FakeDomain {
    fn map(&self, grant: GrantRef, access: Access) -> Result<Page, Error> {
        let mut state = lock(&self.state);
        let entry = state.grants.get_mut(&grant).ok_or(Error::Grant(grant))?;
        if access == Access::Write && entry.access == Access::Read {
            return Err(Error::ReadOnly(grant));
        }
        let page = Page::new(self.memory.clone(), entry.frame * PAGE).ok_or(Error::Frame(grant))?;
        entry.used += 1;
        Ok(if access == Access::Read { page.read_only() } else { page })
    }

    fn unmap(&self, grant: GrantRef, _: Access) {
        if let Some(entry) = lock(&self.state).grants.get_mut(&grant) {
            entry.used -= 1;
        }
    }

    fn bind(&self, port: u32, notified: Notified) -> Result<(), Error> {
        match lock(&self.state).ports.get_mut(&port) {
            Some(free @ None) => {
                *free = Some(notified);
                Ok(())
            }
            _ => Err(Error::Port(port)),
        }
    }

    fn unbind(&self, port: u32, notified: &Notified) {
        if let Some(bound) = lock(&self.state).ports.get_mut(&port) {
            bound.take_if(|bound| Arc::ptr_eq(bound, notified));
        }
    }

    fn notify(&self, port: u32) {
        let mut state = lock(&self.state);
        *state.notified.entry(port).or_default() += 1;
        self.changed.notify_all();
    }
}

/// The driver's side of a ring.
#[derive(Debug)]
pub struct FrontRing {
    pages: Vec<Page>,
    entry: usize,
    pub entries: u32,
    /// Requests that were put.
    pub put: u32,
    /// Responses that were taken.
    pub taken: u32,
}

impl FrontRing {
    /// A fresh one of these pages.
    ///
    /// # Panics
    /// If there is no page.
    pub fn new(pages: Vec<Page>, entry: usize) -> Self {
        let entries = entries(pages.len() * PAGE as usize, entry);
        pages[0].set_index(offset_of!(Shared, request_event), 1);
        pages[0].set_index(offset_of!(Shared, response_event), 1);
        Self { pages, entry, entries, put: 0, taken: 0 }
    }

    /// An index of the header, by the offset that `Shared` has it at.
    pub fn index(&self, offset: usize) -> u32 {
        self.pages[0].index(offset)
    }

    pub fn set_index(&self, offset: usize, value: u32) {
        self.pages[0].set_index(offset, value);
    }

    fn each(&self, index: u32, len: usize, mut f: impl FnMut(&Page, usize, usize)) {
        let at = ENTRIES + (index % self.entries) as usize * self.entry;
        for i in 0..len {
            f(&self.pages[(at + i) / PAGE as usize], (at + i) % PAGE as usize, i);
        }
    }

    /// Puts a request where the back end does not look yet.
    ///
    /// # Panics
    /// If the ring has no such page.
    pub fn put(&mut self, request: &[u8]) {
        self.each(self.put, request.len(), |page, at, i| {
            page.write(at, &request[i..=i]).expect("a page of the ring");
        });
        self.put = self.put.wrapping_add(1);
    }

    /// Lets the back end see the requests; whether it wants to be notified.
    pub fn publish(&self) -> bool {
        let old = self.index(offset_of!(Shared, request_producer));
        self.set_index(offset_of!(Shared, request_producer), self.put);
        let event = self.index(offset_of!(Shared, request_event));
        self.put.wrapping_sub(event) < self.put.wrapping_sub(old)
    }

    /// The next response, if there is one; if not, the back end notifies with the next.
    ///
    /// # Panics
    /// If the ring has no such page.
    pub fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        if self.index(offset_of!(Shared, response_producer)) == self.taken {
            self.set_index(offset_of!(Shared, response_event), self.taken.wrapping_add(1));
            if self.index(offset_of!(Shared, response_producer)) == self.taken {
                return None;
            }
        }
        let mut response = vec![0; len];
        self.each(self.taken, len, |page, at, i| {
            page.read(at, &mut response[i..=i]).expect("a page of the ring");
        });
        self.taken = self.taken.wrapping_add(1);
        Some(response)
    }
}
