//! The real gdb against a machine with a tiny guest.

use crate::common::*;
use engine_kvm::HostKvm;
use gdb_server::Server;
use machine::{Ended, Machine, engines::Kind};
use std::process::Command;

fn have_gdb() -> bool {
    let found = Command::new("gdb").arg("--version").output().is_ok();
    if !found {
        println!("skipped: there is no gdb here");
    }
    found
}

fn served(kind: Kind, cpus: u32) -> (Machine, Server) {
    let machine = machine(kind, cpus);
    let server = gdb_server::serve("127.0.0.1:0".parse().unwrap(), machine.handle()).unwrap();
    (machine, server)
}

/// What gdb prints when it executes `commands` on the machine.
fn gdb(server: &Server, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set tcp connect-timeout 30", "-ex"]);
    gdb.arg(format!("target remote {}", server.address()));
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().unwrap();
    // What `monitor` says, and complaints, go to the other stream: that one follows.
    let text = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
    let text = text.concat();
    println!("{text}");
    text
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    let mut rest = text;
    for part in wanted {
        let Some((_, after)) = rest.split_once(part) else {
            panic!("{part:?} is not there, or not in this order:\n{text}");
        };
        rest = after;
    }
}

#[test]
fn breakpoints_stepping_registers_and_memory() {
    if !have_gdb() {
        return;
    }
    for kind in kinds() {
        let (machine, server) = served(kind, 1);
        let commands = [
            "print/x $pc",
            "break *0x10000c",
            "continue",
            "print $rbx",
            "stepi",
            "print/x $pc",
            "print $rax",
            "delete",
            "hbreak *0x10002a",
            "continue",
            "bt 1",
            "x/i $pc",
            "stepi",
            "print $rcx",
            "set var $r9 = 0x1122334455667788",
            "print/x $r9",
            "print/x *(long*)0x110000",
            "set var *(long*)0x110100 = 77",
            "print *(long*)0x110100",
            "print $cr0",
            "print $efer",
            "print/x $cs",
            "set var $xmm3.uint128 = 5",
            "print $xmm3.v2_int64",
            "print $st0",
            "print/x $mxcsr",
            "x/1xb 0xffffffff81000000",
            "detach",
        ];
        let text = gdb(&server, &commands);
        says(
            &text,
            &[
                "$1 = 0x100000",
                "Breakpoint 1, 0x000000000010000c",
                "$2 = 1114112",
                "$3 = 0x10000f",
                "$4 = 1",
                "Breakpoint 2, 0x000000000010002a",
                "lea",
                "$5 = 2",
                "$6 = 0x1122334455667788",
                "$7 = 0x1",
                "$8 = 77",
                "PE",
                "PG",
                "LMA",
                "$11 = 0x10",
                "$12 = {5, 0}",
                "$13 = 0",
                "$14 = 0x1f80",
                "[Inferior 1 (process 1) detached]",
            ],
        );
        // After detaching it runs without breakpoints, and gdb may come again.
        let text = gdb(&server, &["print *(long*)0x110000 > 1", "set var *(int*)0x110008 = 1"]);
        says(&text, &["$1 = 1"]);
        assert_eq!(machine.wait(None), Some(Ended::PoweredOff));
    }
}

#[test]
fn watchpoints() {
    if !have_gdb() {
        return;
    }
    for kind in kinds() {
        if kind == Kind::Kvm && engine_kvm::probe() == HostKvm::SoftwareOnly {
            println!("skipped: the software KVM lacks data breakpoints in native code");
            continue;
        }
        let (machine, server) = served(kind, 1);
        let commands = [
            "watch *(long*)0x110000",
            "continue",
            "continue",
            "print/x $pc",
            "delete",
            "awatch *(int*)0x110008",
            "continue",
            "print/x $pc",
            "delete",
            "break *0x10000c",
            "tbreak *0x10000f",
            "continue",
            "kill",
        ];
        let text = gdb(&server, &commands);
        says(
            &text,
            &[
                "Hardware watchpoint 1",
                "New value = 1",
                "New value = 2",
                "$1 = 0x100012",
                "Hardware access (read/write) watchpoint 2",
                "Value = 0",
                "$2 = 0x10001b",
                "0x000000000010000c",
                "[Inferior 1 (process 1) killed]",
            ],
        );
        assert_eq!(machine.wait(None), Some(Ended::Quit));
    }
}

#[test]
fn vcpus_are_threads_and_the_monitor_answers() {
    if !have_gdb() {
        return;
    }
    for kind in kinds() {
        let (machine, server) = served(kind, 2);
        let commands = [
            "info threads",
            "thread 2",
            "print/x $pc",
            "thread 1",
            "hbreak *0x10000c",
            "continue",
            "monitor info",
            "monitor xp 0x100000 4",
            "monitor reset",
            "flushregs",
            "print/x $pc",
            "monitor what",
            "delete",
            "detach",
        ];
        let text = gdb(&server, &commands);
        says(
            &text,
            &[
                "(vCPU 0: running)",
                "(vCPU 1: waiting to be started)",
                "$1 = 0xfff0",
                "hit Breakpoint 1",
                "$2 = 0x100000",
                "paused",
                "0000000000100000: bc 00 00 12",
                "reset",
                "powerdown",
            ],
        );
        drop(machine);
        drop(server);
    }
}
