//! Several queues, both kinds of ports, and what a machine does with a back end: it pauses, saves and
//! restores it, in the middle of traffic.

mod driver;

use device::Device;
use driver::{ALL, Driver, MAC, config, tcp4};
use nic::{Mac, Meta, NoRoom, Unplugged};
use saved_state::{Error, Reader, Writer};
use std::sync::Arc;
use xen_abi::netif::status;
use xen_front::{Backend, Connect};
use xen_net::{Config, QueueState, XenNet, XenNetState};

const PLAIN: Meta = Meta { checksum: nic::Checksum::Unknown, segmentation: None };

#[test]
fn each_direction_has_its_port() {
    let mut driver = Driver::new(1, true, ALL);
    let woken = driver.wakes();
    driver.send(0, &[1; 60], &[], 0, &[]);
    driver.fill(0);
    assert_eq!(driver.wakes(), woken + 2, "either wakes the network");
    assert!(driver.take().is_some());
    driver.port().flush();
    assert_eq!(driver.notified(0), (1, 0));
    assert_eq!(driver.give(&PLAIN, &[&[1; 60]]), Ok(()));
    driver.port().flush();
    assert_eq!(driver.notified(0), (1, 1));
}

#[test]
fn a_port_for_both_is_notified_once() {
    let mut driver = Driver::new(1, false, ALL);
    driver.send(0, &[1; 60], &[], 0, &[]);
    driver.fill(0);
    assert!(driver.take().is_some());
    assert_eq!(driver.give(&PLAIN, &[&[1; 60]]), Ok(()));
    driver.port().flush();
    assert_eq!(driver.notified(0), (1, 1));
}

#[test]
fn answers_come_where_questions_went() {
    let mut driver = Driver::new(3, true, ALL);
    (0..3).for_each(|queue| driver.fill(queue));
    // What comes back has addresses and ports the other way round.
    let question = tcp4(10, 4000);
    let mut answer = question.clone();
    answer[26..34].rotate_left(4);
    answer[34..38].rotate_left(2);
    for queue in [2, 0, 1] {
        driver.send(queue, &question, &[], 0, &[]);
        assert_eq!(driver.take().unwrap().0, question);
        assert_eq!(driver.give(&PLAIN, &[&answer]), Ok(()));
        driver.port().flush();
        assert_eq!(driver.got(queue), Some((Some(answer.clone()), 0, None)));
        assert_eq!((0..3).filter_map(|queue| driver.got(queue)).count(), 0);
    }
    // Queue 1 is filled up: another one takes what follows.
    while driver.give(&PLAIN, &[&answer]).is_ok() {}
    driver.port().flush();
    let counts: Vec<_> =
        (0..3).map(|queue| std::iter::from_fn(|| driver.got(queue)).count()).collect();
    assert_eq!(counts, [255; 3]);
}

#[test]
fn queues_take_turns() {
    let mut driver = Driver::new(2, false, ALL);
    for queue in [0, 1, 0, 1] {
        driver.send(queue, &[queue as u8; 60], &[], 0, &[]);
    }
    let next = |driver: &Driver| driver.take().unwrap().0[0];
    let first = next(&driver);
    driver.port().flush();
    let other = 1 - first;
    assert_eq!((next(&driver), next(&driver)), (other, other), "until the batch ends");
    assert_eq!((next(&driver), driver.take()), (first, None));
    driver.send(other.into(), &[other; 60], &[], 0, &[]);
    driver.send(first.into(), &[first; 60], &[], 0, &[]);
    assert_eq!((next(&driver), next(&driver)), (first, other), "who was last is asked first");
}

#[test]
fn what_is_let_go_is_free() {
    let mut driver = Driver::new(2, true, ALL);
    let ports = |driver: &Driver| {
        let bound = |port| usize::from(driver.domain.is_bound(port));
        let of = |queue: &driver::Queue| bound(queue.transmit_port) + bound(queue.receive_port);
        driver.queues.iter().map(of).sum::<usize>()
    };
    assert_eq!((driver.domain.used(), ports(&driver)), (4, 4));
    driver.connect(Connect::First).unwrap();
    assert_eq!((driver.domain.used(), ports(&driver)), (4, 4), "of nothing is there a second one");
    driver.card.disconnect();
    assert_eq!((driver.domain.used(), ports(&driver)), (0, 0));
    driver.send(0, &[1; 60], &[], 0, &[]);
    driver.fill(0);
    assert_eq!((driver.take(), driver.give(&PLAIN, &[&[1; 60]])), (None, Err(NoRoom)));
    driver.port().flush();
    // Not a half of it stays.
    driver.nodes.insert("queue-1/rx-ring-ref".into(), "4000".into());
    let refused = driver.connect(Connect::First).unwrap_err();
    assert_eq!(refused, "the domain has not granted 4000");
    assert_eq!((driver.domain.used(), ports(&driver)), (0, 0));
    driver.renew();
    driver.connect(Connect::First).unwrap();
    driver.card.reset();
    assert_eq!((driver.domain.used(), ports(&driver)), (0, 0));
}

