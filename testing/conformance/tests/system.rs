//! System instructions and structures beyond the everyday ones, and what only some engines
//! offer: intercepts, INIT and SIPI from the machine.

use conformance::*;
use engine::{Exit, Flow, Intercepts, Pending, VmConfig};
use vcpu_state::{MpState, SegReg, VcpuState};
use x86_defs::{
    cr::{cr0, cr4},
    exception, gpr, rflags,
};

/// `mov cr4, rax` and `mov cr0, rax` with values that cannot be raise #GP(0).
#[test]
fn impossible_control_registers_fault() {
    each_engine(|e| {
        if e.skips(Lacks::Other("reserved bits of control registers")) {
            return;
        }
        let to_cr4: &[u8] = &[0x0f, 0x22, 0xe0];
        let to_cr0: &[u8] = &[0x0f, 0x22, 0xc0];
        let to_cr3: &[u8] = &[0x0f, 0x22, 0xd8];
        let now = Mode::Long.state().control;
        let cases = [
            (to_cr4, now.cr4 & !cr4::PAE), // in long mode
            (to_cr4, now.cr4 | 1 << 31),   // reserved
            (to_cr4, now.cr4 | 1 << 63),   // reserved
            (to_cr0, now.cr0 & !cr0::PE),  // paging without protection
            (to_cr0, now.cr0 | cr0::NW),   // not write-through without cache disable
            (to_cr0, now.cr0 | 1 << 40),   // reserved
            (to_cr3, now.cr3 | 1 << 55),   // beyond the physical address
        ];
        for (code, value) in cases {
            let mut g = Guest::new(e, Mode::Long, code);
            g.set(|s| s.regs.gpr[gpr::RAX] = value);
            let (vector, error, state) = g.fault();
            let case = format!("{code:x?} {value:#x}");
            assert_eq!((vector, error), (exception::GP, Some(0)), "{case}");
            assert_eq!(g.return_address(error, &state), CODE, "{case}");
            assert_eq!((state.control.cr0, state.control.cr4), (now.cr0, now.cr4), "{case}");
        }
    });
}

#[test]
fn a_move_to_ss_blocks_interrupts_for_one_instruction() {
    each_engine(|e| {
        if e.skips(Lacks::Other("the shadow of MOV SS")) {
            return;
        }
        // mov ax, ss; sti; mov ss, ax; out 1, al; out 2, al: STI covers MOV SS, MOV SS the OUT
        let mut g = Guest::new(e, Mode::Long, &[0x8c, 0xd0, 0xfb, 0x8e, 0xd0, 0xe6, 1, 0xe6, 2]);
        g.bus.raise(Pending::Interrupt, 0x20);
        g.finish();
        let out = |port| Event::Out(port, vec![Mode::DATA as u8]);
        assert_eq!(g.bus.log, [out(1), Event::Vector(0x20), out(2), out(0xf4)]);
    });
}

#[test]
fn a_second_nmi_waits_for_iret() {
    each_engine(|e| {
        // l: jmp l
        let mut g = Guest::new(e, Mode::Long, &[0xeb, 0xfe]);
        g.bus.raise(Pending::Nmi, 0);
        let line = g.bus.line.clone();
        let mut seen = 0;
        g.bus.hook = Some(Box::new(move |event| {
            if *event == Event::Vector(2) {
                seen += 1;
                // The second arrives in the handler of the first.
                *line.lock().unwrap() = Some((Pending::Nmi, 0));
            }
            if seen == 2 { Flow::Stop } else { Flow::Continue }
        }));
        assert_eq!(g.run(), Exit::Stopped);
        let rsp = g.state().regs.gpr[gpr::RSP];
        let return_to = g.read_u64(rsp);
        assert_eq!(return_to, CODE, "from the loop, not from the first handler");
    });
}

#[test]
fn vector_and_floating_point_registers_compute() {
    each_engine(|e| {
        if e.skips(Lacks::FloatingPoint) {
            return;
        }
        // movups xmm0, [0x4000]; addps xmm0, xmm0; movups [0x4010], xmm0;
        // fld1; fldpi; fmulp; fstp qword [0x4020]
        let code = [
            0x0f, 0x10, 0x04, 0x25, 0, 0x40, 0, 0, 0x0f, 0x58, 0xc0, 0x0f, 0x11, 0x04, 0x25, 0x10,
            0x40, 0, 0, 0xd9, 0xe8, 0xd9, 0xeb, 0xde, 0xc9, 0xdd, 0x1c, 0x25, 0x20, 0x40, 0, 0,
        ];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.set(|s| s.fpu = vcpu_state::FpuState::init());
        let floats = [1.5f32, -2.25, 1e10, 0.1];
        g.write(DATA, &floats.map(f32::to_le_bytes).concat());
        let end = g.finish();
        let doubled: [u8; 16] = g.read(DATA + 0x10);
        assert_eq!(doubled.to_vec(), floats.map(|f| (f + f).to_le_bytes()).concat());
        assert_eq!(f64::from_bits(g.read_u64(DATA + 0x20)), std::f64::consts::PI);
        assert_eq!(end.fpu.xmm(0).to_le_bytes(), doubled);
    });
}

