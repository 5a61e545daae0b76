//! Instructions a second of a few loops, the best of many short runs: for whoever changes the
//! interpreter.

use engine::{Engine, Exit, Flow, Pending, VcpuHost, VmConfig};
use engine_translate::Translate;
use guest_mem::{Change, Memfd, Slot};
use iced_x86::{IcedError, code_asm::*};
use std::time::Instant;
use vcpu_state::{SegReg, Segment, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer},
    paging,
};

const CODE: u64 = 0x10_0000;
const TABLES: u64 = 0x8_0000;
const RAM: u64 = 0x80_0000;

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

fn state() -> VcpuState {
    let mut state = VcpuState::reset(0);
    let data = Segment { selector: 0x10, base: 0, limit: !0, attr: 0xc093 };
    state.segments.reg[..6].fill(data);
    *state.segment_mut(SegReg::Cs) = Segment { selector: 8, attr: 0xa09b, ..data };
    state.control.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
    state.control.cr3 = TABLES;
    state.control.cr4 = cr4::PAE;
    state.control.efer = efer::LME | efer::LMA;
    state.regs.rip = CODE;
    state.regs.gpr[4] = 0x7_0000;
    state
}

fn alu(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(rax, rcx)?;
    a.xor(edx, eax)?;
    a.lea(rsi, qword_ptr(rax + rdx * 4 + 8))?;
    a.shr(rsi, 3)?;
    a.inc(ecx)?;
    a.test(ecx, ecx)?;
    a.jnz(again)?;
    a.jmp(again)
}

fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut f = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(rbx + 8))?;
    a.add(qword_ptr(rbx + 16), rax)?;
    a.movzx(ecx, byte_ptr(rbx + 3))?;
    a.call(f)?;
    a.cmp(dword_ptr(rbx), 5)?;
    a.je(again)?;
    a.jmp(again)?;
    a.set_label(&mut f)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.mov(qword_ptr(rbp - 16), rdi)?;
    a.pop(rbp)?;
    a.ret()
}

/// Functions on many pages, called one after another: neither host nor decode cache is warm.
fn spread(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    let mut labels: Vec<_> = (0..800).map(|_| a.create_label()).collect();
    for label in &labels {
        a.call(*label)?;
    }
    a.jmp(again)?;
    for label in &mut labels {
        a.set_label(label)?;
        a.push(rbx)?;
        a.mov(rax, qword_ptr(rdi + 24))?;
        a.test(rax, rax)?;
        let mut skip = a.create_label();
        a.je(skip)?;
        a.add(eax, 5)?;
        a.set_label(&mut skip)?;
        a.mov(dword_ptr(rdi + 32), eax)?;
        a.and(ecx, 0xff)?;
        a.lea(rdx, qword_ptr(rcx + rax))?;
        a.pop(rbx)?;
        a.ret()?;
        for _ in 0..30 {
            a.nop()?;
        }
    }
    Ok(())
}

fn main() {
    let engine = Translate::new().expect("engine");
    type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    for (name, body) in [("alu", alu as Body), ("memory", memory), ("spread", spread)] {
        let config = VmConfig { counted: true, memory: RAM, ..VmConfig::default() };
        let vm = engine.create_vm(&config).expect("VM");
        let mem = Memfd::new(RAM).expect("memory");
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
        vm.set_layout(&[Change::Map(slot)]).expect("layout");
        let put = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).expect("RAM");
        let flags = paging::P | paging::RW;
        put(TABLES, (TABLES + 0x1000) | flags);
        put(TABLES + 0x1000, (TABLES + 0x2000) | flags);
        for n in 0..4 {
            put(TABLES + 0x2000 + 8 * n, (n << 21) | paging::PS | flags);
        }
        let mut asm = CodeAssembler::new(64).expect("assembler");
        body(&mut asm).expect("code");
        vm.memory().write(CODE, &asm.assemble(CODE).expect("code")).expect("RAM");
        let mut vcpu = vm.create_vcpu(0).expect("vCPU");
        let mut state = state();
        (state.regs.gpr[3], state.regs.gpr[7]) = (0x6_0000, 0x6_1000);
        vcpu.set_state(&state).expect("state");
        let count = 1_000_000;
        let best = (0..60)
            .map(|_| {
                let start = Instant::now();
                let exit = vcpu.run_for(count, &mut Nothing).expect("run");
                assert_eq!(exit, Exit::Retired);
                start.elapsed()
            })
            .min()
            .expect("runs");
        println!("{name:8} {:6.1} million a second", count as f64 / best.as_secs_f64() / 1e6);
    }
}
