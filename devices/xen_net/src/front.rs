//! The front end: what it chose in xenstore, and its rings and ports in use.

use crate::QueueState;
use nic::{Network, Offloads};
use std::{fmt::Display, sync::Arc};
use xen_abi::netif::{RxRequest, TxRequest};
use xen_front::{Access, Channel, Domain, Grant, GrantRef, Nodes, Position, Ring};

/// A queue as its nodes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub transmit: GrantRef,
    pub receive: GrantRef,
    pub transmit_port: u32,
    pub receive_port: u32,
}

/// What the front end chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub pairs: Vec<Pair>,
    pub wants: Wants,
}

/// What frames for the front end may be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wants {
    /// What [`nic::Port::offloads`] says.
    pub offloads: Offloads,
    /// Checksums may be left undone in IPv6 too.
    pub checksum6: bool,
    /// A frame may lie in several pages.
    pub scatter: bool,
}

fn number(nodes: &Nodes, name: &str) -> Result<Option<u32>, String> {
    let parse = |text: &String| text.trim().parse();
    nodes.get(name).map(parse).transpose().map_err(|_| format!("{name} is not a number"))
}

fn needed(nodes: &Nodes, name: &str) -> Result<u32, String> {
    number(nodes, name)?.ok_or_else(|| format!("{name} is missing"))
}

fn flag(nodes: &Nodes, name: &str) -> Result<bool, String> {
    Ok(number(nodes, name)?.unwrap_or(0) != 0)
}

impl Pair {
    /// Its nodes are in a folder if there are several queues.
    fn of(nodes: &Nodes, folder: &str) -> Result<Self, String> {
        let name = |name: &str| format!("{folder}{name}");
        let own = number(nodes, &name("event-channel-tx"))?
            .zip(number(nodes, &name("event-channel-rx"))?);
        let (transmit_port, receive_port) = match own {
            Some(ports) => ports,
            None => {
                let both = needed(nodes, &name("event-channel"))?;
                (both, both)
            }
        };
        Ok(Self {
            transmit: needed(nodes, &name("tx-ring-ref"))?,
            receive: needed(nodes, &name("rx-ring-ref"))?,
            transmit_port,
            receive_port,
        })
    }
}

impl Choice {
    /// Of the front end's nodes, where so many queues are offered.
    pub fn of(nodes: &Nodes, queues: u16) -> Result<Self, String> {
        if !flag(nodes, "request-rx-copy")? {
            return Err("the driver wants frames in pages of another domain".into());
        }
        let pairs = match number(nodes, "multi-queue-num-queues")?.unwrap_or(1) {
            1 => vec![Pair::of(nodes, "")?],
            count if (2..=u32::from(queues)).contains(&count) => {
                let pairs = (0..count).map(|queue| Pair::of(nodes, &format!("queue-{queue}/")));
                pairs.collect::<Result<_, _>>()?
            }
            count => return Err(format!("the driver wants {count} queues of {queues}")),
        };
        let scatter = flag(nodes, "feature-sg")?;
        let checksum = !flag(nodes, "feature-no-csum-offload")?;
        let checksum6 = checksum && flag(nodes, "feature-ipv6-csum-offload")?;
        let offloads = Offloads {
            checksum,
            tso4: checksum && scatter && flag(nodes, "feature-gso-tcpv4")?,
            tso6: checksum6 && scatter && flag(nodes, "feature-gso-tcpv6")?,
        };
        Ok(Self { pairs, wants: Wants { offloads, checksum6, scatter } })
    }
}

/// How far the queues were served, for a state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Served {
    pub queues: Vec<QueueState>,
    pub broken: bool,
}

/// One direction of a queue.
pub(crate) struct Side {
    pub ring: Ring,
    channel: Arc<Channel>,
    /// There are responses that the front end has not seen.
    pub owed: bool,
}

impl Side {
    fn publish(&mut self) -> bool {
        std::mem::take(&mut self.owed) && self.ring.publish()
    }
}

/// A queue in use.
pub(crate) struct Queue {
    pub transmit: Side,
    pub receive: Side,
}

impl Queue {
    /// Lets the front end see what was answered.
    pub fn flush(&mut self) {
        let (sent, received) = (self.transmit.publish(), self.receive.publish());
        if sent {
            self.transmit.channel.notify();
        }
        let heard = sent && Arc::ptr_eq(&self.transmit.channel, &self.receive.channel);
        if received && !heard {
            self.receive.channel.notify();
        }
    }
}

/// A front end that is connected.
pub(crate) struct Front {
    pub domain: Arc<dyn Domain>,
    pub wants: Wants,
    pub queues: Vec<Queue>,
    /// The queue whose turn it is to send, until it has no more, or a batch ends.
    pub turn: usize,
    /// It broke a ring, and is not served.
    pub broken: bool,
}

