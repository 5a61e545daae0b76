//! A VM with 2 MiB of RAM, long mode with identity paging, and a host that writes down.

use crate::{Translate, Translation, Windowing};
use engine::{Engine, Exit, Flow, Intercepts, Kick, Pending, Vcpu, VcpuHost, Vm, VmConfig};
use guest_mem::{Change, Memfd, Slot};
use iced_x86::code_asm::CodeAssembler;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use vcpu_state::{MpState, SegReg, Segment, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer},
    paging,
};

pub const CODE: u64 = 0x1_0000;
pub const STACK: u64 = 0x2_0000;
pub const DATA: u64 = 0x3_0000;
pub const IDT: u64 = 0x4_0000;
pub const GDT: u64 = 0x4_1000;
/// The page tables: three pages.
const TABLES: u64 = 0x8_0000;

#[derive(Default)]
pub struct Host {
    /// Port and value of each OUT.
    pub out: Vec<(u16, u32)>,
    /// What IN reads.
    pub input: u32,
    pub pending: Option<(Pending, u8)>,
    pub time: u64,
    /// OUT to this port stops.
    pub stop_port: Option<u16>,
}

impl VcpuHost for Host {
    fn pio_in(&mut self, _: u16, size: usize, data: &mut [u8]) -> Flow {
        for chunk in data.chunks_mut(size) {
            let len = chunk.len();
            chunk.copy_from_slice(&self.input.to_le_bytes()[..len]);
        }
        Flow::Continue
    }

    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        for chunk in data.chunks(size) {
            let mut bytes = [0; 4];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.out.push((port, u32::from_le_bytes(bytes)));
        }
        if self.stop_port == Some(port) { Flow::Stop } else { Flow::Continue }
    }

    fn mmio_read(&mut self, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        Flow::Continue
    }

    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn pending(&self) -> Option<Pending> {
        self.pending.map(|p| p.0)
    }

    fn ack(&mut self, _: Pending) -> Option<u8> {
        self.pending.take().map(|p| p.1)
    }

    fn tsc(&mut self) -> u64 {
        self.time += 1;
        self.time
    }
}

/// A host whose interrupts other threads raise.
#[derive(Default)]
pub struct Wire {
    pub waits: Arc<AtomicBool>,
    pub vector: u8,
    /// What an OUT makes others look at, and whose interrupt it is if it is to [`SEND`].
    pub told: Option<(Arc<AtomicBool>, Arc<dyn Kick>)>,
}

/// The port that sends an interrupt.
pub const SEND: u16 = 0x90;

impl VcpuHost for Wire {
    fn pio_in(&mut self, _: u16, _: usize, _: &mut [u8]) -> Flow {
        Flow::Continue
    }

    fn pio_out(&mut self, port: u16, _: usize, _: &[u8]) -> Flow {
        if let Some((line, kick)) = &self.told {
            line.fetch_or(port == SEND, SeqCst);
            kick.notify();
        }
        Flow::Continue
    }

    fn mmio_read(&mut self, _: u64, _: &mut [u8]) -> Flow {
        Flow::Continue
    }

    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn pending(&self) -> Option<Pending> {
        self.waits.load(SeqCst).then_some(Pending::Interrupt)
    }

    fn ack(&mut self, _: Pending) -> Option<u8> {
        self.waits.swap(false, SeqCst).then_some(self.vector)
    }

    fn tsc(&mut self) -> u64 {
        0
    }
}

pub struct Guest {
    pub vm: Arc<dyn Vm>,
    pub vcpu: Box<dyn Vcpu>,
    pub host: Host,
}

/// Flat segments in long mode at CPL 0, with paging, all RAM mapped and writable.
pub fn long_mode() -> VcpuState {
    let mut state = VcpuState::reset(0);
    let data = Segment { selector: 0x10, base: 0, limit: !0, attr: 0xc093 };
    state.segments.reg[..6].fill(data);
    *state.segment_mut(SegReg::Cs) = Segment { selector: 8, attr: 0xa09b, ..data };
    state.segments.gdtr = vcpu_state::Table { base: GDT, limit: 0x17 };
    state.segments.idtr = vcpu_state::Table { base: IDT, limit: 0xfff };
    state.control.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP | cr0::MP;
    state.control.cr3 = TABLES;
    state.control.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.control.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
    state.regs.rip = CODE;
    state.regs.gpr[4] = STACK;
    state
}

/// 32-bit protected mode without paging.
pub fn flat32() -> VcpuState {
    let mut state = long_mode();
    state.control.cr0 = cr0::PE | cr0::ET | cr0::NE;
    state.control.cr4 = 0;
    state.control.efer = 0;
    state.segments.reg[..6].iter_mut().for_each(|s| s.attr = 0xc093);
    state.segment_mut(SegReg::Cs).attr = 0xc09b;
    state
}

