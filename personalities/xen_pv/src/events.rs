//! Event channels: ports, what they are bound to, and the two-level bits that tell of them
//! (`event_channel.h`).

use crate::memory::Memory;
use std::mem::offset_of;
use xen_abi::{
    DOMID_SELF, DomainId,
    errno::Errno,
    event_channel::{PORTS_2LEVEL, status, virq},
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

#[derive(Clone, Copy, Debug, Default)]
pub struct Channel {
    pub port: Port,
    pub vcpu: u32,
}

#[derive(Debug)]
pub struct Events {
    channels: Vec<Channel>,
    shared_info: u64,
}

impl Events {
    /// `shared_info` is the page's guest-physical address.
    pub fn new(shared_info: u64) -> Self {
        // Port 0 is none.
        Self { channels: vec![Channel { port: Port::Unbound(DOMID_SELF), vcpu: 0 }], shared_info }
    }

    /// All of them, by port.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    pub fn set_channels(&mut self, channels: Vec<Channel>) {
        self.channels = channels;
    }

    /// A port that is bound to this.
    pub fn bind(&mut self, port: Port, vcpu: u32) -> Result<u32, Errno> {
        let channel = Channel { port, vcpu };
        let free = self.channels.iter().position(|channel| channel.port == Port::Free);
        let number = match free {
            Some(number) => number,
            None if self.channels.len() < PORTS_2LEVEL as usize => {
                self.channels.push(Channel::default());
                self.channels.len() - 1
            }
            None => return Err(Errno::NoSpc),
        };
        if let Some(slot) = self.channels.get_mut(number) {
            *slot = channel;
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
            *channel = Channel::default();
        }
        let (word, bit) = (u64::from(port / 64) * 8, 1 << (port % 64));
        change(memory, self.pending_at(word), |bits| bits & !bit);
        Ok(())
    }

    /// Another vCPU is told from now on.
    pub fn move_to(&mut self, port: u32, vcpu: u32) -> Result<(), Errno> {
        match self.channels.get_mut(port as usize) {
            Some(Channel { port: Port::Unbound(_) | Port::Backend(_) | Port::Bound, vcpu: of })
                if port != 0 =>
            {
                *of = vcpu;
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// `EVTCHNSTAT_*`, and what the port is bound to.
    pub fn status(&self, port: u32) -> (u32, u32, u32) {
        match self.get(port) {
            None => (status::CLOSED, 0, 0),
            Some(Channel { port, vcpu }) => match port {
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

    /// A port becomes pending: the vCPU that is to be told, and where its information is, if it was
    /// not already and is not masked.
    pub fn raise(&self, port: u32, memory: &Memory) -> Option<u32> {
        let channel = self.get(port)?;
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        let before = change(memory, self.pending_at(word), |bits| bits | bit);
        let masked = memory.load(self.mask_at(word)) & bit != 0;
        (before & bit == 0 && !masked).then_some(channel.vcpu)
    }

    /// A port is not masked any more: as [`Events::raise`], if it is pending.
    pub fn unmask(&self, port: u32, memory: &Memory) -> Result<Option<u32>, Errno> {
        let channel = self.get(port).ok_or(Errno::Inval)?;
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        let before = change(memory, self.mask_at(word), |bits| bits & !bit);
        let pending = memory.load(self.pending_at(word)) & bit != 0;
        Ok((before & bit != 0 && pending).then_some(channel.vcpu))
    }

    pub fn is_pending(&self, port: u32, memory: &Memory) -> bool {
        let (word, bit) = (u64::from(port / 64) * 8, 1u64 << (port % 64));
        port < PORTS_2LEVEL && memory.load(self.pending_at(word)) & bit != 0
    }
}

/// A vCPU's information says that this port's word has something: true if the vCPU has to look.
pub fn tell(memory: &Memory, info: u64, port: u32) -> bool {
    let bit = 1u64 << (port / 64);
    let at = info + offset_of!(VcpuInfo, pending_sel) as u64;
    let before = change(memory, at, |bits| bits | bit);
    if before & bit != 0 {
        return false;
    }
    change(memory, info, |word| word | 1) & 0xff == 0
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