impl Front {
    /// Uses its pages and binds its ports. Rings go on where they were served to.
    pub fn connect(
        domain: &Arc<dyn Domain>,
        choice: &Choice,
        network: &Arc<dyn Network>,
        served: Option<&Served>,
    ) -> Result<Self, String> {
        if served.is_some_and(|served| served.queues.len() != choice.pairs.len()) {
            return Err("the driver had another number of queues when it was saved".into());
        }
        let ring = |grant, entry, at: Option<u32>| {
            let page = Grant::map(domain, grant, Access::Write).map_err(text)?;
            let at = at.map(|at| Position { taken: at, put: at });
            Ring::new(vec![page], entry, at).ok_or("a ring has no room".to_owned())
        };
        let bind = |port| {
            let network = network.clone();
            let channel = Channel::bind(domain, port, Arc::new(move || network.wake()));
            channel.map(Arc::new).map_err(text)
        };
        let mut queues = Vec::with_capacity(choice.pairs.len());
        for (index, pair) in choice.pairs.iter().enumerate() {
            let at = served.and_then(|served| served.queues.get(index));
            let channel = bind(pair.transmit_port)?;
            let same = pair.transmit_port == pair.receive_port;
            let other = if same { channel.clone() } else { bind(pair.receive_port)? };
            let sent = ring(pair.transmit, size_of::<TxRequest>(), at.map(|at| at.transmit))?;
            let got = ring(pair.receive, size_of::<RxRequest>(), at.map(|at| at.receive))?;
            let owed = at.is_some();
            queues.push(Queue {
                transmit: Side { ring: sent, channel, owed },
                receive: Side { ring: got, channel: other, owed },
            });
        }
        let broken = served.is_some_and(|served| served.broken);
        Ok(Self { domain: domain.clone(), wants: choice.wants, queues, turn: 0, broken })
    }

    pub fn served(&self) -> Served {
        let queues = self.queues.iter().map(|queue| QueueState {
            transmit: queue.transmit.ring.position().put,
            receive: queue.receive.ring.position().put,
        });
        Served { queues: queues.collect(), broken: self.broken }
    }

    /// The numbers of all queues, from one on.
    pub fn from(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.queues.len();
        (0..count).map(move |next| first.wrapping_add(next) % count)
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &str) -> Nodes {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    const PLAIN: &str = "request-rx-copy=1 tx-ring-ref=8 rx-ring-ref=9 ";

    #[test]
    fn one_queue_has_no_folder() {
        let choice = Choice::of(&nodes(&format!("{PLAIN} event-channel=3")), 4).unwrap();
        let pair = Pair { transmit: 8, receive: 9, transmit_port: 3, receive_port: 3 };
        let offloads = Offloads { checksum: true, tso4: false, tso6: false };
        let wants = Wants { offloads, checksum6: false, scatter: false };
        assert_eq!(choice, Choice { pairs: vec![pair], wants });
        let split = format!("{PLAIN} event-channel-tx=3 event-channel-rx=4");
        let choice = Choice::of(&nodes(&split), 4).unwrap();
        assert_eq!(choice.pairs, [Pair { receive_port: 4, ..pair }]);
    }

    #[test]
    fn several_have_one_each() {
        let text = "request-rx-copy=1 multi-queue-num-queues=2
            queue-0/tx-ring-ref=1 queue-0/rx-ring-ref=2 queue-0/event-channel=3
            queue-1/tx-ring-ref=4 queue-1/rx-ring-ref=5 queue-1/event-channel-tx=6
            queue-1/event-channel-rx=7 ";
        let pair = |transmit, receive, transmit_port, receive_port| Pair {
            transmit,
            receive,
            transmit_port,
            receive_port,
        };
        let choice = Choice::of(&nodes(text), 2).unwrap();
        assert_eq!(choice.pairs, [pair(1, 2, 3, 3), pair(4, 5, 6, 7)]);
        let refused = Choice::of(&nodes(text), 1).unwrap_err();
        assert_eq!(refused, "the driver wants 2 queues of 1");
        let missing = Choice::of(&nodes(&text.replace("queue-1/rx-ring-ref", "x")), 2);
        assert_eq!(missing.unwrap_err(), "queue-1/rx-ring-ref is missing");
    }

    #[test]
    fn what_needs_something_else_is_not_used_without() {
        let all =
            "feature-sg=1 feature-gso-tcpv4=1 feature-gso-tcpv6=1 feature-ipv6-csum-offload=1";
        let wants = |text: &str| {
            Choice::of(&nodes(&format!("{PLAIN} event-channel=3 {text}")), 1).unwrap().wants
        };
        let of = |checksum, tso4, tso6| Offloads { checksum, tso4, tso6 };
        assert_eq!(wants(all).offloads, of(true, true, true));
        assert_eq!(wants(&all.replace("sg=1", "sg=0")).offloads, of(true, false, false));
        let none = wants(&format!("{all} feature-no-csum-offload=1"));
        assert_eq!((none.offloads, none.checksum6), (of(false, false, false), false));
        let four = wants(&all.replace("offload=1", "offload=0"));
        assert_eq!((four.offloads, four.checksum6), (of(true, true, false), false));
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, why) in [
            ("tx-ring-ref=1", "the driver wants frames in pages of another domain"),
            ("request-rx-copy=yes", "request-rx-copy is not a number"),
            ("request-rx-copy=1 event-channel=1 tx-ring-ref=-1", "tx-ring-ref is not a number"),
            ("request-rx-copy=1 event-channel=4294967296", "event-channel is not a number"),
            ("request-rx-copy=1 event-channel-tx=1", "event-channel is missing"),
            ("request-rx-copy=1 multi-queue-num-queues=0", "the driver wants 0 queues of 1"),
        ] {
            assert_eq!(Choice::of(&nodes(text), 1).unwrap_err(), why, "{text}");
        }
    }
}
