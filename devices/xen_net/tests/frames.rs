//! Frames both ways, one after another.

mod driver;

use device::Device;
use driver::{ALL, Driver, MAC, PAGE, config, gso, nodes, set_producer, tcp4};
use nic::{Checksum, Meta, NoRoom, Offloads, SegmentKind, Segmentation};
use xen_abi::netif::{Extra, TxRequest, extra, rx, status, tx};
use xen_front::{Backend, Connect};
use xen_net::XenNet;
use zerocopy::IntoBytes;

const PARTIAL: Meta =
    Meta { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: None };
const SEGMENTS: Meta = Meta {
    segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448, header_len: 54 }),
    ..PARTIAL
};

fn plain() -> Driver {
    Driver::new(1, false, ALL)
}

#[test]
fn what_is_offered_is_what_is_done() {
    let card = XenNet::new(config(4), std::sync::Arc::new(nic::Unplugged));
    assert_eq!((card.kind(), card.name()), ("vif", "vif0".into()));
    assert_eq!(card.front(), nodes("mac=52:54:00:12:34:56 mtu=1500 handle=0"));
    let features = card.features();
    let value = |name: &str| features.get(name).map(String::as_str);
    assert_eq!(value("feature-rx-copy"), Some("1"));
    assert_eq!(value("multi-queue-max-queues"), Some("4"));
    assert_eq!(nic::Port::mac(&*card), MAC);
}

#[test]
fn frames_of_the_driver_are_taken() {
    let mut driver = plain();
    assert_eq!(driver.take(), None);
    let (woken, frame) = (driver.wakes(), tcp4(100, 1));
    driver.send(0, &frame, &[], 0, &[]);
    assert_eq!(driver.wakes(), woken + 1, "a notification wakes the network");
    driver.send(0, &frame[..60], &[], tx::DATA_VALIDATED, &[]);
    assert_eq!(driver.wakes(), woken + 1, "it is awake");
    assert_eq!(driver.take(), Some((frame.clone(), Meta::default())));
    assert_eq!(driver.take(), Some((frame[..60].to_vec(), Meta::default())));
    assert_eq!((driver.notified(0).0, driver.answers(0)), (0, vec![]), "not before the batch ends");
    driver.port().flush();
    assert_eq!(driver.notified(0).0, 1);
    let answers: Vec<_> = driver.answers(0).iter().map(|a| (a.id, a.status)).collect();
    assert_eq!(answers, [(0x5500, status::OKAY), (0x5501, status::OKAY)]);
    driver.port().flush();
    assert_eq!((driver.notified(0).0, driver.take()), (1, None));
    driver.send(0, &frame, &[], tx::CSUM_BLANK, &[]);
    assert_eq!(driver.wakes(), woken + 2, "it slept");
    assert_eq!(driver.take(), Some((frame, PARTIAL)));
    assert_eq!(driver.domain.used(), 2, "the rings, and no frame's page");
    assert_eq!(driver.counter("frames sent"), 3);
}

#[test]
fn a_frame_lies_in_up_to_eighteen_pages() {
    let mut driver = plain();
    let frame = tcp4(65_535 - 54, 1);
    let sizes = [3641; 17];
    driver.send(0, &frame, &sizes, tx::CSUM_BLANK, &[gso(extra::GSO_TCPV4, 1448)]);
    assert_eq!(driver.take(), Some((frame.clone(), SEGMENTS)));
    driver.send(0, &frame[..200], &[20, 0, 100], 0, &[]);
    assert_eq!(driver.take(), Some((frame[..200].to_vec(), Meta::default())));
    driver.send(0, &frame[..200], &[10; 18], 0, &[]);
    assert_eq!(driver.take(), Some((Vec::new(), Meta::default())), "one too many");
    driver.port().flush();
    let mut expected = vec![status::OKAY; 1 + 1 + 17 + 4];
    expected[1] = status::NULL;
    expected.extend([status::ERROR; 19]);
    assert_eq!(driver.statuses(0), expected);
    driver.send(0, &frame[..300], &[10; 20], 0, &[]);
    assert_eq!((driver.take(), driver.counter("rings that the driver broke")), (None, 1));
}

