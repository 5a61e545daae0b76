//! A process without free file descriptors: alone in its program, for the limit is the process's.

#[path = "vsock/common.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod common;

use common::World;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fs::File, os::fd::AsRawFd, thread, time::Duration};
use virtio_vsock::packet::Op;

#[test]
fn a_client_for_whom_there_was_no_file_is_taken_later() {
    let world = World::new("files");
    let before = getrlimit(Resource::Nofile);
    let free = File::open("/dev/null").unwrap().as_raw_fd();
    // The client's own end is the last.
    let current = Some(u64::try_from(free).unwrap() + 1);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
    let _client = world.client("CONNECT 52\n");
    thread::sleep(Duration::from_millis(300));
    assert!(!world.heard());
    setrlimit(Resource::Nofile, before).unwrap();
    let (request, _) = world.hear();
    assert_eq!((request.op, request.dst_port), (Op::Request, 52));
}
