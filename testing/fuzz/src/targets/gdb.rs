//! What a debugger sends: packets that are in order, or nearly, to a machine with a tiny guest.

use crate::input::Input;
use ::machine::{
    Machine, Parts, Start, Tracer,
    engines::{self, Kind},
};
use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};
use vm_spec::VmSpec;

const START: u64 = 0x10_0000;
/// Counts up in a register, for ever.
const CODE: &[u8] = &[0x48, 0xff, 0xc0, 0xeb, 0xfb];
const PACKETS: usize = 48;
/// Only a hang takes so long.
const LIMIT: Duration = Duration::from_secs(15);

/// An ELF file of one segment that is entered at its start.
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    [START, 64, 0].iter().for_each(|word| file.extend(word.to_le_bytes()));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    let len = CODE.len() as u64;
    [120, START, START, len, len, 4096].iter().for_each(|word| file.extend(word.to_le_bytes()));
    file.extend(CODE);
    file
}

fn machine() -> Machine {
    let engine = engines::open(Kind::Translate).expect("an engine");
    let spec = VmSpec { cpus: 2, memory: 16 << 20, ..VmSpec::default() };
    let kernel = elf().into();
    let parts = Parts {
        start: Start::Kernel { kernel, initrd: None, command_line: String::new() },
        console: Arc::new(byte_stream::Null),
        disks: Vec::new(),
        entropy: None,
        channels: Vec::new(),
        vga_rom: None,
        vsock: None,
        networks: Vec::new(),
        tracer: Tracer::none(),
    };
    Machine::build(&*engine, &spec, parts).expect("a machine")
}

/// An address that is there mostly.
fn address(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0..=0xbf => START + u64::from(input.u8()),
        _ => input.number(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The body of a packet.
fn body(input: &mut Input<'_>) -> Vec<u8> {
    match input.u8() & 31 {
        0 => "g".to_owned(),
        1 => format!("G{}", hex(input.some(700))),
        2 => format!("p{:x}", input.number() & 0xff),
        3 => format!("P{:x}={}", input.u8() & 0x7f, hex(input.some(20))),
        4..=6 => format!("m{:x},{:x}", address(input), input.number()),
        7 | 8 => {
            let (at, data) = (address(input), input.some(40));
            format!("M{at:x},{:x}:{}", data.len(), hex(data))
        }
        // Breakpoints and watchpoints come and go.
        9..=12 => {
            let (what, kind) = (input.pick(&['Z', 'Z', 'z']), input.u8() % 6);
            format!("{what}{kind},{:x},{:x}", address(input), input.number() & 0xff)
        }
        13 => "?".to_owned(),
        14 => format!("H{}{:x}", input.pick(&['g', 'c', 'x']), input.u8() & 3),
        15 => format!("T{:x}", input.u8() & 3),
        16..=18 => {
            let action = input.pick(&["c", "s", "s", "t", "C05", "r100000,100010"]);
            format!("vCont;{action}:{:x}", input.u8() & 3)
        }
        19 => input.pick(&["s", "c", "vCont?", "D", "k", "R00", "!", "vKill;1"]).to_owned(),
        20 => input
            .pick(&[
                "qSupported:multiprocess+;swbreak+;hwbreak+",
                "qfThreadInfo",
                "qsThreadInfo",
                "qC",
            ])
            .to_owned(),
        21 => format!("qXfer:features:read:target.xml:{:x},{:x}", input.number(), input.number()),
        22 => format!("qRcmd,{}", hex(input.some(30))),
        23 => {
            let text = input.pick(&["info", "help", "x 100000 10", "x 0 ffffffff", "xp 0 8"]);
            format!("qRcmd,{}", hex(text.as_bytes()))
        }
        24 => format!("qThreadExtraInfo,{:x}", input.u8() & 3),
        _ => return input.some(64).to_vec(),
    }
    .into_bytes()
}

/// What is sent, from the first to the last byte.
fn sends(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if input.flag() {
        bytes.extend(b"$QStartNoAckMode#b0+");
    }
    for _ in 0..PACKETS {
        if input.is_empty() {
            break;
        }
        let body = body(input);
        let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let sum = if input.u8() < 0xf8 { sum } else { input.u8() };
        bytes.push(b'$');
        bytes.extend(body);
        bytes.extend(format!("#{sum:02x}+").bytes());
        // Ctrl-C: what runs stops.
        if input.u8() < 0x40 {
            bytes.push(3);
        }
    }
    bytes
}

fn session(to: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("an option");
    // It may hang up before it has heard all, by which no more can be sent or received.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let ended = stream.read_to_end(&mut Vec::new());
    let waits = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    assert!(!ended.as_ref().is_err_and(waits), "the session does not end");
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let machine = machine();
    let server = gdb_server::serve(([127, 0, 0, 1], 0).into(), machine.handle()).expect("a port");
    for _ in 0..2 {
        session(server.address(), &sends(&mut input));
    }
    drop(server);
    // The machine is still there, or has ended as it was told to.
    let _ = machine.handle().quit();
}
