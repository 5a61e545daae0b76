//! A vCPU over a few megabytes of memory, and instructions put before it one by one.
#![allow(dead_code, reason = "each test file uses a part")]

use cpu_model::{CpuidEntry, CpuidTable};
use emit::StubCache;
use engine::{Flow, Pending, VcpuHost};
use guest_mem::{Change, GuestMem, Memfd, Slot};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use semantics::{CodeSize, Cpu, Ctx, Stop, event, features::IsaFeatures, select, sync::Slots};
use std::sync::Arc;
use vcpu_state::{Exception, SegReg, Segment, Table, VcpuState};
use x86_defs::cr::{cr0, cr4, efer};

pub const RAM: u64 = 0x40_0000;
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
/// Page tables of long mode: the first 4 MiB at 0 and at [`HIGH`], in 4 KiB pages.
pub const PML4: u64 = 0x10000;
pub const PT: u64 = 0x13000;
pub const HIGH: u64 = 0xffff_8000_0000_0000;

pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x1b;
pub const DATA3: u16 = 0x23;
pub const CODE0_32: u16 = 0x28;
pub const CODE3_32: u16 = 0x33;
pub const TSS_SEL: u16 = 0x40;

#[derive(Default)]
pub struct Host {
    pub ports: Vec<(u16, usize, u32)>,
    pub mmio: Vec<(u64, Vec<u8>)>,
    pub tsc: u64,
    pub tsc_offset: u64,
    pub cr8: u8,
}

impl VcpuHost for Host {
    fn pio_in(&mut self, _: u16, _: usize, data: &mut [u8]) -> Flow {
        data.fill(0x5a);
        Flow::Continue
    }
    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        let value = data.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b));
        self.ports.push((port, size, value));
        Flow::Continue
    }
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = (gpa + n as u64) as u8;
        }
        Flow::Continue
    }
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.mmio.push((gpa, data.to_vec()));
        Flow::Continue
    }
    fn pending(&self) -> Option<Pending> {
        None
    }
    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }
    fn cr8(&mut self) -> u8 {
        self.cr8
    }
    fn set_cr8(&mut self, value: u8) -> Flow {
        self.cr8 = value;
        Flow::Continue
    }
    fn tsc(&mut self) -> u64 {
        self.tsc
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
}

pub struct Machine {
    pub cpu: Cpu,
    pub host: Host,
    pub mem: Arc<GuestMem>,
    stubs: StubCache,
}

