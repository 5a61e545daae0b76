//! A vCPU that waits inside of a trap while another one changes the page tables.

use super::support::*;
use engine::{CpuView, Exit, Flow, Intercepts, Pending, Trap, VcpuHost};
use std::sync::mpsc::{Receiver, Sender, channel};
use x86_defs::paging::{P, RW};

/// An L2 table with pages of 2 MiB, of which only the first is RAM.
const L2: u64 = 0x8_2000;
/// Where an L1 table is put.
const L1: u64 = 0x5_0000;
/// What is read, and where it is after the change.
const BEFORE: u64 = 0x6_0000;
const AFTER: u64 = 0x6_1000;

/// What a vCPU's SYSCALL does.
enum Part {
    /// Reads before and after the other has been told, and writes.
    Waits(Sender<()>, Receiver<()>, Vec<u8>),
    /// Asks all vCPUs to forget.
    Flushes,
}

impl VcpuHost for Part {
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
        match self {
            Self::Waits(begun, done, seen) => {
                let mut byte = [0];
                cpu.read_virt(BEFORE, &mut byte).unwrap();
                seen.extend(byte);
                begun.send(()).unwrap();
                done.recv().unwrap();
                cpu.read_virt(BEFORE, &mut byte).unwrap();
                seen.extend(byte);
                cpu.write_virt(BEFORE + 1, &[0x77]).unwrap();
            }
            Self::Flushes => cpu.flush_tlb(!0, None),
        }
        cpu.regs().rip = trap.next;
        Flow::Stop
    }
}

#[test]
fn a_vcpu_in_a_trap_forgets_what_it_is_asked_to() {
    let vm = vm_with(Intercepts { exceptions: 0, syscall: true, cpuid: false });
    let memory = vm.memory().clone();
    memory.write(CODE, &assemble(64, CODE, |a| a.syscall())).unwrap();
    let entry = |frame: u64| (frame << 12 | P | RW).to_le_bytes();
    for frame in 0..512 {
        memory.write(L1 + frame * 8, &entry(frame)).unwrap();
    }
    memory.write(L2, &(L1 | P | RW).to_le_bytes()).unwrap();
    memory.write(BEFORE, &[1, 0]).unwrap();
    memory.write(AFTER, &[2, 0]).unwrap();
    let (begun, has_begun) = channel();
    let (done, is_done) = channel();
    let mut first = vm.create_vcpu(0).unwrap();
    let mut second = vm.create_vcpu(1).unwrap();
    first.set_state(&long_mode()).unwrap();
    second.set_state(&long_mode()).unwrap();
    let waits = std::thread::spawn(move || {
        let mut part = Part::Waits(begun, is_done, Vec::new());
        assert_eq!(first.run(&mut part).unwrap(), Exit::Stopped);
        let Part::Waits(.., seen) = part else { unreachable!("it is what it was") };
        seen
    });
    has_begun.recv().unwrap();
    memory.write(L1 + (BEFORE >> 12) * 8, &entry(AFTER >> 12)).unwrap();
    assert_eq!(second.run(&mut Part::Flushes).unwrap(), Exit::Stopped);
    done.send(()).unwrap();
    assert_eq!(waits.join().unwrap(), [1, 2]);
    let mut bytes = [0; 2];
    memory.read(BEFORE, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 0], "nothing is written there any more");
    memory.read(AFTER, &mut bytes).unwrap();
    assert_eq!(bytes, [2, 0x77]);
}