pub fn real_mode() -> VcpuState {
    let mut state = VcpuState::reset(0);
    let cs = Segment { selector: (CODE >> 4) as u16, base: CODE, limit: 0xffff, attr: 0x9b };
    *state.segment_mut(SegReg::Cs) = cs;
    state.regs.rip = 0;
    state.regs.gpr[4] = 0x8000;
    state
}

pub fn vm() -> Arc<dyn Vm> {
    vm_with(Intercepts::default())
}

pub fn vm_with(intercepts: Intercepts) -> Arc<dyn Vm> {
    vm_of(&Translate::new().unwrap(), intercepts)
}

pub fn vm_of(engine: &Translate, intercepts: Intercepts) -> Arc<dyn Vm> {
    vm_as(engine, VmConfig { intercepts, counted: true, ..VmConfig::default() })
}

/// Everything is translated at its first execution.
pub fn translating() -> Translate {
    let windows = Windowing::Eager;
    let how = Translation { code_memory: 1 << 20, hot: 0, windows, ..Translation::default() };
    Translate::new().unwrap().with_translation(how)
}

pub fn vm_as(engine: &Translate, config: VmConfig) -> Arc<dyn Vm> {
    // Room to map what is mapped anew beside the old.
    let vm = engine.create_vm(&VmConfig { memory: 0x40_0000, ..config }).unwrap();
    let mem = Memfd::new(0x20_0000).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: 0x20_0000, writable: true };
    vm.set_layout(&[Change::Map(slot)]).unwrap();
    let entry = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).unwrap();
    let flags = paging::P | paging::RW | paging::US;
    entry(TABLES, (TABLES + 0x1000) | flags);
    entry(TABLES + 0x1000, (TABLES + 0x2000) | flags);
    entry(TABLES + 0x2000, paging::PS | flags);
    entry(GDT + 8, 0x00af_9b00_0000_ffff);
    entry(GDT + 16, 0x00cf_9300_0000_ffff);
    vm
}

impl Guest {
    pub fn new(state: &VcpuState, code: &[u8]) -> Self {
        Self::of(&Translate::new().unwrap(), state, code)
    }

    pub fn of(engine: &Translate, state: &VcpuState, code: &[u8]) -> Self {
        let vm = vm_of(engine, Intercepts::default());
        vm.memory().write(CODE, code).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_state(state).unwrap();
        Self { vm, vcpu, host: Host::default() }
    }

    pub fn asm(
        bits: u32,
        state: &VcpuState,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> Self {
        Self::new(state, &assemble(bits, CODE, code))
    }

    pub fn run(&mut self) -> Exit {
        self.vcpu.run(&mut self.host).unwrap()
    }

    pub fn run_for(&mut self, retired: u64) -> Exit {
        self.vcpu.run_for(retired, &mut self.host).unwrap()
    }

    pub fn gpr(&mut self) -> [u64; 16] {
        self.vcpu.state().unwrap().regs.gpr
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut out = [0; N];
        self.vm.memory().read(at, &mut out).unwrap();
        out
    }

    /// An interrupt gate to CPL 0.
    pub fn gate(&self, vector: u64, handler: u64) {
        gate(&self.vm, vector, handler, 0);
    }
}

/// An interrupt gate to CPL 0 that is open from this level.
pub fn gate(vm: &Arc<dyn Vm>, vector: u64, handler: u64, level: u64) {
    let low = handler & 0xffff | 8 << 16 | (0x8e00 | level << 13) << 32;
    let low = low | (handler >> 16 & 0xffff) << 48;
    vm.memory().write(IDT + 16 * vector, &low.to_le_bytes()).unwrap();
    vm.memory().write(IDT + 16 * vector + 8, &(handler >> 32).to_le_bytes()).unwrap();
}

/// A vCPU that does not wait to be started.
pub fn running(vm: &Arc<dyn Vm>, id: u32, state: &VcpuState) -> Box<dyn Vcpu> {
    let mut vcpu = vm.create_vcpu(id).unwrap();
    vcpu.set_state(&VcpuState { mp: MpState::Running, ..state.clone() }).unwrap();
    vcpu
}

/// Runs vCPUs at once, each with its host, until all have ended. Where one ends otherwise than
/// by HLT, the others are stopped: they would wait for ever.
pub fn together<H: VcpuHost + Send>(vcpus: &mut [(Box<dyn Vcpu>, H)]) -> Vec<Exit> {
    let kicks: Vec<_> = vcpus.iter().map(|(vcpu, _)| vcpu.kicker()).collect();
    let run = |(vcpu, host): &mut (Box<dyn Vcpu>, H)| {
        let exit = vcpu.run(host).unwrap();
        if exit != Exit::Idle {
            kicks.iter().for_each(|kick| kick.stop());
        }
        exit
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = vcpus.iter_mut().map(|vcpu| scope.spawn(|| run(vcpu))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn assemble(
    bits: u32,
    at: u64,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let mut asm = CodeAssembler::new(bits).unwrap();
    code(&mut asm).unwrap();
    asm.assemble(at).unwrap()
}