/// Everything that the tests need.
fn cpuid() -> CpuidTable {
    let mut table = CpuidTable::default();
    let mut add = |leaf, subleaf, [eax, ebx, ecx, edx]: [u32; 4]| {
        table.set(CpuidEntry { leaf, subleaf, eax, ebx, ecx, edx });
    };
    add(0, None, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    add(1, None, [0x306c3, 0, !0, !0]);
    add(7, Some(0), [0, !0, !0, !0]);
    add(0xd, Some(0), [7, 832, 832, 0]);
    add(0xd, Some(1), [7, 0, 0, 0]);
    add(0x8000_0001, None, [0, 0, !0, !0]);
    add(0x8000_0008, None, [0x3028, 0, 0, 0]);
    table
}

impl Machine {
    pub fn new(state: &VcpuState) -> Self {
        let ram = Memfd::new(RAM).unwrap();
        let mem = GuestMem::new(RAM).unwrap();
        let slot = Slot { id: 0, gpa: 0, mem: ram, offset: 0, len: RAM, writable: true };
        mem.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        let cpu = Cpu::new(0, &mem, &Arc::new(Slots::default()), Arc::new(cpuid()));
        let mut machine =
            Self { cpu, host: Host::default(), mem, stubs: StubCache::new().unwrap() };
        machine.tables();
        machine.cpu.load_state(state);
        machine
    }

    /// In real mode, at 0:0x7000 with the stack at 0:0x8000.
    pub fn real() -> Self {
        let mut state = VcpuState::reset(0);
        let cs = state.segment_mut(SegReg::Cs);
        (cs.selector, cs.base) = (0, 0);
        (state.regs.rip, state.regs.gpr[4]) = (0x7000, 0x8000);
        Self::new(&state)
    }

    /// In 32-bit protected mode without paging, at level 0.
    pub fn protected() -> Self {
        let mut state = VcpuState::reset(0);
        state.control.cr0 = cr0::PE | cr0::ET | cr0::NE;
        state.segments.gdtr = Table { base: GDT, limit: 0x7f };
        state.segments.idtr = Table { base: IDT, limit: 0xfff };
        let flat = |selector, attr| Segment { selector, base: 0, limit: !0, attr };
        for which in [SegReg::Es, SegReg::Ss, SegReg::Ds] {
            *state.segment_mut(which) = flat(DATA0, 0xc093);
        }
        *state.segment_mut(SegReg::Cs) = flat(CODE0_32, 0xc09b);
        *state.segment_mut(SegReg::Tr) =
            Segment { selector: TSS_SEL, base: TSS, limit: 0x67, attr: 0x8b };
        (state.regs.rip, state.regs.gpr[4]) = (0x7000, 0x8000);
        Self::new(&state)
    }

    /// In 64-bit mode with paging.
    pub fn long() -> Self {
        let mut machine = Self::protected();
        let mut state = machine.cpu.save_state(0, 0);
        state.control.cr0 |= cr0::PG | cr0::WP;
        state.control.cr3 = PML4;
        state.control.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR;
        state.control.efer = efer::LMA | efer::LME | efer::NXE | efer::SCE;
        *state.segment_mut(SegReg::Cs) =
            Segment { selector: CODE0, base: 0, limit: !0, attr: 0xa09b };
        machine.cpu.load_state(&state);
        machine
    }

    /// At level 3.
    pub fn long_user() -> Self {
        let mut machine = Self::long();
        let mut state = machine.cpu.save_state(0, 0);
        let flat = |selector, attr| Segment { selector, base: 0, limit: !0, attr };
        *state.segment_mut(SegReg::Cs) = flat(CODE3, 0xa0fb);
        *state.segment_mut(SegReg::Ss) = flat(DATA3, 0xc0f3);
        machine.cpu.load_state(&state);
        machine
    }

    fn tables(&self) {
        let gdt: [u64; 10] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0,
            0x0000_8b00_0000_0067 | TSS << 16,
            0,
        ];
        for (n, entry) in gdt.iter().enumerate() {
            self.put(GDT + 8 * n as u64, *entry);
        }
        for (table, next) in [(PML4, 0x11000), (0x11000, 0x12000), (0x12000, PT)] {
            self.put(table, next | 7);
        }
        self.put(PML4 + 8 * 256, 0x11000 | 7);
        self.put(0x12008, (PT + 0x1000) | 7);
        for page in 0..1024 {
            self.put(PT + 8 * page, page << 12 | 7);
        }
    }

    pub fn put(&self, gpa: u64, value: u64) {
        self.mem.write(gpa, &value.to_le_bytes()).unwrap();
    }

    pub fn get(&self, gpa: u64) -> u64 {
        let mut out = [0; 8];
        self.mem.read(gpa, &mut out).unwrap();
        u64::from_le_bytes(out)
    }

    /// A 64-bit gate of the IDT.
    pub fn gate64(&self, vector: u64, target: u64, selector: u16, dpl: u64, ist: u64, kind: u64) {
        let low = target & 0xffff
            | u64::from(selector) << 16
            | ist << 32
            | (0x80 | dpl << 5 | kind) << 40
            | (target >> 16 & 0xffff) << 48;
        self.put(IDT + 16 * vector, low);
        self.put(IDT + 16 * vector + 8, target >> 32);
    }

    /// A 32-bit gate of the IDT.
    pub fn gate32(&self, vector: u64, target: u64, selector: u16, dpl: u64, kind: u64) {
        let high = (target >> 16 & 0xffff) << 48;
        let low = target & 0xffff | u64::from(selector) << 16 | (0x80 | dpl << 5 | kind) << 40;
        self.put(IDT + 8 * vector, low | high);
    }

    pub fn ctx(&mut self) -> Ctx<'_> {
        Ctx::new(&mut self.cpu, &mut self.host)
    }

    /// Executes one instruction whose bytes are given; a fault leaves RIP where it was.
    pub fn step(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let bits = match self.cpu.mode.code {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let iced = Decoder::with_ip(bits, bytes, self.cpu.rip, DecoderOptions::NONE).decode();
        assert_eq!(iced.len(), bytes.len(), "{iced:?}");
        self.step_iced(&iced, bytes)
    }

    fn step_iced(&mut self, iced: &Instruction, bytes: &[u8]) -> Result<(), Stop> {
        let (start, code) = (self.cpu.rip, self.cpu.mode.code);
        let insn = select(iced, bytes, code, IsaFeatures::all(), &self.stubs);
        self.cpu.rip = start.wrapping_add(bytes.len() as u64) & self.cpu.mode.ip_mask();
        let before = self.cpu.save_state(0, 0);
        let result = (insn.handler)(&mut self.ctx(), &insn);
        if result == Err(Stop::Fault) {
            let mut after = self.cpu.save_state(0, 0);
            // IRET unmasks NMIs even if it faults.
            after.events.nmi_masked = before.events.nmi_masked;
            assert_eq!(after, before, "a fault has no effect: {iced:?}");
            self.cpu.rip = start;
        }
        result
    }

    /// Executes the instruction that `bytes` begin with, if they do.
    pub fn execute(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let bits = match self.cpu.mode.code {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let iced = Decoder::with_ip(bits, bytes, self.cpu.rip, DecoderOptions::NONE).decode();
        let len = iced.len().clamp(1, bytes.len());
        self.step_iced(&iced, &bytes[..len])
    }

    /// Executes an instruction that must fault.
    pub fn faults(&mut self, bytes: &[u8]) -> (u8, Option<u32>) {
        assert_eq!(self.step(bytes), Err(Stop::Fault), "{bytes:x?}");
        let Exception { vector, error, .. } = self.cpu.raised;
        (vector, error)
    }

    pub fn raise(&mut self, vector: u8, error: Option<u32>, payload: u64) -> Result<(), Stop> {
        self.cpu.raised = Exception { vector, error, payload };
        event::raise(&mut self.ctx())
    }

    /// The words from RSP up.
    pub fn stack<const N: usize>(&mut self, size: u64) -> [u64; N] {
        let sp = self.cpu.gpr[4];
        let mask = if size == 8 { !0 } else { (1 << (8 * size)) - 1 };
        std::array::from_fn(|n| self.get(sp + size * n as u64) & mask)
    }
}