#[test]
fn what_is_no_frame_is_answered_with_an_error() {
    let mut driver = plain();
    let frame = tcp4(100, 1);
    let request = TxRequest { grant: 4000, size: 60, ..TxRequest::default() };
    let multicast = Extra { kind: extra::MULTICAST_ADD, ..Extra::default() };
    for (what, put) in [
        (
            "too short",
            &mut (|d: &mut Driver| d.send(0, &frame[..13], &[], 0, &[]))
                as &mut dyn FnMut(&mut Driver),
        ),
        ("not granted", &mut |d| d.put(0, &[request.as_bytes()])),
        ("no transport", &mut |d| d.send(0, &frame[..40], &[], tx::CSUM_BLANK, &[])),
        ("no size", &mut |d| d.send(0, &frame, &[], tx::CSUM_BLANK, &[gso(1, 0)])),
        ("a wish", &mut |d| d.send(0, &frame, &[], 0, &[multicast])),
        ("more than the whole", &mut |d| {
            let grant = d.grant(0, &frame);
            let first = TxRequest { grant, flags: tx::MORE_DATA, size: 60, ..request };
            let second = TxRequest { grant, size: 61, ..request };
            d.put(0, &[first.as_bytes(), second.as_bytes()]);
        }),
    ] {
        put(&mut driver);
        assert_eq!(driver.take(), Some((Vec::new(), Meta::default())), "{what}");
        driver.port().flush();
        let statuses = driver.statuses(0);
        let wrong = |status: &i16| [status::ERROR, status::NULL].contains(status);
        assert!(statuses.iter().all(wrong) && statuses.contains(&status::ERROR), "{what}");
    }
    driver.send(0, &frame, &[], 0, &[]);
    assert_eq!(driver.take().unwrap().0, frame);
    assert_eq!((driver.counter("frames dropped"), driver.domain.used()), (6, 2));
}

#[test]
fn who_breaks_a_ring_is_not_served_until_he_connects_again() {
    let slot = TxRequest { size: 60, ..TxRequest::default() };
    let more = TxRequest { flags: tx::MORE_DATA, ..slot };
    let said = TxRequest { flags: tx::EXTRA_INFO, ..slot };
    let across = TxRequest { offset: PAGE as u16 - 59, ..slot };
    let endless = Extra { flags: extra::MORE, ..gso(1, 1448) };
    let unknown = Extra { kind: extra::END, ..Extra::default() };
    for (what, requests) in [
        ("not all there", vec![more.as_bytes()]),
        ("what is said is missing", vec![said.as_bytes()]),
        ("and more of it", vec![said.as_bytes(), endless.as_bytes()]),
        ("of no kind", vec![said.as_bytes(), unknown.as_bytes()]),
        ("over the page's end", vec![across.as_bytes()]),
        ("and in the middle", vec![more.as_bytes(), across.as_bytes()]),
    ] {
        let mut driver = plain();
        driver.fill(0);
        driver.put(0, &requests);
        assert_eq!((driver.take(), driver.counter("rings that the driver broke")), (None, 1));
        driver.send(0, &[1; 60], &[], 0, &[]);
        assert_eq!(driver.take(), None, "{what}");
        assert_eq!(driver.give(&Meta::default(), &[&[1; 60]]), Err(NoRoom), "{what}");
        driver.renew();
        driver.connect(Connect::First).unwrap();
        driver.send(0, &[1; 60], &[], 0, &[]);
        assert_eq!(driver.take(), Some((vec![1; 60], Meta::default())), "{what}");
    }
    let driver = plain();
    set_producer(&driver.queues[0].receive, 257);
    assert_eq!(driver.give(&Meta::default(), &[&[1; 60]]), Err(NoRoom));
    assert_eq!(driver.counter("rings that the driver broke"), 1);
}

#[test]
fn a_frame_for_the_driver_fills_a_page() {
    let mut driver = plain();
    let woken = driver.wakes();
    assert_eq!(driver.give(&Meta::default(), &[&[1; 60]]), Err(NoRoom));
    driver.offer(0, 2);
    assert_eq!(driver.wakes(), woken + 1, "room wakes the network");
    assert_eq!(driver.give(&Meta::default(), &[&[1; 30], &[], &[2; 30]]), Ok(()));
    let verified = Meta { checksum: Checksum::Verified, segmentation: None };
    assert_eq!(driver.give(&verified, &[&[3; PAGE]]), Ok(()));
    assert_eq!(driver.give(&verified, &[&[4; 60]]), Err(NoRoom));
    assert_eq!((driver.notified(0).1, driver.got(0)), (0, None));
    driver.port().flush();
    assert_eq!(driver.notified(0).1, 1);
    assert_eq!(driver.got(0), Some((Some([[1; 30], [2; 30]].concat()), 0, None)));
    assert_eq!(driver.got(0), Some((Some(vec![3; PAGE]), rx::DATA_VALIDATED, None)));
    assert_eq!((driver.got(0), driver.domain.used()), (None, 2));
    assert_eq!(driver.counter("frames received"), 2);
}

