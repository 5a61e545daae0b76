//! The thread of what serves a domain: its timers, its console, its xenstore.

use crate::{Around, lock};
use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};
use xen_bus::{Bus, Event};
use xen_pv::{CONSOLE_PORT, STORE_PORT, XenPv};
use xen_store::{Ring, Store};

#[derive(Debug, Default)]
struct Work {
    store: bool,
    console: bool,
    over: bool,
    deadlines: Vec<Option<u64>>,
}

#[derive(Debug)]
pub struct Service {
    work: Mutex<Work>,
    changed: Condvar,
}

impl Service {
    pub fn new(vcpus: u32) -> Self {
        let deadlines = vec![None; vcpus as usize];
        Self { work: Mutex::new(Work { deadlines, ..Work::default() }), changed: Condvar::new() }
    }

    fn with(&self, f: impl FnOnce(&mut Work)) {
        f(&mut lock(&self.work));
        self.changed.notify_one();
    }

    pub fn set_timer(&self, vcpu: u32, deadline: Option<u64>) {
        self.with(|work| {
            if let Some(slot) = work.deadlines.get_mut(vcpu as usize) {
                *slot = deadline;
            }
        });
    }

    pub fn ring_store(&self) {
        self.with(|work| work.store = true);
    }

    pub fn ring_console(&self) {
        self.with(|work| work.console = true);
    }

    pub fn finish(&self) {
        self.with(|work| work.over = true);
    }
}

/// Until the domain is over.
pub fn serve(around: &Around, xen: &XenPv, mut ring: Ring, mut store: Store, mut bus: Bus) {
    let service = &around.service;
    loop {
        let mut work = lock(&service.work);
        let mut due = Vec::new();
        loop {
            if work.over {
                bus.disconnect();
                return;
            }
            let now = around.now();
            for (id, slot) in (0..).zip(&mut work.deadlines) {
                if slot.is_some_and(|at| at <= now) {
                    *slot = None;
                    due.push(id);
                }
            }
            if work.store || work.console || !due.is_empty() {
                break;
            }
            let next = work.deadlines.iter().flatten().min();
            let wait = next.map_or(Duration::from_secs(1), |at| Duration::from_nanos(at - now));
            let waited = service.changed.wait_timeout(work, wait);
            work = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let (for_store, for_console) = (work.store, work.console);
        (work.store, work.console) = (false, false);
        drop(work);
        for vcpu in due {
            xen.timer(vcpu);
        }
        if for_store {
            let served = ring.serve(&mut store);
            if served.moved {
                xen.raise(STORE_PORT);
            }
            if served.more {
                service.ring_store();
            }
            while let Some(path) = store.next_change() {
                for event in bus.changed(&mut store, &path) {
                    if let Event::Failed(..) = event {
                        around.console.say(format!("{event}\n").as_bytes());
                    }
                }
                // Watches of the guest's may be due.
                service.ring_store();
            }
        }
        if for_console && around.console.serve() {
            xen.raise(CONSOLE_PORT);
        }
    }
}
