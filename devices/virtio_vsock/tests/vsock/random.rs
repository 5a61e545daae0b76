//! A driver that puts anything into its rings: nothing panics, nothing hangs, and a reset makes the
//! device new.

use crate::common::*;
use proptest::prelude::*;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};
use virtio::feature::VERSION_1;
use virtio_vsock::packet::{Header, Op};

#[derive(Clone, Debug)]
enum Step {
    Packet { header: Header, data: Vec<u8> },
    Raw(Vec<u8>),
    HostWrites(Vec<u8>),
    HostReads,
    HostCloses,
    Client(u32),
    Listen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Request),
        1 => Just(Op::Response),
        1 => Just(Op::Reset),
        1 => Just(Op::Shutdown),
        4 => Just(Op::Data),
        1 => Just(Op::CreditUpdate),
        1 => Just(Op::CreditRequest),
        1 => any::<u16>().prop_filter("known", |n| !(1..8).contains(n)).prop_map(Op::Unknown),
    ]
}

fn packet() -> impl Strategy<Value = Step> {
    let cid = |own: u64| prop_oneof![20 => Just(own), 1 => any::<u64>()];
    let ports = (0..3u32, prop_oneof![8 => Just(1024), 1 => Just(1 << 30), 1 => any::<u32>()]);
    let credit = (prop_oneof![any::<u32>(), Just(4096)], prop_oneof![any::<u32>(), Just(0)]);
    let len = prop_oneof![9 => Just(None), 1 => any::<u32>().prop_map(Some)];
    let rest = (0..4u32, prop_oneof![20 => Just(1u16), 1 => any::<u16>()], len);
    let data = prop::collection::vec(any::<u8>(), 0..2000);
    (cid(CID.into()), cid(2), ports, op(), credit, rest, data).prop_map(
        |(src_cid, dst_cid, (src_port, dst_port), op, credit, (flags, kind, len), data)| {
            let header = Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len: len.unwrap_or(data.len() as u32),
                kind,
                op,
                flags,
                buf_alloc: credit.0,
                fwd_cnt: credit.1,
            };
            Step::Packet { header, data }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..3000);
    prop_oneof![
        12 => packet(),
        1 => prop::collection::vec(any::<u8>(), 1..100).prop_map(Step::Raw),
        3 => bytes().prop_map(Step::HostWrites),
        2 => Just(Step::HostReads),
        1 => Just(Step::HostCloses),
        1 => (0..4u32).prop_map(Step::Client),
        1 => Just(Step::Listen),
    ]
}

#[test]
fn noise_on_its_queues_breaks_nothing() {
    for seed in 1..60 {
        let world = World::new("noise");
        let mut clients: Vec<UnixStream> = (0..3).map(|_| world.client("CONNECT 5\n")).collect();
        world.board.noise(seed, VERSION_1 | virtio_vsock::STREAM);
        clients.iter_mut().for_each(|client| drop(client.write(b"to nobody")));
        drop(clients);
        world.board.set_status(0);
        world.start();
        let listener = world.listen(1024);
        let mut host = world.connect(Ports { guest: 77, host: 1024 });
        world.say(Ports { guest: 77, host: 1024 }, Op::Data, 0, 0, b"well");
        assert_eq!(read_exact(&mut host, 4), b"well", "{seed}");
        drop(listener);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_driver_says_ends_well(steps in prop::collection::vec(step(), 1..60)) {
        let world = World::new("random");
        let listener = world.listen(1024);
        listener.set_nonblocking(true).unwrap();
        let mut hosts: Vec<UnixStream> = Vec::new();
        for step in steps {
            let alive = match step {
                Step::Packet { header, data } => world.send(&header, &data),
                Step::Raw(bytes) => {
                    world.board.call(virtio_vsock::TRANSMIT, &bytes, 0).is_some()
                }
                Step::HostWrites(bytes) => {
                    if let Some(mut host) = hosts.last() {
                        let _ = host.write(&bytes);
                    }
                    true
                }
                Step::HostReads => {
                    if let Some(mut host) = hosts.last() {
                        let _ = host.read(&mut [0; 2000]);
                    }
                    true
                }
                Step::HostCloses => {
                    hosts.pop();
                    true
                }
                Step::Client(port) => {
                    let client = world.client(&format!("CONNECT {port}\n"));
                    client.set_nonblocking(true).unwrap();
                    hosts.push(client);
                    true
                }
                Step::Listen => {
                    if let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(true).unwrap();
                        hosts.push(stream);
                    }
                    true
                }
            };
            while world.heard() {
                let (header, _) = world.receive();
                prop_assert_eq!(header.src_cid == 2 || header.op == Op::Reset, true);
            }
            if !alive {
                // It says less than it has, or more: the device wants a reset.
                world.board.set_status(0);
                world.start();
            }
        }
        world.board.set_status(0);
        world.start();
        drop(listener);
        let mut host = world.connect(Ports { guest: 77, host: 1024 });
        world.say(Ports { guest: 77, host: 1024 }, Op::Data, 0, 0, b"well");
        prop_assert_eq!(read_exact(&mut host, 4), b"well");
    }
}
