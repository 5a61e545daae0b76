//! Event channels by queues: an array of words, one for each port, which are linked in a queue for each
//! vCPU and priority (`event_channel.h`, `EVTCHNOP_init_control`).
//!
//! The words and the heads of queues are in pages of the domain's, which it may fill with anything at any
//! time. What is kept here is where each queue ends, so that nothing follows a link; and a word that
//! changes all the time is tried so many times. Who breaks the rules loses events of its own.

use crate::{Domain, XenPv, events::Channel, frames::Forget, memory::Memory};
use engine::CpuView;
use guest_mem::PAGE;
use std::mem::offset_of;
use xen_abi::{
    errno::Errno,
    event_channel::{
        FifoControlBlock, InitControl, SetPriority,
        fifo::{BUSY, LINK, LINK_BITS, LINKED, MASKED, PENDING, PRIORITY_MIN, QUEUES},
    },
};

/// Words of a page.
pub const PER_PAGE: u32 = (PAGE / 4) as u32;
/// Pages of words that a domain can have, of 128 that ports have names for: there are no more ports
/// than these have words.
pub const PAGES_MAX: usize = 16;
/// Ports that a domain with queues can have, with the one that is none.
pub const PORTS_FIFO: usize = PAGES_MAX * PER_PAGE as usize;
/// How often a link is tried before the domain is asked to wait, and after that; Xen does so 4 times.
const LINK_TRIES: u32 = 4;
/// How often another change is.
const TRIES: u32 = 1 << 10;

/// A vCPU's queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Where its control block is.
    pub at: u64,
    /// The last port of each queue, 0 for none.
    pub tails: [u32; QUEUES],
}

#[derive(Debug)]
pub struct Fifo {
    /// Frames of the words.
    pub array: Vec<u64>,
    /// By vCPU.
    pub queues: Vec<Option<Queues>>,
}

/// Changes a word; what was there. It has not changed if the domain does not let it.
fn change(memory: &Memory, at: u64, f: impl Fn(u32) -> u32) -> u32 {
    for _ in 0..TRIES {
        let old = memory.load_32(at);
        let new = f(old);
        if new == old || memory.exchange_32(at, old, new) {
            return old;
        }
    }
    memory.load_32(at)
}

/// Makes a port follow the one whose word is here. False: that is in no queue any more.
fn link(memory: &Memory, at: u64, port: u32) -> bool {
    for last in [false, true] {
        for _ in 0..LINK_TRIES {
            let word = memory.load_32(at);
            if word & LINKED == 0 {
                change(memory, at, |word| word & !BUSY);
                return false;
            }
            if memory.exchange_32(at, word, word & !(BUSY | LINK) | port) {
                return true;
            }
        }
        // A kernel that unmasks a port waits meanwhile.
        change(memory, at, |word| if last { word & !BUSY } else { word | BUSY });
    }
    // As Xen: the event is lost.
    true
}

impl Fifo {
    pub fn new(vcpus: usize) -> Self {
        Self { array: Vec::new(), queues: vec![None; vcpus] }
    }

    /// Where a port's word is.
    fn word(&self, port: u32) -> Option<u64> {
        let frame = self.array.get((port / PER_PAGE) as usize)?;
        Some(frame * PAGE + u64::from(port % PER_PAGE) * 4)
    }

    fn load(&self, port: u32, memory: &Memory) -> u32 {
        self.word(port).map_or(0, |at| memory.load_32(at))
    }

    pub fn is_pending(&self, port: u32, memory: &Memory) -> bool {
        self.load(port, memory) & PENDING != 0
    }

    /// A port that is in a queue still is not to be another one.
    pub fn is_linked(&self, port: u32, memory: &Memory) -> bool {
        self.load(port, memory) & LINKED != 0
    }

    pub fn clear_pending(&self, port: u32, memory: &Memory) {
        if let Some(at) = self.word(port) {
            change(memory, at, |word| word & !PENDING);
        }
    }

    /// A port becomes pending; the vCPU that has to be told, if one has.
    pub fn raise(&mut self, port: u32, channel: &mut Channel, memory: &Memory) -> Option<u32> {
        let Some(at) = self.word(port) else {
            // Its word comes later.
            channel.waits = true;
            return None;
        };
        let has_queues = self.queues(channel.vcpu).is_some();
        let before = change(memory, at, |word| {
            let free = has_queues && word & (MASKED | LINKED) == 0;
            word | PENDING | if free { LINKED } else { 0 }
        });
        let free = has_queues && before & (MASKED | LINKED) == 0;
        if free { self.append(port, channel, memory) } else { None }
    }

    /// A port is not masked any more: it goes into its queue, if it is pending.
    pub fn unmask(&mut self, port: u32, channel: &mut Channel, memory: &Memory) -> Option<u32> {
        let at = self.word(port)?;
        let before = change(memory, at, |word| word & !MASKED);
        if before & PENDING != 0 { self.raise(port, channel, memory) } else { None }
    }

    fn queues(&mut self, vcpu: u32) -> Option<&mut Queues> {
        self.queues.get_mut(vcpu as usize)?.as_mut()
    }

