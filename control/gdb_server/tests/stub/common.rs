//! A machine with a tiny guest, and a debugger that speaks the bare protocol.

use machine::{
    Machine, Parts, Start, Tracer,
    engines::{self, Kind},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};
use vm_spec::VmSpec;

pub const START: u64 = 0x10_0000;
pub const LOOP: u64 = START + 0xc;
pub const AFTER_STORE: u64 = START + 0x12;
pub const LEAF: u64 = START + 0x2a;
pub const COUNTER: u64 = 0x11_0000;
/// A value other than zero makes the guest power off.
pub const FLAG: u64 = COUNTER + 8;

/// 64-bit code that counts at [`COUNTER`] until [`FLAG`] is set.
const CODE: &[u8] = &[
    0xbc, 0, 0, 0x12, 0, // mov esp, 0x120000
    0xbb, 0, 0, 0x11, 0, // mov ebx, COUNTER
    0x31, 0xc0, // xor eax, eax
    0x48, 0xff, 0xc0, // loop: inc rax
    0x48, 0x89, 0x03, // mov [rbx], rax
    0xe8, 0x13, 0, 0, 0, // call leaf
    0x83, 0x7b, 0x08, 0, // cmp dword ptr [rbx + 8], 0
    0x74, 0xef, // je loop
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34, // mov ax, SLP_EN and SLP_TYP of S5
    0x66, 0xef, // out dx, ax
    0xf4, // halt: hlt
    0xeb, 0xfd, // jmp halt
    0x48, 0x8d, 0x0c, 0x00, // leaf: lea rcx, [rax + rax]
    0xc3, // ret
];

/// An ELF file of one segment that is entered at its start.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [START, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for half in [1u32, 7] {
        file.extend(half.to_le_bytes());
    }
    let len = code.len() as u64;
    for word in [120, START, START, len, len, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// The engines of this host.
pub fn kinds() -> Vec<Kind> {
    let all = [Kind::Kvm, Kind::Translate];
    all.into_iter().filter(|&kind| engines::open(kind).is_ok()).collect()
}

/// Paused at its first instruction.
pub fn machine(kind: Kind, cpus: u32) -> Machine {
    let engine = engines::open(kind).unwrap();
    // A software KVM may offer less than the portable models.
    let cpu_model = (kind == Kind::Kvm).then(|| "host".into());
    let spec = VmSpec { cpus, cpu_model, memory: 16 << 20, ..VmSpec::default() };
    let parts = Parts {
        start: Start::Kernel {
            kernel: elf(CODE).into(),
            initrd: None,
            command_line: String::new(),
        },
        console: Arc::new(byte_stream::Null),
        disks: Vec::new(),
        entropy: None,
        channels: Vec::new(),
        vga_rom: None,
        vsock: None,
        networks: Vec::new(),
        tracer: Tracer::none(),
    };
    Machine::build(&*engine, &spec, parts).unwrap()
}

pub struct Debugger {
    stream: TcpStream,
}

impl Debugger {
    pub fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream }
    }

    /// Without waiting for an answer.
    pub fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.stream, "${packet}#{sum:02x}").unwrap();
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        // The server may have closed the connection already.
        drop(self.stream.write_all(bytes));
    }

    /// The next packet, acknowledged; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<String> {
        while self.byte()? != b'$' {}
        let mut packet = Vec::new();
        loop {
            match self.byte()? {
                b'#' => break,
                // Run-length encoding: the byte before, so many times more.
                b'*' => {
                    let more = self.byte()? - 29;
                    let last = *packet.last().unwrap();
                    packet.extend(std::iter::repeat_n(last, more.into()));
                }
                byte => packet.push(byte),
            }
        }
        self.byte()?;
        self.byte()?;
        self.raw(b"+");
        Some(String::from_utf8(packet).unwrap())
    }

    pub fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.receive().unwrap_or_else(|| panic!("no answer to {packet}"))
    }

    /// As [`Self::ask`] for a number in hexadecimal, low byte first.
    pub fn number(&mut self, packet: &str) -> u64 {
        let text = self.ask(packet);
        let byte = |n: usize| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap();
        (0..text.len() / 2).rev().fold(0, |value, n| value << 8 | u64::from(byte(n)))
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        (self.stream.read(&mut byte).ok()? == 1).then_some(byte[0])
    }
}
