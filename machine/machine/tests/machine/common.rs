//! Machines with tiny guests, on every engine of this host.

use crate::guests::START;
use byte_stream::Output;
use machine::{
    Ended, Error, Machine, Parts, Start, Tracer,
    engines::{self, Kind},
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use vm_spec::VmSpec;

/// Far more than any guest here takes: only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub struct Console(Mutex<Vec<u8>>);

impl Output for Console {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }
}

impl Console {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// An ELF file of one segment that is entered at its start.
pub fn elf(code: &[u8]) -> Vec<u8> {
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
    let usable = |kind: &Kind| match engines::open(*kind) {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: engine {kind:?}: {error}");
            false
        }
    };
    all.into_iter().filter(usable).collect()
}

pub fn build(kind: Kind, cpus: u32, kernel: Vec<u8>) -> Result<(Machine, Arc<Console>), Error> {
    let tsc_khz = engines::open(kind).unwrap().caps().tsc_khz;
    build_at(kind, cpus, kernel, tsc_khz)
}

pub fn build_at(
    kind: Kind,
    cpus: u32,
    kernel: Vec<u8>,
    tsc_khz: u32,
) -> Result<(Machine, Arc<Console>), Error> {
    let console = Arc::new(Console::default());
    let spec = VmSpec { cpus, ..spec(kind) };
    let engine = engines::open(kind).unwrap();
    let machine = Machine::build_at(&*engine, &spec, parts(kernel, &console), tsc_khz)?;
    Ok((machine, console))
}

/// A small machine with no device that is not always there.
pub fn spec(kind: Kind) -> VmSpec {
    // A software KVM may offer less than the portable models.
    let cpu_model = (kind == Kind::Kvm).then(|| "host".into());
    VmSpec { cpu_model, memory: 16 << 20, ..VmSpec::default() }
}

/// What [`spec`] needs.
pub fn parts(kernel: Vec<u8>, console: &Arc<Console>) -> Parts {
    Parts {
        start: Start::Kernel { kernel: kernel.into(), initrd: None, command_line: String::new() },
        console: console.clone(),
        disks: Vec::new(),
        entropy: None,
        channels: Vec::new(),
        vga_rom: None,
        vsock: None,
        networks: Vec::new(),
        tracer: Tracer::none(),
    }
}

pub fn machine(kind: Kind, code: &[u8]) -> (Machine, Arc<Console>) {
    build(kind, 1, elf(code)).unwrap()
}

#[track_caller]
pub fn end(machine: &Machine) -> Ended {
    machine.wait(Some(Instant::now() + LIMIT)).expect("the guest hangs")
}

#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn dword(machine: &Machine, at: u64) -> u32 {
    let mut bytes = [0; 4];
    machine.handle().memory().read(at, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}
