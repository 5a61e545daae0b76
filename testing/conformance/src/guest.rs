//! Guests of a few bytes.

use crate::{Bus, Event, Mode, UnderTest};
use engine::*;
use guest_mem::{Change, Memfd, Slot, SlotId};
use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};
use vcpu_state::{MpState, VcpuState};

/// Bytes of RAM, slot 0, at address 0.
pub const RAM: u64 = 0x10_0000;
pub(crate) const IDT: u64 = 0x400;
pub(crate) const GDT: u64 = 0x800;
pub(crate) const TSS: u64 = 0x900;
pub const CODE: u64 = 0x1000;
/// Handlers of vectors 0 to 0x3f, 16 bytes each.
const HANDLERS: u64 = 0x2000;
/// A free page.
pub const DATA: u64 = 0x4000;
/// The top of the stack.
pub const STACK: u64 = 0x7000;
pub(crate) const PAGE_TABLES: [u64; 4] = [0x8000, 0x9000, 0xa000, 0xb000];

/// A handler says its vector by writing to this port plus the vector.
pub const HANDLER_PORT: u16 = 0x80;
pub const VECTOR_PORTS: Range<u16> = HANDLER_PORT..HANDLER_PORT + 0x40;

/// `out 0xf4, al; jmp $`: the end of every guest, which appends it.
pub const END: &[u8] = &[0xe6, 0xf4, 0xeb, 0xfe];

const PATIENCE: Duration = Duration::from_secs(10);

/// A VM with one vCPU and a bus.
pub struct Guest {
    pub vm: Arc<dyn Vm>,
    pub cpu: Box<dyn Vcpu>,
    pub bus: Bus,
    pub mode: Mode,
    /// The engine has the local APICs.
    pub own_apic: bool,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("mode", &self.mode).finish_non_exhaustive()
    }
}

pub fn slot(id: SlotId, gpa: u64, mem: &Arc<Memfd>) -> Slot {
    let len = mem.size().unwrap();
    Slot { id, gpa, mem: mem.clone(), offset: 0, len, writable: true }
}

impl Guest {
    /// Code at [`CODE`] followed by [`END`], in this mode.
    pub fn new(engine: &UnderTest, mode: Mode, code: &[u8]) -> Self {
        Self::with(engine, mode, code, VmConfig::default())
    }

    pub fn with(engine: &UnderTest, mode: Mode, code: &[u8], config: VmConfig) -> Self {
        let config = VmConfig { memory: 16 << 20, cpuid: engine.cpuid(), ..config };
        let vm = engine.create_vm(&config).unwrap();
        let ram = Memfd::new(RAM).unwrap();
        vm.set_layout(&[Change::Map(slot(0, 0, &ram))]).unwrap();
        let memory = vm.memory();
        let handler = |vector: u8| HANDLERS + u64::from(vector) * 16;
        for vector in 0..0x40 {
            let says = [0xe6, HANDLER_PORT as u8 + vector];
            memory.write(handler(vector), &[&says, mode.iret()].concat()).unwrap();
        }
        mode.write_tables(memory, handler);
        memory.write(CODE, &[code, END].concat()).unwrap();
        let mut cpu = vm.create_vcpu(0).unwrap();
        cpu.set_state(&mode.state()).unwrap();
        let own_apic = engine.caps().local_apic;
        Self { vm, cpu, bus: Bus::default(), mode, own_apic }
    }

    /// # Panics
    /// If it takes ten seconds, which no case does unless something was lost.
    pub fn run(&mut self) -> Exit {
        let kick = self.cpu.kicker();
        let (done, is_done) = mpsc::channel::<()>();
        let (exit, hung) = std::thread::scope(|s| {
            let watchdog = s.spawn(move || {
                let hung = is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
                if hung {
                    kick.stop();
                }
                hung
            });
            let exit = self.cpu.run(&mut self.bus);
            drop(done);
            (exit, watchdog.join().unwrap())
        });
        if hung {
            let state = self.state();
            panic!("it hangs in {:?} at {:#x}: {:?}", state.mp, state.regs.rip, self.bus.log);
        }
        exit.unwrap()
    }

    /// Runs to the end of the code.
    pub fn finish(&mut self) -> VcpuState {
        let exit = self.run();
        let state = self.state();
        let last = self.bus.log.last();
        let ended = matches!(last, Some(Event::Out(0xf4, _)));
        assert!(exit == Exit::Stopped && ended, "{exit:?} after {last:?} at {:#x}", state.regs.rip);
        state
    }

    /// Runs to an exception's handler, and returns the vector, the error code if the vector has
    /// one, and the state in the handler.
    pub fn fault(&mut self) -> (u8, Option<u32>, VcpuState) {
        assert_eq!(self.run(), Exit::Stopped);
        let Some(Event::Vector(vector)) = self.bus.log.last().cloned() else {
            panic!("no exception: {:?}", self.bus.log);
        };
        let state = self.state();
        let has_error = x86_defs::exception::has_error_code(vector) && self.mode != Mode::Real;
        let top = state.regs.gpr[x86_defs::gpr::RSP];
        let error = has_error.then(|| self.read_u32(top));
        (vector, error, state)
    }

    /// RIP that the exception's frame has, in a handler.
    pub fn return_address(&self, error: Option<u32>, state: &VcpuState) -> u64 {
        let width = match self.mode {
            Mode::Real => 2,
            Mode::Protected | Mode::Paged | Mode::Pae => 4,
            Mode::Long | Mode::User => 8,
        };
        let at = state.regs.gpr[x86_defs::gpr::RSP] + if error.is_some() { width } else { 0 };
        let mut bytes = [0; 8];
        self.vm.memory().read(at, &mut bytes[..width as usize]).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Runs until the vCPU is halted with nothing pending.
    pub fn idle(&mut self) {
        if !self.own_apic {
            assert_eq!(self.run(), Exit::Idle);
            return;
        }
        // The kernel waits itself: it is looked at after a while, for as long as it takes.
        for _ in 0..100 {
            let kick = self.cpu.kicker();
            let exit = std::thread::scope(|s| {
                s.spawn(move || {
                    std::thread::sleep(Duration::from_millis(10));
                    kick.stop();
                });
                self.run()
            });
            assert_eq!(exit, Exit::Stopped);
            if self.state().mp == MpState::Halted {
                return;
            }
        }
        panic!("it never halts");
    }

    pub fn state(&mut self) -> VcpuState {
        self.cpu.state().unwrap()
    }

    /// Changes the state that the guest starts in.
    pub fn set(&mut self, change: impl FnOnce(&mut VcpuState)) {
        let mut state = self.state();
        change(&mut state);
        self.cpu.set_state(&state).unwrap();
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.vm.memory().write(at, bytes).unwrap();
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut out = [0; N];
        self.vm.memory().read(at, &mut out).unwrap();
        out
    }

    pub fn read_u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    pub fn read_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }
}
