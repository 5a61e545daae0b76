//! Any sequence of what a driver and a network do, and any bytes in place of what a driver does.

mod driver;

use driver::{ALL, Driver, gso, set_producer, tcp4};
use nic::{Checksum, Meta, SegmentKind, Segmentation};
use proptest::prelude::*;
use std::collections::VecDeque;
use xen_abi::netif::{extra, status, tx};
use xen_front::Backend;

#[derive(Clone, Debug)]
enum Step {
    Send { queue: usize, payload: usize, sizes: Vec<usize>, cut: bool },
    Take,
    Offer { queue: usize, count: usize },
    Give { payload: usize, cut: bool, at: usize },
    Flush,
    Hear,
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = prop::collection::vec(54usize..4096, 0..5);
    prop_oneof![
        (0usize..2, 0usize..4000, sizes, any::<bool>())
            .prop_map(|(queue, payload, sizes, cut)| Step::Send { queue, payload, sizes, cut }),
        Just(Step::Take),
        (0usize..2, 1usize..40).prop_map(|(queue, count)| Step::Offer { queue, count }),
        (0usize..65_000, any::<bool>(), 0usize..65_000).prop_map(|(payload, cut, at)| Step::Give {
            payload,
            cut,
            at
        }),
        Just(Step::Flush),
        Just(Step::Hear),
    ]
}

fn meta(cut: bool) -> Meta {
    if !cut {
        return Meta::default();
    }
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, size: 1000, header_len: 54 };
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    Meta { checksum, segmentation: Some(segmentation) }
}

/// A driver with two queues, and what is under way.
struct Traffic {
    driver: Driver,
    sent: [VecDeque<(Vec<u8>, Meta)>; 2],
    given: [VecDeque<(Vec<u8>, bool)>; 2],
    number: u16,
    /// Slots without an answer.
    slots: [usize; 2],
}

impl Traffic {
    fn new() -> Self {
        let driver = Driver::new(2, false, ALL);
        Self {
            driver,
            sent: Default::default(),
            given: Default::default(),
            number: 0,
            slots: [0; 2],
        }
    }

    fn step(&mut self, step: Step) {
        let driver = &mut self.driver;
        match step {
            Step::Send { queue, payload, sizes, cut } => {
                let extras = if cut { vec![gso(extra::GSO_TCPV4, 1000)] } else { vec![] };
                let slots = sizes.len() + 1 + extras.len();
                // What is left for the last slot is at most a page.
                if self.slots[queue] + slots > 256 {
                    return;
                }
                self.number += 1;
                let frame = tcp4(payload, self.number);
                let flags = if cut { tx::CSUM_BLANK } else { 0 };
                driver.send(queue, &frame, &sizes, flags, &extras);
                self.slots[queue] += slots;
                self.sent[queue].push_back((frame, meta(cut)));
            }
            Step::Take => match driver.take() {
                Some(taken) => {
                    let found = self.sent.iter_mut().find(|sent| sent.front() == Some(&taken));
                    found.expect("the next of a queue").pop_front();
                }
                None => assert!(self.sent.iter().all(VecDeque::is_empty)),
            },
            Step::Offer { queue, count } => {
                let ring = &driver.queues[queue].receive;
                let room = ring.entries - ring.put.wrapping_sub(ring.taken);
                driver.offer(queue, count.min(room as usize));
            }
            Step::Give { payload, cut, at } => {
                self.number += 1;
                let frame = tcp4(payload, self.number);
                let (head, rest) = frame.split_at(at.min(frame.len()));
                let waits = driver.give(&meta(cut), &[head, rest]).is_err();
                let slots = frame.len().div_ceil(4096) + usize::from(cut);
                let room = |queue: usize| {
                    let ring = &driver.queues[queue].receive;
                    let waiting: usize = self.given[queue]
                        .iter()
                        .map(|(f, c)| f.len().div_ceil(4096) + usize::from(*c))
                        .sum();
                    ring.put.wrapping_sub(ring.taken) as usize - waiting
                };
                // By the steering, all go to the first queue that has room.
                let queue = (0..2).find(|queue| room(*queue) >= slots);
                assert_eq!(queue.is_none(), waits);
                if let Some(queue) = queue {
                    self.given[queue].push_back((frame, cut));
                }
            }
            Step::Flush => driver.port().flush(),
            Step::Hear => self.hear(),
        }
    }

    fn hear(&mut self) {
        for queue in 0..2 {
            let statuses = self.driver.statuses(queue);
            assert!(!statuses.contains(&status::ERROR));
            self.slots[queue] -= statuses.len();
            while let Some((bytes, _, cut)) = self.driver.got(queue) {
                let (frame, large) = self.given[queue].pop_front().expect("one that was given");
                assert_eq!((bytes.as_ref(), cut.is_some()), (Some(&frame), large));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_frame_is_lost_or_changed(steps in prop::collection::vec(step(), 1..60)) {
        let mut traffic = Traffic::new();
        steps.into_iter().for_each(|step| traffic.step(step));
        while traffic.sent.iter().any(|sent| !sent.is_empty()) {
            traffic.step(Step::Take);
        }
        traffic.step(Step::Flush);
        traffic.hear();
        prop_assert_eq!(traffic.slots, [0; 2]);
        prop_assert!(traffic.given.iter().all(VecDeque::is_empty));
        prop_assert_eq!(traffic.driver.domain.used(), 4);
    }

    /// Requests of random bytes, most of which name pages that there are, and random indexes.
    #[test]
    fn hostile_rings_do_no_harm(
        rounds in prop::collection::vec(
            (
                prop::collection::vec(
                    (0u32..40, 0u16..5000, 0u16..16, 0u16..9000, 0u8..8, any::<u8>()), 0..24,
                ),
                prop::option::of(any::<u32>()),
                0usize..70_000,
                any::<bool>(),
            ),
            1..12,
        ),
    ) {
        let mut driver = Driver::new(1, false, ALL);
        for _ in 0..12 {
            driver.grant(0, &tcp4(3000, 1));
        }
        driver.offer(0, 12);
        for (requests, producer, payload, reconnect) in rounds {
            for (grant, offset, flags, size, kind, byte) in requests {
                let mut request = [byte; 12];
                if kind > 1 {
                    request[..4].copy_from_slice(&grant.to_le_bytes());
                    request[4..6].copy_from_slice(&offset.to_le_bytes());
                    request[6..8].copy_from_slice(&flags.to_le_bytes());
                    request[10..12].copy_from_slice(&size.to_le_bytes());
                }
                driver.put(0, &[&request]);
                driver.offer_grant(0, grant, None);
            }
            driver.publish(0);
            if let Some(producer) = producer {
                set_producer(&driver.queues[0].transmit, producer % 300);
                set_producer(&driver.queues[0].receive, producer / 300 % 300);
            }
            for _ in 0..300 {
                let Some((bytes, _)) = driver.take() else { break };
                prop_assert!(bytes.len() <= nic::FRAME_MAX);
            }
            let _ = driver.give(&meta(payload % 2 == 0), &[&tcp4(payload.min(65_000), 1)]);
            driver.port().flush();
            if reconnect {
                driver.card.disconnect();
                prop_assert_eq!(driver.domain.used(), 0);
                driver.connect(xen_front::Connect::First).unwrap();
            }
            prop_assert_eq!(driver.domain.used(), 2);
        }
    }
}
