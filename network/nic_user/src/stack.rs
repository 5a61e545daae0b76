//! The network as one object: frames of the guest, events of sockets and times go in here.
//!
//! It is used by one thread and knows nothing of it; tests drive it by hand.

use std::{io, sync::Arc, time::Instant};

use nic::Port;

use crate::{
    context::{Context, earlier},
    counters::Counters,
    dhcp::Leases,
    dns::Relay,
    forward::{Forwards, Opened},
    host::{Ready, Token},
    icmp::Echoes,
    ingress::Ignored,
    neighbour::Router,
    reassembly::Reassembly,
    tcp::{self, Orphan},
    tftp::Tftp,
    udp,
};

/// Frames that are taken from the guest before sockets have their turn.
const BATCH: usize = 64;

pub(crate) struct Stack {
    pub(crate) tcp: tcp::Table,
    pub(crate) udp: udp::Table,
    pub(crate) echoes: Echoes,
    pub(crate) dns: Relay,
    pub(crate) tftp: Tftp,
    pub(crate) leases: Leases,
    pub(crate) reassembly: Reassembly,
    router: Router,
    forwards: Forwards,
    /// A frame of the guest.
    frame: Vec<u8>,
}

/// What is saved of a stack, and restored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) leases: Leases,
    pub(crate) orphans: Vec<Orphan>,
}

impl Stack {
    pub(crate) fn new(
        forwards: Vec<Opened>,
        dns_port: Option<u16>,
        cx: &Context,
    ) -> io::Result<Self> {
        Ok(Self {
            tcp: tcp::Table::default(),
            udp: udp::Table::default(),
            echoes: Echoes::default(),
            dns: Relay::new(dns_port),
            tftp: Tftp::default(),
            leases: Leases::default(),
            reassembly: Reassembly::default(),
            router: Router::default(),
            forwards: Forwards::new(forwards, cx)?,
            frame: vec![0; nic::FRAME_MAX],
        })
    }

    /// One round: what sockets have become ready for, what the guest has sent, what is due.
    /// `woken`: by the card, which may have room again. Whether there is more to do at once.
    pub(crate) fn round(
        &mut self,
        port: Option<Arc<dyn Port>>,
        woken: bool,
        events: &[(Token, Ready)],
        cx: &mut Context,
    ) -> bool {
        cx.now = Instant::now();
        let connected = port.is_some();
        cx.link.begin(port);
        if connected && woken {
            self.tcp.unblock(cx);
        }
        for (token, ready) in events {
            self.event(*token, *ready, cx);
        }
        let mut more = self.take_frames(cx);
        if connected {
            self.timers(cx);
            more |= self.tcp.serve(cx);
        }
        cx.link.end();
        more
    }

    fn event(&mut self, token: Token, ready: Ready, cx: &mut Context) {
        match token {
            // The thread has seen to it.
            Token::Wake => {}
            Token::Tcp(id) => self.tcp.event(id, ready, cx),
            Token::Udp(id) => self.udp.event(id, cx),
            Token::Echo(id) => self.echoes.event(id, cx),
            Token::Dns(id) => self.dns.event(id, cx),
            Token::Forward(index) => {
                self.forwards.event(index, &self.leases, &mut self.tcp, &mut self.udp, cx);
            }
        }
    }

    fn take_frames(&mut self, cx: &mut Context) -> bool {
        let Some(port) = cx.link.port() else { return false };
        let mut buffer = std::mem::take(&mut self.frame);
        let mut more = true;
        for _ in 0..BATCH {
            let Some(taken) = port.take(&mut buffer) else {
                more = false;
                break;
            };
            let frame = buffer.get(..taken.len).unwrap_or_default();
            cx.link.counters.frames_from_guest += 1;
            cx.link.counters.bytes_from_guest += frame.len() as u64;
            if let Err(Ignored) = self.frame(frame, &taken.meta, cx) {
                cx.link.counters.ignored += 1;
            }
        }
        self.frame = buffer;
        more
    }

    fn timers(&mut self, cx: &mut Context) {
        self.tcp.timers(cx);
        self.udp.timers(cx);
        self.echoes.timers(cx);
        self.dns.timers(cx);
        self.tftp.timers(cx);
        self.router.timers(cx);
        self.forwards.timers(&self.leases, &mut self.tcp, &mut self.udp, cx);
    }

    /// When the next round is due at the latest.
    pub(crate) fn due(&self) -> Option<Instant> {
        [
            self.tcp.due(),
            self.udp.due(),
            self.echoes.due(),
            self.dns.due(),
            self.tftp.due(),
            self.router.due(),
            self.forwards.due(),
        ]
        .into_iter()
        .fold(None, earlier)
    }

    pub(crate) fn counters(&self, cx: &Context) -> (Counters, usize, usize) {
        (cx.link.counters, self.tcp.len(), self.udp.len())
    }

    /// The guest begins anew: what it had open is closed.
    pub(crate) fn reset(&mut self, cx: &mut Context) {
        self.tcp.clear();
        self.udp.clear();
        self.echoes.clear();
        self.dns.clear();
        self.tftp.clear();
        self.reassembly.clear();
        cx.link.forget();
    }

    pub(crate) fn save(&self) -> Memory {
        Memory { leases: self.leases.clone(), orphans: self.tcp.orphans() }
    }

    /// Flows cannot be carried over: the guest is told that they are reset.
    pub(crate) fn restore(&mut self, memory: Memory, cx: &mut Context) {
        self.reset(cx);
        self.leases = memory.leases;
        self.tcp.adopt(memory.orphans);
    }
}
