//! What other threads ask of a vCPU, and the handshake by which they know it is done.
//!
//! A vCPU is *in the guest* or not. Requests are queued and flagged; a vCPU in the guest serves
//! them at its next poll, one outside before it enters. Whoever waits for a request therefore
//! waits only while the vCPU is in the guest and has not served it.

use crate::code_pages::CodePages;
use engine::TableChanges;
use guest_mem::{ArenaOffset, Layout, PAGE};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*},
    },
};

/// Bits of [`Slot::flags`].
pub mod flag {
    /// Ask the host what is pending.
    pub const NOTIFY: u32 = 1;
    /// Return from `run`.
    pub const STOP: u32 = 2;
    /// The queue is not empty.
    pub const REQUEST: u32 = 4;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Forget that this page of the arena may be written without asking: it holds code.
    RevokeWrite(ArenaOffset),
    /// Forget every page that may be written without asking: dirty pages are logged anew.
    RevokeWrites,
    /// Code decoded from these guest-physical bytes is to be compared before it is executed.
    Code(Range<u64>),
    /// Another layout.
    Layout,
    /// Forget translations: of one linear address, or all.
    Flush(Option<u64>),
}

/// One vCPU as other threads see it.
#[derive(Debug, Default)]
pub struct Slot {
    id: u32,
    pub flags: AtomicU32,
    in_guest: AtomicBool,
    queue: Mutex<Vec<Request>>,
    asked: AtomicU64,
    served: AtomicU64,
}

impl Slot {
    /// Of the vCPU with this number.
    pub fn new(id: u32) -> Self {
        Self { id, ..Self::default() }
    }

    pub fn enter_guest(&self) {
        self.in_guest.store(true, SeqCst);
    }

    pub fn leave_guest(&self) {
        self.in_guest.store(false, Release);
    }

    /// Puts a request; returns its number.
    pub fn ask(&self, request: Request) -> u64 {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.contains(&request) {
            // A vCPU that does not run for long must not gather requests without bound.
            if queue.len() >= 256 {
                // A new layout is all of them at once.
                queue.clear();
                queue.push(Request::Layout);
            }
            queue.push(request);
        }
        let number = self.asked.load(Relaxed) + 1;
        self.asked.store(number, Relaxed);
        self.flags.fetch_or(flag::REQUEST, SeqCst);
        number
    }

    /// For the vCPU itself: everything asked so far. It serves that before it touches guest
    /// memory, and then calls [`Self::served`] with the number.
    pub fn take(&self) -> (Vec<Request>, u64) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.flags.fetch_and(!flag::REQUEST, SeqCst);
        (std::mem::take(&mut *queue), self.asked.load(Relaxed))
    }

    pub fn served(&self, number: u64) {
        self.served.store(number, SeqCst);
    }

    /// The request is served, or will be before anything else happens.
    pub fn has_served(&self, number: u64) -> bool {
        !self.in_guest.load(SeqCst) || self.served.load(SeqCst) >= number
    }
}

/// The vCPUs of one VM.
#[derive(Debug, Default)]
pub struct Slots {
    all: RwLock<Vec<Arc<Slot>>>,
    /// Held during a locked access that crosses pages.
    split: Mutex<()>,
    code_pages: CodePages,
    tables: Tables,
}

/// What a personality has told of its guest's page tables.
#[derive(Debug, Default)]
pub struct Tables([AtomicU64; 3]);

impl Tables {
    pub fn set(&self, changes: TableChanges) {
        let TableChanges { any, upper, code } = changes;
        for (to, value) in self.0.iter().zip([any, upper, code]) {
            to.store(value, SeqCst);
        }
    }

    pub fn get(&self) -> TableChanges {
        let [any, upper, code] = self.0.each_ref().map(|value| value.load(SeqCst));
        TableChanges { any, upper, code }
    }
}

impl Slots {
    pub fn add(&self, slot: &Arc<Slot>) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).push(slot.clone());
    }

    /// Locked accesses that cross pages are atomic to each other; to others, and to what a
    /// single page holds, they are a read and a write of each piece.
    pub fn split_lock(&self) -> MutexGuard<'_, ()> {
        self.split.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn remove(&self, slot: &Arc<Slot>) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).retain(|s| !Arc::ptr_eq(s, slot));
    }

    /// Asks every vCPU but `me`; returns what to wait for.
    pub fn ask_others(&self, request: &Request, me: Option<&Slot>) -> Vec<(Arc<Slot>, u64)> {
        self.ask_some(request, me, None)
    }

    /// Asks the vCPUs of which `mask` has a bit, or all, but `me`.
    pub fn ask_some(
        &self,
        request: &Request,
        me: Option<&Slot>,
        mask: Option<u64>,
    ) -> Vec<(Arc<Slot>, u64)> {
        let slots = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = |s: &&Arc<Slot>| {
            !me.is_some_and(|me| std::ptr::eq(me, Arc::as_ptr(s)))
                && mask.is_none_or(|m| m.checked_shr(s.id).unwrap_or(0) & 1 != 0)
        };
        slots.iter().filter(wanted).map(|s| (s.clone(), s.ask(request.clone()))).collect()
    }

    /// Bytes of pages with code marks have been written, by the vCPU of `me` or a device.
    /// Tells all other vCPUs, and returns what `me` has to look at again.
    ///
    /// A page loses its mark: it is written at full speed from then on, until code is decoded
    /// from it again.
    pub fn code_written(
        &self,
        layout: &Layout,
        gpa: Range<u64>,
        me: Option<&Slot>,
    ) -> Vec<Range<u64>> {
        let mut stale = Vec::new();
        let mut at = gpa.start;
        while at < gpa.end {
            let page = at & !(PAGE - 1);
            let end = gpa.end.min(page.saturating_add(PAGE));
            if let Some((region, offset)) = layout.find(page) {
                self.code_pages.written(page);
                // The mark goes first: what is decoded after that marks anew, and what was
                // decoded before is concerned by the request.
                region.code().clear((offset / PAGE) as usize);
            }
            drop(self.ask_others(&Request::Code(page..page + PAGE), me));
            stale.push(page..page + PAGE);
            at = end;
        }
        stale
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    pub fn code_pages(&self) -> &CodePages {
        &self.code_pages
    }
}