#[test]
fn nothing_moves_while_it_is_paused() {
    let mut driver = Driver::alone(1, false, ALL);
    driver.connect(Connect::First).unwrap();
    driver.send(0, &[1; 60], &[], 0, &[]);
    driver.fill(0);
    assert_eq!(driver.take(), None, "a device is built paused");
    driver.card.resume();
    assert!(driver.take().is_some());
    assert_eq!(driver.give(&PLAIN, &[&[1; 60]]), Ok(()));
    driver.card.pause();
    driver.port().flush();
    assert_eq!((driver.notified(0), driver.statuses(0)), ((0, 0), vec![]));
    assert_eq!((driver.take(), driver.give(&PLAIN, &[&[1; 60]])), (None, Err(NoRoom)));
    let woken = driver.wakes();
    driver.card.resume();
    assert!(driver.wakes() > woken, "what waits is looked at");
    assert_eq!((driver.notified(0), driver.statuses(0)), ((1, 1), vec![status::OKAY]));
    assert!(driver.got(0).is_some());
}

fn saved(card: &XenNet) -> Vec<saved_state::Part> {
    let mut writer = Writer::default();
    card.save(&mut writer);
    writer.finish()
}

/// The driver goes on with another back end, as after a restore.
fn moved(driver: &mut Driver) {
    driver.card.pause();
    let parts = saved(&driver.card);
    driver.card.disconnect();
    assert_eq!(driver.domain.used(), 0);
    driver.card = XenNet::new(config(driver.queues.len() as u16), driver.wire.clone());
    let mut reader = Reader::new(parts.clone()).unwrap();
    driver.card.restore(&mut reader).unwrap();
    reader.finish().unwrap();
    assert_eq!(saved(&driver.card), parts, "before it is connected");
    driver.connect(Connect::Again).unwrap();
    assert_eq!(saved(&driver.card), parts, "and after");
    driver.card.resume();
}

#[test]
fn it_goes_on_after_a_move() {
    let mut driver = Driver::new(2, true, ALL);
    (0..2).for_each(|queue| driver.fill(queue));
    for round in 0..600u16 {
        let queue = usize::from(round % 2);
        driver.send(queue, &tcp4(100, round), &[70], 0, &[]);
        driver.send(queue, &tcp4(101, round), &[], 0, &[]);
        assert_eq!(driver.take().unwrap().0, tcp4(100, round));
        assert_eq!(driver.give(&PLAIN, &[&tcp4(5000, round)]), Ok(()));
        if round % 7 < 2 {
            // The driver has not heard of what was done, and one frame waits.
            moved(&mut driver);
        }
        assert_eq!(driver.take().unwrap().0, tcp4(101, round));
        assert_eq!(driver.take(), None);
        driver.port().flush();
        assert_eq!(driver.statuses(queue), [status::OKAY; 3]);
        let got: Vec<_> = (0..2).filter_map(|queue| driver.got(queue)).collect();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].0.as_ref().unwrap(), &tcp4(5000, round));
        (0..2).for_each(|queue| driver.fill(queue));
    }
    assert!(driver.notified(0).0 > 100 && driver.notified(1).0 > 100);
}

#[test]
fn who_broke_a_ring_has_broken_it_after_a_move() {
    let mut driver = Driver::new(1, false, ALL);
    driver::set_producer(&driver.queues[0].transmit, 1000);
    assert_eq!((driver.take(), driver.counter("rings that the driver broke")), (None, 1));
    driver::set_producer(&driver.queues[0].transmit, 0);
    moved(&mut driver);
    driver.send(0, &[1; 60], &[], 0, &[]);
    assert_eq!(driver.take(), None);
}

#[test]
fn a_state_that_is_none_of_this_card_is_refused() {
    let restore = |config: Config, change: &dyn Fn(&mut XenNetState)| {
        let mut state = XenNetState {
            mac: MAC,
            mtu: 1500,
            queues: vec![QueueState { transmit: 7, receive: u32::MAX }; 2],
            broken: false,
        };
        change(&mut state);
        let mut writer = Writer::default();
        writer.put(0, &state);
        let card = XenNet::new(config, Arc::new(Unplugged));
        let result: Result<(), Error> = card.restore(&mut Reader::new(writer.finish()).unwrap());
        result.map(|()| card)
    };
    let other = Mac([2, 0, 0, 0, 0, 1]);
    let card = restore(config(2), &|state| state.mac = other).unwrap();
    assert_eq!(nic::Port::mac(&*card), other);
    assert!(restore(config(1), &|_| {}).is_err());
    assert!(restore(config(2), &|state| state.mtu = 1400).is_err());
    assert!(restore(config(2), &|state| state.mac = Mac::BROADCAST).is_err());
    // Two queues were saved, and one is to be connected again; or none was.
    let mut driver = Driver::alone(1, false, ALL);
    driver.card = restore(config(2), &|_| {}).unwrap();
    assert!(driver.connect(Connect::Again).unwrap_err().contains("another number of queues"));
    assert!(driver.connect(Connect::Again).unwrap_err().contains("no driver was connected"));
    assert_eq!(driver.domain.used(), 0);
}