#[test]
fn avx_registers_compute_where_the_cpu_has_them() {
    each_engine(|e| {
        if !e.cpuid().has_named("avx2") {
            println!("skipped: no AVX2 on {}", e.name());
            return;
        }
        // vmovdqu ymm1, [0x4000]; vpaddd ymm2, ymm1, ymm1; vmovdqu [0x4020], ymm2; vzeroupper
        let code = [
            0xc5, 0xfe, 0x6f, 0x0c, 0x25, 0, 0x40, 0, 0, 0xc5, 0xf5, 0xfe, 0xd1, 0xc5, 0xfe, 0x7f,
            0x14, 0x25, 0x20, 0x40, 0, 0, 0xc5, 0xf8, 0x77,
        ];
        let mut g = Guest::new(e, Mode::Long, &code);
        g.set(|s| {
            s.control.cr4 |= cr4::OSXSAVE;
            s.control.xcr0 = 7;
        });
        let words: Vec<u8> = (1..9u32).flat_map(u32::to_le_bytes).collect();
        g.write(DATA, &words);
        let end = g.finish();
        let want: Vec<u8> = (1..9u32).flat_map(|w| (2 * w).to_le_bytes()).collect();
        assert_eq!(g.read::<32>(DATA + 0x20).to_vec(), want);
        assert_eq!(end.fpu.ymm_hi(2), 0, "VZEROUPPER");
        assert_ne!(end.fpu.xmm(2), 0);
    });
}

#[test]
fn pcids_keep_address_spaces_apart() {
    each_engine(|e| {
        if !e.cpuid().has_named("pcid") {
            println!("skipped: no PCID on {}", e.name());
            return;
        }
        if e.skips(Lacks::Other("PCIDs")) {
            return;
        }
        // mov al, [0x4000]; out 1, al; mov rbx, 0xc001; mov cr3, rbx; mov al, [0x4000];
        // out 1, al; bts rcx=0x8002, 63 kept: mov cr3, rcx; mov al, [0x4000]; out 1, al
        let read = [0x8a, 0x04, 0x25, 0, 0x40, 0, 0, 0xe6, 1];
        let code = [&read[..], &[0x0f, 0x22, 0xdb], &read, &[0x0f, 0x22, 0xd9], &read].concat();
        let mut g = Guest::new(e, Mode::Long, &code);
        g.set(|s| {
            s.control.cr4 |= cr4::PCIDE;
            s.control.cr3 = 0x8000;
            s.regs.gpr[gpr::RBX] = 0xc001;
            s.regs.gpr[gpr::RCX] = 0x8000 | 1 << 63;
        });
        // A second tree at 0xc000 that maps 0x4000 elsewhere.
        let copy = |from: u64, to: u64| {
            let page: [u8; 4096] = g.read(from);
            g.write(to, &page);
        };
        copy(0x8000, 0xc000);
        copy(0x9000, 0xd000);
        copy(0xa000, 0xe000);
        copy(0xb000, 0xf000);
        g.write(0xc000, &0xd007u64.to_le_bytes());
        g.write(0xd000, &0xe007u64.to_le_bytes());
        g.write(0xe000, &0xf007u64.to_le_bytes());
        g.write(0xf000 + 4 * 8, &0x5007u64.to_le_bytes());
        g.write(0x4000, &[0x11]);
        g.write(0x5000, &[0x22]);
        g.finish();
        let out = |v| Event::Out(1, vec![v]);
        assert_eq!(g.bus.log[..3], [out(0x11), out(0x22), out(0x11)]);
    });
}

#[test]
fn virtual_8086_mode_runs_real_mode_code() {
    each_engine(|e| {
        if e.skips(Lacks::PagedProtectedMode) {
            return;
        }
        // mov ax, 0x400; mov ds, ax; mov al, [0]; out 1, al; and IOPL 3 lets CLI through
        let code = [0xb8, 0, 4, 0x8e, 0xd8, 0xa0, 0, 0, 0xe6, 1, 0xfa];
        let mut g = Guest::new(e, Mode::Paged, &code);
        g.write(DATA, &[0x5c]);
        g.set(|s| {
            s.regs.rflags |= rflags::VM | rflags::IOPL;
            for segment in &mut s.segments.reg[..6] {
                (segment.selector, segment.base) = (0, 0);
                (segment.limit, segment.attr) = (0xffff, 0xf3);
            }
            // An I/O bitmap of zeros behind the TSS: every port is permitted.
            s.segment_mut(SegReg::Tr).limit = 0x2067;
        });
        g.write(0x900 + 0x66, &0x68u16.to_le_bytes());
        g.write(0x900 + 0x68, &[0; 64]);
        g.finish();
        assert_eq!(g.bus.log[0], Event::Out(1, vec![0x5c]));
        assert_eq!(g.state().segment(SegReg::Ds).base, 0x4000);
    });
}