#[test]
fn a_large_frame_waits_for_all_its_pages() {
    let mut driver = plain();
    assert_eq!(driver.port().offloads(), Offloads { checksum: true, tso4: true, tso6: true });
    let frame = tcp4(65_535 - 54, 1);
    let (head, rest) = frame.split_at(54);
    assert_eq!(driver.give(&SEGMENTS, &[head, rest]), Err(NoRoom));
    let woken = driver.wakes();
    driver.offer(0, 16);
    assert_eq!(
        driver.give(&SEGMENTS, &[head, rest]),
        Err(NoRoom),
        "no room for what is said of it"
    );
    assert_eq!(driver.wakes(), woken);
    driver.offer(0, 1);
    assert_eq!(driver.wakes(), woken + 1, "the last one wakes");
    assert_eq!(driver.give(&SEGMENTS, &[head, rest]), Ok(()));
    driver.port().flush();
    let blank = rx::CSUM_BLANK | rx::DATA_VALIDATED | rx::MORE_DATA | rx::EXTRA_INFO;
    let cut = gso(extra::GSO_TCPV4, 1448);
    let (bytes, flags, said) = driver.got(0).unwrap();
    assert_eq!((bytes, flags), (Some(frame), blank));
    assert_eq!(said.unwrap().as_bytes(), cut.as_bytes());
}

#[test]
fn what_an_older_driver_does_not_know_is_done_for_it() {
    let mut driver = Driver::new(1, false, "feature-no-csum-offload=1");
    assert_eq!(driver.port().offloads(), Offloads::default());
    driver.fill(0);
    let mut frame = tcp4(101, 1);
    // The pseudo-header's sum: 0a00 + 020f + c000 + 0201 + 6 + 121.
    frame[50..52].copy_from_slice(&(0xce10_u16 + 6 + 121).to_be_bytes());
    assert_eq!(driver.give(&PARTIAL, &[&frame[..34], &frame[34..]]), Ok(()));
    assert_eq!(driver.give(&SEGMENTS, &[&tcp4(4000, 1)]), Ok(()), "dropped");
    assert_eq!(driver.give(&Meta::default(), &[&tcp4(PAGE, 1)]), Ok(()), "dropped");
    driver.port().flush();
    let (bytes, flags, _) = driver.got(0).unwrap();
    let bytes = bytes.unwrap();
    assert_eq!(
        (flags, &bytes[..50], &bytes[52..]),
        (rx::DATA_VALIDATED, &frame[..50], &frame[52..])
    );
    let pseudo = [0x0a00_u16, 0x020f, 0xc000, 0x0201, 6, 121, nic::checksum::sum(&bytes[34..])];
    assert_eq!(nic::checksum::combine(&pseudo), 0xffff);
    assert_eq!((driver.got(0), driver.counter("frames dropped")), (None, 2));
}

#[test]
fn a_page_that_cannot_be_written_loses_the_frame() {
    let mut driver = plain();
    let read_only = driver.grant(0, &[]);
    driver.offer(0, 1);
    driver.offer_grant(0, read_only, None);
    driver.offer_grant(0, 4000, None);
    driver.offer(0, 2);
    let frame = tcp4(4 * PAGE - 54, 1);
    assert_eq!(driver.give(&Meta::default(), &[&frame]), Ok(()));
    assert_eq!(driver.give(&Meta::default(), &[&frame[..60]]), Ok(()));
    driver.port().flush();
    assert_eq!(driver.got(0), Some((None, rx::MORE_DATA, None)));
    assert_eq!(driver.got(0), Some((Some(frame[..60].to_vec()), 0, None)));
    assert_eq!((driver.counter("frames dropped"), driver.counter("frames received")), (1, 1));
}
