//! The bare protocol: interrupts, broken connections, ports in use, and peers that mean harm.

use crate::common::*;
use gdb_server::Server;
use machine::{DebugStop, Ended, Handle, Machine, State, engines::Kind};
use proptest::{prelude::*, test_runner::TestRunner};
use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

fn served(kind: Kind) -> (Machine, Server) {
    let machine = machine(kind, 1);
    let server = gdb_server::serve("127.0.0.1:0".parse().unwrap(), machine.handle()).unwrap();
    (machine, server)
}

fn counter(handle: &Handle) -> u64 {
    let mut bytes = [0; 8];
    handle.memory().read(COUNTER, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[track_caller]
fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn counts_on(handle: &Handle) {
    let before = counter(handle);
    until("the guest counts on", || counter(handle) > before);
}

#[test]
fn an_interrupt_stops_the_guest_and_continuing_goes_on() {
    for kind in kinds() {
        let (machine, server) = served(kind);
        let handle = machine.handle();
        let mut gdb = Debugger::connect(server.address());
        assert!(gdb.ask("?").starts_with('T'));
        gdb.send("vCont;c");
        counts_on(&handle);
        gdb.raw(b"\x03");
        assert!(gdb.receive().unwrap().starts_with("T02"));
        assert_eq!(handle.info().unwrap().state, State::Paused);
        let stopped = counter(&handle);
        assert_eq!(gdb.number(&format!("m{COUNTER:x},8")), stopped);
        // Single steps change RIP and, in time, the counter.
        let rip = gdb.number("p10");
        assert!(gdb.ask("vCont;s:1").starts_with("T05"));
        assert_ne!(gdb.number("p10"), rip);
        // A register and memory written by the debugger.
        assert_eq!(gdb.ask("P0=0000010000000000"), "OK");
        assert_eq!(gdb.number("p0"), 0x10000);
        gdb.send("vCont;c");
        until("the register counts", || counter(&handle) > 0x10000);
        gdb.raw(b"\x03");
        assert!(gdb.receive().unwrap().starts_with("T02"));
        assert_eq!(gdb.ask(&format!("M{FLAG:x},4:01000000")), "OK");
        gdb.send("vCont;c");
        assert_eq!(gdb.receive().unwrap(), "W00");
        assert_eq!(machine.wait(None), Some(Ended::PoweredOff));
    }
}

#[test]
fn code_written_by_the_debugger_executes() {
    for kind in kinds() {
        let (machine, server) = served(kind);
        let handle = machine.handle();
        let mut gdb = Debugger::connect(server.address());
        gdb.send("vCont;c");
        counts_on(&handle);
        gdb.raw(b"\x03");
        assert!(gdb.receive().unwrap().starts_with("T02"));
        // add rax, 1 << 20 in place of the call and the comparison's beginning
        let code = format!("M{AFTER_STORE:x},b:48050000100090909090eb");
        assert_eq!(gdb.ask(&code), "OK");
        // jmp loop: its displacement follows.
        let at = AFTER_STORE + 11;
        let displacement = (LOOP as i64 - (at as i64 + 1)) as u8;
        assert_eq!(gdb.ask(&format!("M{at:x},1:{displacement:02x}")), "OK");
        assert_eq!(gdb.ask(&format!("P10={}", hex(LOOP))), "OK");
        let before = counter(&handle);
        gdb.send("vCont;c");
        until("the new code counts in larger steps", || counter(&handle) > before + (8 << 20));
        gdb.raw(b"\x03");
        gdb.receive().unwrap();
        gdb.send("k");
        assert_eq!(machine.wait(None), Some(Ended::Quit));
    }
}

fn hex(value: u64) -> String {
    value.to_le_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn more_breakpoints_than_the_engine_has_are_refused_and_the_others_stay() {
    for kind in kinds() {
        let (machine, server) = served(kind);
        let mut gdb = Debugger::connect(server.address());
        let mut set = Vec::new();
        for n in 0..1000 {
            let at = START + 0x1000 + n;
            match gdb.ask(&format!("Z1,{at:x},1")).as_str() {
                "OK" => set.push(at),
                refusal => {
                    assert!(refusal.starts_with('E'));
                    break;
                }
            }
        }
        assert!((4..1000).contains(&set.len()));
        assert_eq!(gdb.ask(&format!("z1,{:x},1", set[0])), "OK");
        assert_eq!(gdb.ask(&format!("Z0,{LEAF:x},1")), "OK");
        // Too long, and of no length at all.
        assert!(gdb.ask(&format!("Z2,{COUNTER:x},1000000")).starts_with('E'));
        assert!(gdb.ask(&format!("Z2,{COUNTER:x},0")).starts_with('E'));
        assert!(gdb.ask("vCont;c").starts_with("T05"));
        assert_eq!(gdb.number("p10"), LEAF);
        drop((server, machine));
    }
}

#[test]
fn a_connection_that_breaks_detaches() {
    for kind in kinds() {
        let (machine, server) = served(kind);
        let handle = machine.handle();
        // A look at the port is no debugger: the machine waits on.
        drop(TcpStream::connect(server.address()).unwrap());
        let mut gdb = Debugger::connect(server.address());
        gdb.ask("?");
        assert_eq!((counter(&handle), handle.info().unwrap().state), (0, State::Paused));
        assert_eq!(gdb.ask(&format!("Z0,{LEAF:x},1")), "OK");
        drop(gdb);
        counts_on(&handle);
        let mut gdb = Debugger::connect(server.address());
        gdb.ask("?");
        assert_eq!(handle.info().unwrap().state, State::Paused);
        assert_eq!(gdb.ask("D"), "OK");
        counts_on(&handle);
        // The end of the server ends a session.
        let mut gdb = Debugger::connect(server.address());
        gdb.ask("?");
        drop(server);
        assert_eq!(gdb.receive(), None);
        counts_on(&handle);
    }
}

#[test]
fn a_port_in_use_is_one_clear_error() {
    let Some(kind) = kinds().pop() else { return };
    let (machine, server) = served(kind);
    let address = server.address();
    let error = gdb_server::serve(address, machine.handle()).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("--gdb"), "{error}");
    assert_eq!(error.lines().count(), 1);
    drop(server);
    gdb_server::serve(address, machine.handle()).unwrap();
}

#[test]
fn the_machines_end_ends_the_session() {
    for kind in kinds() {
        let (machine, server) = served(kind);
        let mut gdb = Debugger::connect(server.address());
        gdb.send("vCont;c");
        counts_on(&machine.handle());
        machine.handle().quit().unwrap();
        assert_eq!(gdb.receive().unwrap(), "W00");
        assert_eq!(machine.wait(None), Some(Ended::Quit));
        // Who comes later finds nobody.
        let mut gdb = Debugger::connect(server.address());
        gdb.raw(b"$?#3f");
        assert_eq!(gdb.receive(), None);
    }
}

/// A pause from elsewhere is told to the debugger, and so is none that it caused.
#[test]
fn an_operators_pause_is_a_stop() {
    for kind in kinds() {
        let (machine, server) = served(kind);
        let handle = machine.handle();
        let mut gdb = Debugger::connect(server.address());
        gdb.send("vCont;c");
        counts_on(&handle);
        handle.info().unwrap();
        handle.save().unwrap().unwrap();
        counts_on(&handle);
        handle.pause().unwrap();
        assert!(gdb.receive().unwrap().starts_with("T02"));
        assert!(gdb.ask("vCont;s:1").starts_with("T05"));
        drop((server, machine));
    }
    // The type is part of what a debugger hears.
    assert_ne!(DebugStop::Paused, DebugStop::Exit(0, engine::DebugExit::Step));
}

/// Two processors at the same breakpoint, as gdb handles it: stop, step over, go on.
#[test]
fn every_vcpu_that_reaches_a_breakpoint_is_told() {
    for kind in kinds() {
        let machine = machine(kind, 2);
        let handle = machine.handle();
        let server = gdb_server::serve("127.0.0.1:0".parse().unwrap(), handle.clone()).unwrap();
        // The second does what the first does, with a stack of its own.
        let state = handle.on_vcpu(0, |vcpu| vcpu.state().unwrap()).unwrap();
        let second = move |vcpu: &mut dyn engine::Vcpu| {
            let mut other = vcpu.state().unwrap();
            (other.regs, other.segments, other.control) =
                (state.regs, state.segments, state.control);
            other.regs.rip = LOOP;
            (other.regs.gpr[3], other.regs.gpr[4]) = (COUNTER, 0x13_0000);
            other.mp = state.mp;
            vcpu.set_state(&other).unwrap();
        };
        handle.on_vcpu(1, second).unwrap();
        let mut gdb = Debugger::connect(server.address());
        let breakpoint = format!("Z0,{LEAF:x},1");
        assert_eq!(gdb.ask(&breakpoint), "OK");
        let mut told = [0; 2];
        // The host decides how far the other gets meanwhile.
        for round in 0..5000 {
            if round >= 20 && told.iter().all(|&n| n > 0) {
                break;
            }
            let stop = gdb.ask("vCont;c");
            let (_, thread) = stop.split_once("thread:").unwrap();
            let vcpu = if thread.starts_with("01;") { 0 } else { 1 };
            told[vcpu] += 1;
            assert_eq!(gdb.ask(&format!("Hg{}", vcpu + 1)), "OK");
            assert_eq!(gdb.number("p10"), LEAF, "{kind:?}: {stop}");
            assert_eq!(gdb.ask(&breakpoint.replace('Z', "z")), "OK");
            assert!(gdb.ask(&format!("vCont;s:{}", vcpu + 1)).starts_with("T05"));
            assert_eq!(gdb.number("p10"), LEAF + 4);
            assert_eq!(gdb.ask(&breakpoint), "OK");
        }
        assert!(told.iter().all(|&n| n > 0), "{kind:?}: {told:?}");
        drop((server, machine));
    }
}

/// Packets such as a debugger sends, with numbers that it would not.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        any::<u64>().prop_map(|n| format!("{n:x}")),
        (0u64..0x200).prop_map(|n| format!("{n:x}")),
        Just(format!("{START:x}")),
        Just("ffffffffffffffffffff".to_string()),
        Just("-1".to_string()),
        Just(String::new()),
    ];
    let numbers = prop::collection::vec(number, 0..4);
    let command = prop::sample::select(vec![
        "?",
        "g",
        "G",
        "m",
        "M",
        "X",
        "p",
        "P",
        "H",
        "Hg",
        "Hc",
        "T",
        "Z0,",
        "Z1,",
        "Z2,",
        "Z3,",
        "Z4,",
        "z0,",
        "z2,",
        "vCont;s:",
        "vCont;c:",
        "vCont;",
        "vCont?",
        "s",
        "c",
        "qRcmd,",
        "qXfer:features:read:target.xml:",
        "qSupported:",
        "qfThreadInfo",
        "qThreadExtraInfo,",
        "QStartNoAckMode",
        "vMustReplyEmpty",
        "qC",
        "qAttached",
        "!",
        "vAttach;",
        "qCRC:",
    ]);
    let separator = prop::sample::select(vec![",", ":", ";", "=", "p1."]);
    let framed = (command, numbers, separator).prop_map(|(command, numbers, separator)| {
        let text = format!("{command}{}", numbers.join(separator));
        let sum = text.bytes().fold(0u8, u8::wrapping_add);
        format!("${text}#{sum:02x}").into_bytes()
    });
    prop_oneof![
        8 => framed,
        1 => prop::collection::vec(any::<u8>(), 0..64),
        1 => Just(b"\x03".to_vec()),
        1 => Just(b"+".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(|mut bytes| {
            bytes.insert(0, b'$');
            bytes.extend(b"#00");
            bytes
        }),
    ]
}

/// Whatever a peer sends, the next one is served, and the machine goes on after it.
#[test]
fn hostile_peers_end_their_own_session_at_most() {
    let Some(kind) = kinds().pop() else { return };
    let (machine, server) = served(kind);
    let handle = machine.handle();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) };
    let mut runner = TestRunner::new(config);
    let session = prop::collection::vec(packet(), 1..12);
    runner
        .run(&session, |packets| {
            let mut peer = Debugger::connect(server.address());
            for packet in packets {
                peer.raw(&packet);
            }
            drop(peer);
            let mut gdb = Debugger::connect(server.address());
            let answer = gdb.ask("?");
            prop_assert!(answer.starts_with('T'), "{answer}");
            prop_assert_eq!(gdb.ask("D"), "OK");
            prop_assert!(handle.info().is_ok());
            Ok(())
        })
        .unwrap();
    // It sends and does not read; the end of the server does not wait for it.
    let mut peer = Debugger::connect(server.address());
    for _ in 0..64 {
        peer.raw(b"$m100000,ffffff#00");
    }
    drop(server);
}
