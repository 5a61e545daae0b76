//! States and code made of noise end a guest at worst, never the host.

use conformance::*;
use engine::{Exit, VmConfig};
use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};
use vcpu_state::VcpuState;

/// Noise that is the same in every run (xorshift64, Marsaglia).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Something that is likely to matter: small, a power of two, all ones, or anything.
    fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => self.below(0x10000),
            1 => 1 << self.below(64),
            2 => !0 << self.below(64),
            3 => !0 >> self.below(64),
            _ => self.next(),
        }
    }
}

/// Changes some parts of a state.
fn spoil(state: &mut VcpuState, noise: &mut Noise) {
    for _ in 0..=noise.below(4) {
        let value = noise.value();
        match noise.below(16) {
            0 => state.regs.rip = value,
            1 => state.regs.gpr[noise.below(16) as usize] = value,
            2 => state.regs.rflags = value,
            3 => state.control.cr0 = value,
            4 => state.control.cr3 = value,
            5 => state.control.cr4 = value,
            6 => state.control.efer = value,
            7 => state.control.xcr0 = value,
            8 => state.control.pdpte[noise.below(4) as usize] = value,
            9 => state.segments.reg[noise.below(8) as usize].attr = value as u16,
            10 => state.segments.reg[noise.below(8) as usize].limit = value as u32,
            11 => state.segments.reg[noise.below(8) as usize].base = value,
            12 => state.segments.gdtr.base = value,
            13 => state.segments.idtr.base = value,
            14 => state.debug.dr7 = value,
            _ => state.segments.reg[noise.below(8) as usize].selector = value as u16,
        }
    }
}

/// Runs for a while, whatever comes of it. A guest whose every instruction faults retires
/// none, and must still be stopped.
fn endure(g: &mut Guest) {
    let kick = g.cpu.kicker();
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|s| {
        s.spawn(move || {
            while is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                kick.stop();
            }
        });
        for _ in 0..4 {
            match g.cpu.run_for(300, &mut g.bus) {
                Ok(Exit::Retired | Exit::Stopped) => {}
                _ => break,
            }
        }
        drop(done);
    });
}

const PATIENCE: Duration = Duration::from_millis(100);

fn counted() -> VmConfig {
    VmConfig { counted: true, ..VmConfig::default() }
}

#[test]
fn code_of_noise() {
    each_engine(|e| {
        if e.skips(Lacks::Other("the speed for code of noise")) {
            return;
        }
        let mut noise = Noise(0x1234_5678_9abc_def1);
        for round in 0..400 {
            let mode = Mode::ALL[round % Mode::ALL.len()];
            let code: Vec<u8> = (0..64).map(|_| noise.next() as u8).collect();
            let mut g = Guest::with(e, mode, &code, counted());
            g.set(|s| s.regs.gpr.iter_mut().for_each(|r| *r = noise.value()));
            endure(&mut g);
        }
    });
}

#[test]
fn states_of_noise() {
    each_engine(|e| {
        if e.skips(Lacks::Other("the speed for states of noise")) {
            return;
        }
        let mut noise = Noise(0xfeed_beef_0bad_cafe);
        for round in 0..400 {
            let mode = Mode::ALL[round % Mode::ALL.len()];
            let mut g = Guest::with(e, mode, &[0x90, 0xcc, 0xcd, 0x30, 0xcf], counted());
            let mut state = g.state();
            spoil(&mut state, &mut noise);
            if g.cpu.set_state(&state).is_ok() {
                endure(&mut g);
            }
        }
    });
}

#[test]
fn page_tables_of_noise() {
    each_engine(|e| {
        if e.skips(Lacks::Other("the speed for page tables of noise")) {
            return;
        }
        let mut noise = Noise(0x0dd0_beef_5555_aaaa);
        for round in 0..120 {
            let mode = [Mode::Paged, Mode::Pae, Mode::Long, Mode::User][round % 4];
            // mov eax, [rsi]; mov [rdi], eax; add esi, 4096; add edi, 4096; jmp
            let code = [
                0x8b, 0x06, 0x89, 0x07, 0x81, 0xc6, 0, 0x10, 0, 0, 0x81, 0xc7, 0, 0x10, 0, 0, 0xeb,
                0xee,
            ];
            let mut g = Guest::with(e, mode, &code, counted());
            for table in [0x8000u64, 0x9000, 0xa000, 0xb000] {
                for _ in 0..noise.below(200) {
                    let entry = noise.value() & 0x0000_0000_00ff_ffff | noise.below(0x200);
                    g.write(table + noise.below(512) * 8, &entry.to_le_bytes());
                }
            }
            g.set(|s| (s.regs.gpr[6], s.regs.gpr[7]) = (0, noise.below(0x200) << 12));
            endure(&mut g);
        }
    });
}
