//! Event channels: ports, what they are bound to, and the two-level bits that tell of them
//! (`event_channel.h`), unless the domain has chosen [queues](crate::fifo).

use crate::{
    fifo::{Fifo, PORTS_FIFO},
    memory::Memory,
};
use std::mem::offset_of;
use xen_abi::{
    DOMID_SELF, DomainId,
    errno::Errno,
    event_channel::{PORTS_2LEVEL, fifo::PRIORITY_DEFAULT, status, virq},
    xen::{SharedInfo, VcpuInfo},
};

/// What a port is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Port {
    #[default]
    Free,
    /// For that domain to bind.
    Unbound(DomainId),
    Virq(u32),
    Ipi,
    /// To what serves the domain outside of it from its start: a number of the board's.
    Backend(u32),
    /// To a back end that bound it.
    Bound,
}

#[derive(Clone, Copy, Debug)]
pub struct Channel {
    pub port: Port,
    pub vcpu: u32,
    /// The queue that it goes into, of its vCPU's.
    pub priority: u8,
    /// The queue that it was in last, whatever the port was then.
    pub last: (u32, u8),
    /// It is pending, and has no word yet that says so.
    pub waits: bool,
}

impl Default for Channel {
    fn default() -> Self {
        Self::new(Port::Free, 0)
    }
}

impl Channel {
    pub fn new(port: Port, vcpu: u32) -> Self {
        Self { port, vcpu, priority: PRIORITY_DEFAULT, last: (0, 0), waits: false }
    }
}

#[derive(Debug)]
pub struct Events {
    channels: Vec<Channel>,
    shared_info: u64,
    /// Queues, if the domain has chosen them.
    pub fifo: Option<Fifo>,
}

impl Events {
    /// `shared_info` is the page's guest-physical address.
    pub fn new(shared_info: u64) -> Self {
        // Port 0 is none.
        let none = Channel::new(Port::Unbound(DOMID_SELF), 0);
        Self { channels: vec![none], shared_info, fifo: None }
    }

