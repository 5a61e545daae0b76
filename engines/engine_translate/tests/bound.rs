//! What a vCPU keeps of code is bounded, however much code a guest has: measured by what the
//! kernel says of this process, in which nothing else runs.

use engine::{Engine, Exit, Flow, Pending, Vcpu, VcpuHost, VmConfig, stats::Value};
use engine_translate::{Translate, Translation};
use guest_mem::{Change, Memfd, Slot};
use std::{fs::File, io::Read};
use vcpu_state::{SegReg, Segment, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer},
    gpr, paging,
};

const MIB: u64 = 1 << 20;
const RAM: u64 = 8 * MIB;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const TABLES: u64 = 0x8_0000;
const FUNCTIONS: u64 = MIB;
/// From one function to the next, and how many there are.
const STRIDE: u64 = 48;
const COUNT: u64 = 60_000;

struct Nothing;

impl VcpuHost for Nothing {
    fn pio_in(&mut self, _: u16, _: usize, _: &mut [u8]) -> Flow {
        Flow::Continue
    }
    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) -> Flow {
        Flow::Continue
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn pending(&self) -> Option<Pending> {
        None
    }
    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }
    fn tsc(&mut self) -> u64 {
        0
    }
}

/// 64-bit code at ring 0; the first `functions` are called.
fn state(functions: u64) -> VcpuState {
    let mut state = VcpuState::reset(0);
    let data = Segment { selector: 0x10, base: 0, limit: !0, attr: 0xc093 };
    state.segments.reg[..6].fill(data);
    *state.segment_mut(SegReg::Cs) = Segment { selector: 8, attr: 0xa09b, ..data };
    state.control.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
    state.control.cr3 = TABLES;
    state.control.cr4 = cr4::PAE | cr4::OSFXSR;
    state.control.efer = efer::LME | efer::LMA;
    state.regs.rip = CODE;
    state.regs.gpr[gpr::RSP] = 0x7_0000;
    state.regs.gpr[gpr::RBX] = DATA;
    state.regs.gpr[gpr::RSI] = FUNCTIONS;
    state.regs.gpr[gpr::RDI] = functions;
    state
}

/// Calls each function.
const MAIN: [u8; 12] = [
    0xff,
    0xd6, // call rsi
    0x48,
    0x83,
    0xc6,
    STRIDE as u8, // add rsi, STRIDE
    0xff,
    0xcf, // dec edi
    0x75,
    0xf6, // jnz
    0xf4, // hlt
    0x90,
];

/// A function that no other is like: loads, stores, and what its handler keeps more of.
fn function(n: u64) -> Vec<u8> {
    let mut code = vec![0x05]; // add eax, n
    code.extend((n as u32).to_le_bytes());
    for (opcode, at) in [(0x03, n % 97), (0x33, n % 89), (0x89, n % 83)] {
        code.extend([opcode, 0x83]); // add, xor, mov with [rbx + at]
        code.extend((at as u32 * 8).to_le_bytes());
    }
    code.extend([0x66, 0x0f, 0x70, 0xc1, n as u8]); // pshufd xmm0, xmm1, n
    code.extend([0x0f, 0x11, 0x83]); // movups [rbx + at], xmm0
    code.extend((n as u32 % 79 * 16).to_le_bytes());
    code.push(0xc3);
    code
}

/// What the process has resident in memory but for the guest's, in bytes.
fn resident() -> u64 {
    // With room for all of it: what is allocated while it is read would change the mappings, and
    // the kernel tells twice of one that grows.
    let mut smaps = String::with_capacity(1 << 20);
    File::open("/proc/self/smaps").unwrap().read_to_string(&mut smaps).unwrap();
    let (mut guest, mut sum) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            guest = line.contains("/memfd:guest-ram");
        } else if first == "Pss:" && !guest {
            sum += words.next().unwrap().parse::<u64>().unwrap() << 10;
        }
    }
    sum
}

/// By how much a vCPU with so many bytes for code grows when it runs all functions, and what it
/// counts.
fn growth(code_memory: u64) -> (u64, engine::Stats) {
    let translation =
        Translation { code_memory: code_memory as usize, hot: 0, ..Translation::default() };
    let engine = Translate::new().unwrap().with_translation(translation);
    let cpuid = engine.caps().cpuid.clone();
    let config = VmConfig { cpuid, memory: RAM, ..VmConfig::default() };
    let vm = engine.create_vm(&config).unwrap();
    let mem = Memfd::new(RAM).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
    vm.set_layout(&[Change::Map(slot)]).unwrap();
    let write = |at: u64, bytes: &[u8]| vm.memory().write(at, bytes).unwrap();
    let flags = paging::P | paging::RW;
    for (at, value) in
        [(TABLES, (TABLES + 0x1000) | flags), (TABLES + 0x1000, (TABLES + 0x2000) | flags)]
    {
        write(at, &value.to_le_bytes());
    }
    for n in 0..RAM >> 21 {
        write(TABLES + 0x2000 + 8 * n, &((n << 21) | paging::PS | flags).to_le_bytes());
    }
    write(CODE, &MAIN);
    for n in 0..COUNT {
        write(FUNCTIONS + n * STRIDE, &function(n));
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let run = |vcpu: &mut Box<dyn Vcpu>, functions| {
        vcpu.set_state(&state(functions)).unwrap();
        let exit = vcpu.run(&mut Nothing).unwrap();
        assert_eq!(exit, Exit::Idle, "{functions} {:x?}", vcpu.state().unwrap().regs);
    };
    // What does not depend on how much code there is.
    run(&mut vcpu, 16);
    run(&mut vcpu, 16);
    let before = resident();
    run(&mut vcpu, COUNT);
    run(&mut vcpu, COUNT);
    (resident().saturating_sub(before), vcpu.stats())
}

#[test]
fn code_takes_no_more_than_it_may() {
    if !translator_runs() {
        return;
    }
    // Allocators keep some for later.
    let slack = MIB;
    for most in [2 * MIB, 12 * MIB] {
        let (grown, stats) = growth(most);
        let count = |group: &str, name: &str| match stats.get(group, name) {
            Some(Value::Count(count) | Value::Bytes(count)) => count,
            other => panic!("{group}, {name}: {other:?}"),
        };
        println!("{} KiB of {} KiB: {stats:?}", grown >> 10, most >> 10);
        assert!(grown <= most + slack, "{} KiB of {} KiB", grown >> 10, most >> 10);
        // It was full, and is used.
        assert!(count("code cache", "segments evicted") > 8, "{stats:?}");
        assert!(grown > most / 16, "{} KiB of {} KiB", grown >> 10, most >> 10);
        assert!(count("translation", "blocks translated") >= COUNT);
    }
}

fn translator_runs() -> bool {
    std::is_x86_feature_detected!("bmi2") && std::is_x86_feature_detected!("avx")
}
