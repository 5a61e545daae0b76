use super::support::*;
use engine::{Cause, CpuView, Exit, Flow, Intercepts, Pending, Trap, VcpuHost};
use guest_mem::{Change, Memfd, Slot};
use iced_x86::code_asm::*;
use vcpu_state::{Exception, SegReg};
use x86_defs::exception;

/// A personality that answers SYSCALL and CPUID, and turns #UD into #GP.
#[derive(Default)]
struct Personality {
    seen: Vec<Cause>,
}

impl VcpuHost for Personality {
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
        1
    }

    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        self.seen.push(trap.cause);
        match trap.cause {
            Cause::Syscall => {
                let mut text = [0; 4];
                let at = cpu.regs().gpr[3];
                cpu.read_virt(at, &mut text).unwrap();
                cpu.write_virt(at + 4, &text).unwrap();
                assert!(cpu.read_virt(0x1f_fffe, &mut text).is_err(), "the end of RAM");
                assert_eq!(cpu.segment(SegReg::Cs).selector, 8);
                cpu.flush_tlb(!0, None);
                cpu.regs().gpr[0] = 77;
                cpu.regs().rip = trap.next;
            }
            Cause::Cpuid => {
                cpu.regs().gpr[2] = 99;
                cpu.regs().rip = trap.next;
                return Flow::Stop;
            }
            Cause::Asked => unreachable!("nobody asked"),
            Cause::Exception(_) => {
                let error = Some(0);
                cpu.deliver(Exception { vector: exception::GP, error, payload: 0 });
            }
        }
        Flow::Continue
    }
}

#[test]
fn a_personality_answers_what_it_asked_for() {
    let intercepts = Intercepts { exceptions: 1 << exception::UD, syscall: true, cpuid: true };
    let vm = vm_with(intercepts);
    let code = assemble(64, CODE, |a| {
        a.mov(rbx, DATA)?;
        a.mov(dword_ptr(rbx), 0x1234_5678)?;
        a.syscall()?;
        a.mov(esi, eax)?;
        a.cpuid()?;
        a.ud2()
    });
    vm.memory().write(CODE, &code).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_state(&long_mode()).unwrap();
    let mut host = Personality::default();
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped);
    let state = vcpu.state().unwrap();
    assert_eq!((state.regs.gpr[6], state.regs.gpr[2]), (77, 99));
    let mut out = [0; 4];
    vm.memory().read(DATA + 4, &mut out).unwrap();
    assert_eq!(u32::from_le_bytes(out), 0x1234_5678);
    // #GP has no handler, nor has what follows from that.
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Shutdown);
    assert!(matches!(host.seen[..], [Cause::Syscall, Cause::Cpuid, Cause::Exception(_)]));
}

#[test]
fn a_layout_change_reaches_a_running_vcpu() {
    let vm = vm_with(Intercepts::default());
    // MOV AL, [RBX]; JMP back.
    vm.memory().write(CODE, &[0x8a, 0x03, 0x3c, 0x5a, 0x75, 0xfa, 0xf4]).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut state = long_mode();
    state.regs.gpr[3] = 0x19_0000;
    vcpu.set_state(&state).unwrap();
    let thread = std::thread::spawn(move || vcpu.run(&mut Host::default()).unwrap());
    let mem = Memfd::new(0x1000).unwrap();
    let low = vm.memory().layout().by_id(0).unwrap().slot.clone();
    let other = Slot { id: 5, gpa: 0x19_0000, mem, offset: 0, len: 0x1000, writable: true };
    let low = Slot { len: 0x19_0000, ..low };
    let changes = [Change::Unmap(0), Change::Map(low), Change::Map(other)];
    let generation = vm.set_layout(&changes).unwrap();
    vm.memory().write(0x19_0000, &[0x5a]).unwrap();
    assert_eq!(thread.join().unwrap(), Exit::Idle);
    assert!(vm.settled(generation));
}