    /// All of them, by port.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    pub fn set_channels(&mut self, channels: Vec<Channel>) {
        self.channels = channels;
    }

    /// How many ports there can be, with the one that is none.
    pub fn limit(&self) -> usize {
        match self.fifo {
            None => PORTS_2LEVEL as usize,
            Some(_) => PORTS_FIFO,
        }
    }

    /// A port that is bound to this.
    pub fn bind(&mut self, port: Port, vcpu: u32, memory: &Memory) -> Result<u32, Errno> {
        let linked = |port| self.fifo.as_ref().is_some_and(|fifo| fifo.is_linked(port, memory));
        let is_free =
            |(port, channel): (u32, &Channel)| channel.port == Port::Free && !linked(port);
        let free = (0..).zip(&self.channels).position(is_free);
        let number = match free {
            Some(number) => number,
            None if self.channels.len() < self.limit() => {
                self.channels.push(Channel::default());
                self.channels.len() - 1
            }
            None => return Err(Errno::NoSpc),
        };
        if let Some(slot) = self.channels.get_mut(number) {
            *slot = Channel { last: slot.last, ..Channel::new(port, vcpu) };
        }
        Ok(number as u32)
    }

    /// The port's other end: the domain that is to bind it, or a back end that has.
    pub fn set(&mut self, port: u32, what: Port) {
        if let Some(channel) = self.channels.get_mut(port as usize) {
            channel.port = what;
        }
    }

    pub fn get(&self, port: u32) -> Option<Channel> {
        let channel = self.channels.get(port as usize).copied()?;
        (port != 0 && channel.port != Port::Free).then_some(channel)
    }

    /// The port of a vCPU's interrupt of the hypervisor.
    pub fn of_virq(&self, number: u32, vcpu: u32) -> Option<u32> {
        let wanted = |channel: &Channel| {
            channel.port == Port::Virq(number) && (channel.vcpu == vcpu || number >= virq::COUNT)
        };
        self.channels.iter().position(wanted).map(|port| port as u32)
    }

    pub fn close(&mut self, port: u32, memory: &Memory) -> Result<(), Errno> {
        self.get(port).ok_or(Errno::Inval)?;
        if let Some(channel) = self.channels.get_mut(port as usize) {
            *channel = Channel { last: channel.last, ..Channel::default() };
        }
        if let Some(fifo) = &self.fifo {
            fifo.clear_pending(port, memory);
            return Ok(());
        }
        let (word, bit) = (u64::from(port / 64) * 8, 1 << (port % 64));
        change(memory, self.pending_at(word), |bits| bits & !bit);
        Ok(())
    }

    /// Another vCPU is told from now on.
    pub fn move_to(&mut self, port: u32, vcpu: u32) -> Result<(), Errno> {
        match self.channels.get_mut(port as usize) {
            Some(channel)
                if port != 0
                    && matches!(
                        channel.port,
                        Port::Unbound(_) | Port::Backend(_) | Port::Bound
                    ) =>
            {
                channel.vcpu = vcpu;
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// `EVTCHNSTAT_*`, and what the port is bound to.
    pub fn status(&self, port: u32) -> (u32, u32, u32) {
        match self.get(port) {
            None => (status::CLOSED, 0, 0),
            Some(Channel { port, vcpu, .. }) => match port {
                Port::Free => (status::CLOSED, 0, 0),
                Port::Unbound(by) => (status::UNBOUND, vcpu, u32::from(by)),
                Port::Virq(number) => (status::VIRQ, vcpu, number),
                Port::Ipi => (status::IPI, vcpu, 0),
                Port::Backend(_) | Port::Bound => (status::INTERDOMAIN, vcpu, 0),
            },
        }
    }

    fn pending_at(&self, word: u64) -> u64 {
        self.shared_info + offset_of!(SharedInfo, pending) as u64 + word
    }

    fn mask_at(&self, word: u64) -> u64 {
        self.shared_info + offset_of!(SharedInfo, mask) as u64 + word
    }

    /// A port becomes pending: the vCPU that is to be told, if it was not already and is not masked.
    pub fn raise(&mut self, port: u32, memory: &Memory) -> Option<u32> {
        let channel = self.get(port)?;
        if let Some(fifo) = &mut self.fifo {
            return fifo.raise(port, self.channels.get_mut(port as usize)?, memory);
        }
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        let before = change(memory, self.pending_at(word), |bits| bits | bit);
        let masked = memory.load(self.mask_at(word)) & bit != 0;
        (before & bit == 0 && !masked).then_some(channel.vcpu)
    }

    /// A port is not masked any more: as [`Events::raise`], if it is pending.
    pub fn unmask(&mut self, port: u32, memory: &Memory) -> Result<Option<u32>, Errno> {
        let channel = self.get(port).ok_or(Errno::Inval)?;
        if let (Some(fifo), Some(channel)) = (&mut self.fifo, self.channels.get_mut(port as usize))
        {
            return Ok(fifo.unmask(port, channel, memory));
        }
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        let before = change(memory, self.mask_at(word), |bits| bits & !bit);
        let pending = memory.load(self.pending_at(word)) & bit != 0;
        Ok((before & bit != 0 && pending).then_some(channel.vcpu))
    }

    pub fn is_pending(&self, port: u32, memory: &Memory) -> bool {
        if let Some(fifo) = &self.fifo {
            let waits = self.get(port).is_some_and(|channel| channel.waits);
            return waits || fifo.is_pending(port, memory);
        }
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        port < PORTS_2LEVEL && memory.load(self.pending_at(word)) & bit != 0
    }

    /// From now on there are queues. What is pending waits for its word.
    pub fn begin_fifo(&mut self, vcpus: usize, memory: &Memory) {
        if self.fifo.is_some() {
            return;
        }
        for port in 0..self.channels.len() as u32 {
            let waits = self.get(port).is_some() && self.is_pending(port, memory);
            if let Some(channel) = self.channels.get_mut(port as usize) {
                channel.waits = waits;
            }
        }
        self.fifo = Some(Fifo::new(vcpus));
    }

    /// Whether a port waited for its word; it does not any more.
    pub fn waits(&mut self, port: u32) -> bool {
        let channel = self.channels.get_mut(port as usize);
        channel.is_some_and(|channel| std::mem::take(&mut channel.waits))
    }

    pub fn set_priority(&mut self, port: u32, priority: u8) -> Result<(), Errno> {
        self.get(port).ok_or(Errno::Inval)?;
        if let Some(channel) = self.channels.get_mut(port as usize) {
            channel.priority = priority;
        }
        Ok(())
    }

    /// A vCPU's information says that this port has something: true if the vCPU has to look.
    pub fn tell(&self, memory: &Memory, info: u64, port: u32) -> bool {
        if self.fifo.is_none() {
            let bit = 1u64 << (port / 64);
            let at = info + offset_of!(VcpuInfo, pending_sel) as u64;
            let before = change(memory, at, |bits| bits | bit);
            if before & bit != 0 {
                return false;
            }
        }
        change(memory, info, |word| word | 1) & 0xff == 0
    }
}

/// Whether a vCPU has events that it does not mask.
pub fn wanted(memory: &Memory, info: u64) -> bool {
    let word = memory.load(info);
    word & 0xff != 0 && word >> 8 & 0xff == 0
}

/// What was there.
pub fn change(memory: &Memory, at: u64, f: impl Fn(u64) -> u64) -> u64 {
    // The domain may write there at any time, but not for ever between these two.
    loop {
        let old = memory.load(at);
        let new = f(old);
        if new == old || memory.exchange(at, old, new) {
            return old;
        }
        if !memory.is_there(at) {
            return 0;
        }
    }
}
