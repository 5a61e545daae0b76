//! What a driver has chosen, as it says in its folder.

use crate::RING_ORDER_MAX;
use xen_front::{GrantRef, Nodes};

/// `XEN_IO_PROTO_ABI_X86_64` (`io/protocols.h`).
const PROTOCOL: &str = "x86_64-abi";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueChoice {
    /// Pages of the ring, one at least.
    pub(crate) ring: Vec<GrantRef>,
    pub(crate) port: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) queues: Vec<QueueChoice>,
    /// Pages stay granted, and may stay in use.
    pub(crate) persistent: bool,
}

/// A number, where there is one.
fn number(front: &Nodes, name: &str) -> Result<Option<u32>, String> {
    let Some(text) = front.get(name) else { return Ok(None) };
    // What the driver wrote may be long.
    let wrong = || format!("{name} is {:?}", text.chars().take(40).collect::<String>());
    text.parse().map(Some).map_err(|_| wrong())
}

fn needed(front: &Nodes, name: &str) -> Result<u32, String> {
    number(front, name)?.ok_or_else(|| format!("it has no {name}"))
}

impl Choice {
    pub(crate) fn parse(front: &Nodes, queues_most: u16) -> Result<Self, String> {
        // Its own, if it does not say.
        if front.get("protocol").is_some_and(|protocol| protocol != PROTOCOL) {
            return Err(format!("its protocol is not {PROTOCOL}"));
        }
        let count = number(front, "multi-queue-num-queues")?.unwrap_or(1);
        if !(1..=u32::from(queues_most)).contains(&count) {
            return Err(format!("it has {count} queues, where {queues_most} are offered"));
        }
        let order = number(front, "ring-page-order")?.unwrap_or(0);
        if order > RING_ORDER_MAX {
            return Err(format!("ring-page-order is {order}, and {RING_ORDER_MAX} is offered"));
        }
        // A single queue has its nodes in the folder itself.
        let queue = |index| match count {
            1 => QueueChoice::parse(front, "", order),
            _ => QueueChoice::parse(front, &format!("queue-{index}/"), order),
        };
        let queues = (0..count).map(queue).collect::<Result<_, _>>()?;
        let persistent = front.get("feature-persistent").is_some_and(|value| value == "1");
        Ok(Self { queues, persistent })
    }
}

impl QueueChoice {
    fn parse(front: &Nodes, folder: &str, order: u32) -> Result<Self, String> {
        let single = format!("{folder}ring-ref");
        let ring = match number(front, &single)? {
            Some(page) if order == 0 => vec![page],
            _ => (0..1 << order)
                .map(|page: u32| needed(front, &format!("{single}{page}")))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self { ring, port: needed(front, &format!("{folder}event-channel"))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Choice, String> {
        let node = |pair: &str| pair.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned()));
        Choice::parse(&text.split_whitespace().filter_map(node).collect(), 4)
    }

    #[test]
    fn what_linux_writes_is_understood() {
        let plain = parse("ring-ref=8 event-channel=5 protocol=x86_64-abi feature-persistent=1");
        let one = |ring: &[u32], port| QueueChoice { ring: ring.to_vec(), port };
        let persistent = true;
        assert_eq!(plain, Ok(Choice { queues: vec![one(&[8], 5)], persistent }));
        let many = parse(
            "multi-queue-num-queues=2 ring-page-order=1 queue-0/ring-ref0=8 queue-0/ring-ref1=9 \
             queue-0/event-channel=5 queue-1/ring-ref0=10 queue-1/ring-ref1=11 \
             queue-1/event-channel=6",
        );
        let queues = vec![one(&[8, 9], 5), one(&[10, 11], 6)];
        assert_eq!(many, Ok(Choice { queues, persistent: false }));
        let first = parse("ring-page-order=0 ring-ref0=8 event-channel=5").unwrap();
        assert_eq!(first.queues, [one(&[8], 5)]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, why) in [
            ("", "it has no ring-ref0"),
            ("ring-ref=8", "it has no event-channel"),
            ("ring-ref=-1 event-channel=5", "ring-ref is \"-1\""),
            ("ring-ref=4294967296 event-channel=5", "ring-ref is \"4294967296\""),
            ("ring-ref=8 event-channel=5 protocol=x86_32-abi", "its protocol is not x86_64-abi"),
            ("multi-queue-num-queues=5", "it has 5 queues, where 4 are offered"),
            ("multi-queue-num-queues=0", "it has 0 queues, where 4 are offered"),
            ("multi-queue-num-queues=2 ring-ref=8 event-channel=5", "it has no queue-0/ring-ref0"),
            ("ring-page-order=5", "ring-page-order is 5, and 4 is offered"),
            ("ring-page-order=4294967295", "ring-page-order is 4294967295, and 4 is offered"),
            ("ring-page-order=1 ring-ref0=8 event-channel=5", "it has no ring-ref1"),
            ("ring-page-order=1 ring-ref=8 event-channel=5", "it has no ring-ref0"),
        ] {
            assert_eq!(parse(text), Err(why.to_owned()), "{text}");
        }
        let long = parse(&format!("ring-ref={}", "x".repeat(100_000))).unwrap_err();
        assert!(long.len() < 100, "{long}");
    }
}
