//! The host's end of a Xen domain's console (Xen's `public/io/console.h`).
//!
//! A page that the domain shares has a ring for each direction. All state is in it: what the domain
//! has not read, or what the carrier has no room for yet, stays there, and the domain waits.

use byte_stream::{Input, Output};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use xen_front::Page;

/// `struct xencons_interface`: bytes for the domain and from it, and their indexes.
const IN: usize = 0;
const IN_SIZE: u32 = 1024;
const OUT: usize = 1024;
const OUT_SIZE: u32 = 2048;
const IN_CONSUMER: usize = 0xc00;
const IN_PRODUCER: usize = 0xc04;
const OUT_CONSUMER: usize = 0xc08;
const OUT_PRODUCER: usize = 0xc0c;

type Callback = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    page: Option<Page>,
    /// A carrier waits for room.
    wanted: bool,
}

/// A domain's console.
pub struct XenConsole {
    state: Mutex<State>,
    output: Arc<dyn Output>,
    /// Tells whoever runs the domain that [`XenConsole::serve`] has something to do.
    work: OnceLock<Callback>,
    room: OnceLock<Callback>,
    /// Tells the domain.
    notify: OnceLock<Callback>,
}

impl fmt::Debug for XenConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("XenConsole")
    }
}

impl XenConsole {
    /// Not attached to a page. `work` is called, from any thread, when [`Self::serve`] is to be
    /// called for another reason than the domain's; it must not block.
    pub fn new(output: Arc<dyn Output>, work: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let this = Arc::new(Self {
            state: Mutex::default(),
            output,
            work: OnceLock::new(),
            room: OnceLock::new(),
            notify: OnceLock::new(),
        });
        let _ = this.work.set(Box::new(work));
        let weak = Arc::downgrade(&this);
        this.output.on_space(Box::new(move || {
            if let Some(console) = weak.upgrade() {
                console.call(&console.work);
            }
        }));
        this
    }

    /// How the domain is told that something has moved. Set once, before it runs.
    pub fn on_notify(&self, notify: impl Fn() + Send + Sync + 'static) {
        let _ = self.notify.set(Box::new(notify));
    }

    fn call(&self, callback: &OnceLock<Callback>) {
        if let Some(callback) = callback.get() {
            callback();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page of a domain that starts, or none while there is none.
    pub fn attach(&self, page: Option<Page>) {
        self.lock().page = page;
    }

    /// What the domain says without a ring, by a hypercall.
    pub fn say(&self, text: &[u8]) {
        self.output.write(text);
    }

    /// Moves what the domain has written, as far as the carrier takes it, and lets a carrier go on
    /// that waits for room. Called when the domain has notified, or `work` was called.
    pub fn serve(&self) {
        let mut state = self.lock();
        let moved = state.page.as_ref().is_some_and(|page| self.drain(page));
        let room = state.wanted && state.page.as_ref().is_some_and(|page| room(page) > 0);
        if room {
            state.wanted = false;
        }
        drop(state);
        if moved {
            self.call(&self.notify);
        }
        if room {
            self.call(&self.room);
        }
    }

    /// True if something was taken.
    fn drain(&self, page: &Page) -> bool {
        let (mut at, end) = (page.index(OUT_CONSUMER), page.index(OUT_PRODUCER));
        let mut left = end.wrapping_sub(at);
        if left > OUT_SIZE {
            // Nonsense; there can be no more than all of the ring.
            left = OUT_SIZE;
        }
        let mut bytes = vec![0; left as usize];
        let start = at % OUT_SIZE;
        let (first, second) = bytes.split_at_mut(left.min(OUT_SIZE - start) as usize);
        // Both are inside of the page.
        let _ = page.read(OUT + start as usize, first);
        let _ = page.read(OUT, second);
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let now = self.output.offer(rest).min(rest.len());
            if now == 0 {
                break;
            }
            taken += now;
        }
        at = at.wrapping_add(taken as u32);
        if taken > 0 {
            page.set_index(OUT_CONSUMER, at);
        }
        taken > 0
    }
}

/// Bytes that the domain's ring takes.
fn room(page: &Page) -> u32 {
    let used = page.index(IN_PRODUCER).wrapping_sub(page.index(IN_CONSUMER));
    IN_SIZE.saturating_sub(used)
}

impl Input for XenConsole {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let Some(page) = &state.page else {
            state.wanted = true;
            return 0;
        };
        let producer = page.index(IN_PRODUCER);
        let take = bytes.len().min(room(page) as usize);
        for (n, byte) in (0..).zip(bytes.iter().take(take)) {
            let at = producer.wrapping_add(n) % IN_SIZE;
            let _ = page.write(IN + at as usize, std::slice::from_ref(byte));
        }
        if take > 0 {
            page.set_index(IN_PRODUCER, producer.wrapping_add(take as u32));
        }
        state.wanted |= take < bytes.len();
        drop(state);
        if take > 0 {
            self.call(&self.notify);
        }
        take
    }

    fn on_room(&self, callback: Callback) {
        let _ = self.room.set(callback);
    }
}

#[cfg(test)]
mod tests;