#[test]
fn a_call_gate_changes_rings_and_stacks() {
    each_engine(|e| {
        if e.skips(Lacks::Other("call gates")) {
            return;
        }
        // At ring 3: call far [0x4000], which names the gate at selector 0x48;
        // at ring 0 (0x3000): mov al, 0x77; out 1, al; retfq; then out 2, al
        let mut g = Guest::new(e, Mode::User, &[0xff, 0x1c, 0x25, 0, 0x40, 0, 0, 0xe6, 2]);
        g.write(DATA, &[0, 0, 0, 0, 0x48, 0]);
        g.write(0x3000, &[0xb0, 0x77, 0xe6, 1, 0x48, 0xcb]);
        let gate = 0x3000u64 | u64::from(Mode::CODE64) << 16 | 0xec00 << 32;
        g.write(0x800 + 0x48, &gate.to_le_bytes());
        g.write(0x800 + 0x50, &[0; 8]);
        g.set(|s| s.segments.gdtr.limit = 0x57);
        let end = g.finish();
        let out = |port| Event::Out(port, vec![0x77]);
        assert_eq!(g.bus.log, [out(1), out(2), out(0xf4)]);
        assert_eq!((end.cpl(), end.regs.gpr[gpr::RSP]), (3, STACK));
    });
}

#[test]
fn init_and_sipi_are_pulled_where_the_machine_has_the_apics() {
    each_engine(|e| {
        if e.caps().local_apic {
            println!("the engine has the APICs: see its own tests");
            return;
        }
        // mov al, 5; out 1, al
        let g = Guest::new(e, Mode::Real, &[0xb0, 5, 0xe6, 1]);
        let mut second = g.vm.create_vcpu(1).unwrap();
        let mut bus = Bus::default();
        assert_eq!(second.run(&mut bus).unwrap(), Exit::Idle);
        assert_eq!(second.state().unwrap().mp, MpState::WaitForSipi);
        bus.raise(Pending::Sipi, 0x01);
        assert_eq!(second.run(&mut bus).unwrap(), Exit::Stopped);
        assert_eq!(bus.take(), [Event::Out(1, vec![5]), Event::Out(0xf4, vec![5])]);
        bus.raise(Pending::Init, 0);
        assert_eq!(second.run(&mut bus).unwrap(), Exit::Idle);
        let state = second.state().unwrap();
        let reset = VcpuState::reset(1);
        assert_eq!((state.mp, state.regs.rip), (MpState::WaitForSipi, reset.regs.rip));
        assert!(bus.log.is_empty());
    });
}

#[test]
fn intercepts_come_to_the_machine_where_the_engine_has_them() {
    each_engine(|e| {
        let intercepts = Intercepts { syscall: true, cpuid: true, exceptions: 1 << exception::UD };
        let config = VmConfig { intercepts, ..VmConfig::default() };
        if !e.caps().intercepts.syscall {
            assert!(e.create_vm(&config).is_err());
            return;
        }
        // syscall; cpuid; ud2; out 1, al
        let code = [0x0f, 0x05, 0x0f, 0xa2, 0x0f, 0x0b, 0xe6, 1];
        let mut g = Guest::with(e, Mode::User, &code, config);
        let mut causes = Vec::new();
        let mut host = Trapping { bus: &mut g.bus, causes: &mut causes };
        assert_eq!(g.cpu.run(&mut host).unwrap(), Exit::Stopped);
        let ud = vcpu_state::Exception { vector: exception::UD, ..Default::default() };
        let want = [engine::Cause::Syscall, engine::Cause::Cpuid, engine::Cause::Exception(ud)];
        assert_eq!(causes, want);
        assert_eq!(g.bus.log[0], Event::Out(1, vec![3]));
    });
}

/// Skips every trapped instruction, and counts in AL.
struct Trapping<'a> {
    bus: &'a mut Bus,
    causes: &'a mut Vec<engine::Cause>,
}

impl engine::VcpuHost for Trapping<'_> {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        self.bus.pio_in(port, size, data)
    }
    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        self.bus.pio_out(port, size, data)
    }
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        self.bus.mmio_read(gpa, data)
    }
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.bus.mmio_write(gpa, data)
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
    fn trap(&mut self, trap: engine::Trap, cpu: &mut dyn engine::CpuView) -> Flow {
        self.causes.push(trap.cause);
        let mut code = [0; 2];
        let rip = cpu.regs().rip;
        cpu.read_virt(rip, &mut code).unwrap();
        assert_eq!(code[0], 0x0f, "at the trapped instruction");
        assert_eq!(cpu.root(), 0x8000);
        assert_eq!(cpu.write_virt(0x40_0000_0000, &[0]).unwrap_err().vector, exception::PF);
        cpu.regs().gpr[0] = self.causes.len() as u64;
        // UD2 has no follower that an exception could name.
        cpu.regs().rip = rip + 2;
        Flow::Continue
    }
}
