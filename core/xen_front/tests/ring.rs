//! Rings between a driver and a back end, and what a driver breaks of them.

use proptest::prelude::*;
use std::{mem::offset_of, sync::Arc};
use xen_abi::ring::Shared;
use xen_front::{
    Access, Domain, Error, Grant, Overrun, Position, Ring,
    fake::{FakeDomain, FrontRing},
};

const PRODUCER: usize = offset_of!(Shared, request_producer);

fn grants(domain: &Arc<FakeDomain>, count: usize, entry: usize) -> (FrontRing, Vec<Grant>) {
    let pages: Vec<_> = (0..count).map(|_| domain.page()).collect();
    let held: Arc<dyn Domain> = domain.clone();
    let map = |page| Grant::map(&held, domain.grant(page, Access::Write), Access::Write).unwrap();
    let mapped = pages.iter().map(map).collect();
    (FrontRing::new(pages, entry), mapped)
}

fn ring(domain: &Arc<FakeDomain>, count: usize, entry: usize) -> (FrontRing, Ring) {
    let (front, grants) = grants(domain, count, entry);
    (front, Ring::new(grants, entry, None).unwrap())
}

proptest! {
    /// Whatever the order, each request comes once, whole, and its response goes back; both wrap.
    #[test]
    fn each_request_has_its_response(
        pages in 1usize..9,
        entry in prop::sample::select(vec![8usize, 12, 112]),
        moves in prop::collection::vec((0u32..80, 0u32..80, 0u32..80, 0u32..80), 1..60),
    ) {
        let domain = FakeDomain::new(8);
        let (mut front, mut back) = ring(&domain, pages, entry);
        prop_assert_eq!(front.entries, back.entries());
        let body = |n: u32| (0..entry).map(|i| (n as usize * 7 + i) as u8).collect::<Vec<_>>();
        let (mut taken, mut answered) = (0, 0);
        for (put, take, respond, hear) in moves {
            for _ in 0..put.min(front.entries - front.put.wrapping_sub(front.taken)) {
                front.put(&body(front.put));
            }
            front.publish();
            for _ in 0..take.min(back.waiting().unwrap()) {
                let mut got = vec![0; entry];
                back.take(&mut got);
                back.put_back();
                back.take(&mut got);
                prop_assert_eq!(&got, &body(taken));
                taken += 1;
            }
            for _ in 0..respond.min(taken - answered) {
                back.respond(&body(answered + 1000));
                answered += 1;
            }
            if answered == taken {
                // There is nothing to respond to.
                back.respond(&[0xff]);
            }
            let old = front.taken;
            let _ = back.publish();
            for _ in 0..hear {
                let Some(got) = front.take(entry) else { break };
                prop_assert_eq!(got, body(front.taken - 1 + 1000));
            }
            prop_assert!(front.taken - old <= answered - old);
            prop_assert_eq!(back.position().taken, taken);
        }
    }
}

#[test]
fn nobody_sleeps_while_there_is_work() {
    let domain = FakeDomain::new(1);
    let (mut front, mut back) = ring(&domain, 1, 8);
    assert_eq!(back.is_idle(), Ok(true));
    front.put(&[1; 8]);
    assert!(front.publish(), "the first wakes");
    front.put(&[2; 8]);
    assert!(!front.publish(), "it is awake");
    assert_eq!(back.is_idle(), Ok(false));
    back.take(&mut [0; 8]);
    back.take(&mut [0; 8]);
    assert_eq!(back.is_idle(), Ok(true));
    front.put(&[3; 8]);
    assert!(front.publish(), "it slept");
    back.respond(&[1; 8]);
    assert!(back.publish(), "the driver waits");
    back.respond(&[2; 8]);
    assert!(!back.publish(), "the driver has not looked");
    assert_eq!((front.take(1), front.take(1), front.take(1)), (Some(vec![1]), Some(vec![2]), None));
    back.take(&mut [0; 8]);
    back.respond(&[3; 8]);
    assert!(back.publish(), "the driver looked, and waits");
}

#[test]
fn who_wants_several_is_woken_by_the_last_of_them() {
    let domain = FakeDomain::new(1);
    let (mut front, mut back) = ring(&domain, 1, 8);
    front.put(&[1; 8]);
    front.publish();
    assert_eq!((back.lacks(1), back.lacks(3)), (Ok(false), Ok(true)));
    front.put(&[2; 8]);
    assert!(!front.publish(), "one is missing");
    front.put(&[3; 8]);
    assert!(front.publish(), "that is enough");
    assert_eq!(back.lacks(3), Ok(false));
    (0..3).for_each(|_| back.take(&mut [0; 8]));
    assert_eq!(back.lacks(2), Ok(true));
    (0..4).for_each(|_| front.put(&[4; 8]));
    assert!(front.publish(), "more than enough");
}

#[test]
fn a_producer_beyond_the_ring_is_an_overrun() {
    let domain = FakeDomain::new(1);
    let (front, mut back) = ring(&domain, 1, 112);
    for (producer, found) in [(32, Ok(32)), (33, Err(Overrun)), (u32::MAX, Err(Overrun))] {
        front.set_index(PRODUCER, producer);
        assert_eq!(back.waiting(), found, "{producer}");
    }
    // Those without a response keep their place, and what was taken is not taken again.
    front.set_index(PRODUCER, 32);
    back.take(&mut [0; 112]);
    front.set_index(PRODUCER, 33);
    assert_eq!((back.waiting(), back.is_idle()), (Err(Overrun), Err(Overrun)));
    front.set_index(PRODUCER, 0);
    assert_eq!(back.waiting(), Ok(0), "it went backwards");
}

#[test]
fn a_ring_goes_on_where_it_was() {
    let domain = FakeDomain::new(5);
    let at = |taken, put| Some(Position { taken, put });
    for (position, right) in [
        (at(5, 5), true),
        (at(3, u32::MAX), true),
        (at(37, 5), true),
        (at(38, 5), false),
        (at(4, 5), false),
    ] {
        let page = domain.page();
        let grant = domain.grant(&page, Access::Write);
        let held: Arc<dyn Domain> = domain.clone();
        let mapped = Grant::map(&held, grant, Access::Write).unwrap();
        let ring = Ring::new(vec![mapped], 112, position);
        assert_eq!(ring.map(|ring| ring.position()), position.filter(|_| right));
    }
    assert!(Ring::new(Vec::new(), 8, None).is_none());
}

#[test]
fn a_page_in_use_is_not_taken_back() {
    let domain = FakeDomain::new(2);
    let held: Arc<dyn Domain> = domain.clone();
    let grant = domain.grant(&domain.page(), Access::Read);
    assert_eq!(Grant::map(&held, grant, Access::Write).unwrap_err(), Error::ReadOnly(grant));
    let mapped = Grant::map(&held, grant, Access::Read).unwrap();
    assert!(mapped.write(0, &[1]).is_err() && !domain.take_back(grant));
    drop(mapped);
    assert!(domain.take_back(grant) && domain.used() == 0);
    assert_eq!(Grant::map(&held, grant, Access::Read).unwrap_err(), Error::Grant(grant));
}