    /// Appends a port, which is in no queue, to its queue.
    fn append(&mut self, port: u32, channel: &mut Channel, memory: &Memory) -> Option<u32> {
        // Where it was the last one that queue is empty: what is linked behind the port now would be
        // in another queue.
        let (vcpu, priority) = channel.last;
        let last = self.queues(vcpu).and_then(|queues| queues.tails.get_mut(usize::from(priority)));
        if let Some(tail) = last.filter(|tail| **tail == port) {
            *tail = 0;
        }
        let (vcpu, priority) = (channel.vcpu, usize::from(channel.priority));
        channel.last = (vcpu, channel.priority);
        let queues = self.queues(vcpu)?;
        let block = queues.at;
        let tail = std::mem::replace(queues.tails.get_mut(priority)?, port);
        let word = if tail == 0 { None } else { self.word(tail) };
        if word.is_some_and(|at| link(memory, at, port)) {
            return None;
        }
        let heads = block + offset_of!(FifoControlBlock, head) as u64;
        memory.store_32(heads + priority as u64 * 4, port);
        let ready = 1u32.checked_shl(priority as u32)?;
        let before = change(memory, block, |all| all | ready);
        (before & ready == 0).then_some(vcpu)
    }
}

impl Domain {
    /// `EVTCHNOP_init_control`: a vCPU gets queues; with the first of them the domain has no ports of
    /// two levels any more.
    pub fn init_control(
        &mut self,
        cpu: &mut dyn CpuView,
        call: &InitControl,
    ) -> Result<InitControl, Errno> {
        self.known(call.vcpu)?;
        let queues = self.events.fifo.as_ref().and_then(|fifo| fifo.queues.get(call.vcpu as usize));
        if queues.is_some_and(Option::is_some) {
            return Err(Errno::Inval);
        }
        let at = self.control_block(call.control_frame, call.offset)?;
        self.hold_own(call.control_frame, &mut |frame| cpu.forget_writes(frame * PAGE))?;
        self.events.begin_fifo(self.known.len(), &self.tables.memory);
        if let Some(fifo) = &mut self.events.fifo
            && let Some(slot) = fifo.queues.get_mut(call.vcpu as usize)
        {
            *slot = Some(Queues { at, tails: [0; QUEUES] });
        }
        Ok(InitControl { link_bits: LINK_BITS, ..*call })
    }

    /// The address of a control block, which is in one page of the domain's.
    fn control_block(&self, frame: u64, offset: u32) -> Result<u64, Errno> {
        let offset = u64::from(offset);
        let right =
            offset.is_multiple_of(8) && offset <= PAGE - size_of::<FifoControlBlock>() as u64;
        if right && self.is_own_ram(frame) { Ok(frame * PAGE + offset) } else { Err(Errno::Inval) }
    }

    /// Holds a page of the domain's that the hypervisor writes.
    fn hold_own(&mut self, frame: u64, forget: Forget<'_>) -> Result<(), Errno> {
        if !self.is_own_ram(frame) {
            return Err(Errno::Inval);
        }
        self.tables.hold_written(frame, forget)
    }

    /// The domain has no queues any more; their pages are its own.
    pub fn end_fifo(&mut self) {
        let Some(Fifo { array, queues }) = self.events.fifo.take() else { return };
        let blocks = queues.iter().flatten().map(|queues| queues.at / PAGE);
        array.iter().copied().chain(blocks).for_each(|frame| self.tables.release_written(frame));
    }

    /// What was saved of queues is used again, with the pages that it is in.
    pub fn fifo_again(
        &mut self,
        array: Vec<u64>,
        queues: Vec<Option<Queues>>,
    ) -> Result<(), Errno> {
        if array.len() > PAGES_MAX || queues.len() != self.known.len() {
            return Err(Errno::Inval);
        }
        for frame in &array {
            self.hold_own(*frame, &mut |_| {})?;
        }
        for Queues { at, .. } in queues.iter().flatten() {
            self.control_block(at / PAGE, (at % PAGE) as u32)?;
            self.hold_own(at / PAGE, &mut |_| {})?;
        }
        self.events.fifo = Some(Fifo { array, queues });
        Ok(())
    }
}

impl XenPv {
    /// `EVTCHNOP_expand_array`: words for more ports.
    pub(crate) fn expand_array(
        &self,
        domain: &mut Domain,
        cpu: &mut dyn CpuView,
        frame: u64,
    ) -> Result<(), Errno> {
        let pages = domain.events.fifo.as_ref().ok_or(Errno::OpNotSupp)?.array.len();
        if pages >= PAGES_MAX {
            return Err(Errno::NoSpc);
        }
        domain.hold_own(frame, &mut |frame| cpu.forget_writes(frame * PAGE))?;
        if let Some(fifo) = &mut domain.events.fifo {
            fifo.array.push(frame);
        }
        domain.tables.work += u64::from(PER_PAGE);
        let first = pages as u32 * PER_PAGE;
        for port in first..first + PER_PAGE {
            if domain.events.waits(port) {
                self.raise_in(domain, port);
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_set_priority`: of the queue that a port goes into the next time.
    pub(crate) fn set_priority(domain: &mut Domain, call: SetPriority) -> Result<(), Errno> {
        if domain.events.fifo.is_none() {
            return Err(Errno::NoSys);
        }
        let priority = u8::try_from(call.priority).map_err(|_| Errno::Inval)?;
        if priority > PRIORITY_MIN {
            return Err(Errno::Inval);
        }
        domain.events.set_priority(call.port, priority)
    }
}
