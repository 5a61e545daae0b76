//! The micro-guest on a bare engine, with nothing of a machine but a serial port.

use conformance::*;
use engine::*;
use guest_mem::{Change, Memfd};
use std::sync::{Arc, Mutex};
use vcpu_state::{SegReg, VcpuState};
use x86_defs::gpr;

/// Where the page tables of the 64-bit protocol and boot_params are.
const TABLES: u64 = 0x1_0000;
const PARAMS: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const MEMORY: u64 = 4 << 20;

/// COM1, and ACPI's power-off.
#[derive(Default)]
struct Board {
    said: Arc<Mutex<String>>,
    off: bool,
}

impl VcpuHost for Board {
    fn pio_in(&mut self, port: u16, _: usize, data: &mut [u8]) -> Flow {
        // The transmitter is empty; everything else is not there.
        data.fill(if port == 0x3fd { 0x60 } else { 0xff });
        Flow::Continue
    }

    fn pio_out(&mut self, port: u16, _: usize, data: &[u8]) -> Flow {
        match port {
            0x3f8 => {
                let text = data.iter().map(|b| char::from(*b));
                self.said.lock().unwrap().extend(text);
            }
            0x604 => {
                self.off = true;
                return Flow::Stop;
            }
            _ => {}
        }
        Flow::Continue
    }

    fn mmio_read(&mut self, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
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

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

/// Copies the loadable segments and returns the entry.
fn load(vm: &dyn Vm, elf: &[u8]) -> u64 {
    let (table, entry_len, count) = (u64_at(elf, 32) as usize, u16_at(elf, 54), u16_at(elf, 56));
    for header in elf[table..].chunks(entry_len).take(count) {
        if header[0] == 1 {
            let (from, len) = (u64_at(header, 8) as usize, u64_at(header, 32) as usize);
            vm.memory().write(u64_at(header, 24), &elf[from..from + len]).unwrap();
        }
    }
    u64_at(elf, 24)
}

fn boot(e: &UnderTest, command_line: &str) -> (Exit, String, VcpuState) {
    let config = VmConfig { memory: MEMORY, cpuid: e.cpuid(), ..VmConfig::default() };
    let vm = e.create_vm(&config).unwrap();
    let ram = Memfd::new(MEMORY).unwrap();
    vm.set_layout(&[Change::Map(slot(0, 0, &ram))]).unwrap();
    let entry = load(&*vm, microguest::GUEST);
    let put = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).unwrap();
    put(TABLES, TABLES + 0x1003);
    for gib in 0..4 {
        put(TABLES + 0x1000 + gib * 8, TABLES + 0x2000 + gib * 0x1000 + 3);
    }
    (0..2048).for_each(|page| put(TABLES + 0x2000 + page * 8, page << 21 | 0x83));
    // One range of usable memory, and the command line.
    vm.memory().write(PARAMS + 0x1e8, &[1]).unwrap();
    put(PARAMS + 0x2d0, 0);
    put(PARAMS + 0x2d8, MEMORY);
    put(PARAMS + 0x2e0, 1);
    vm.memory().write(PARAMS + 0x228, &(COMMAND_LINE as u32).to_le_bytes()).unwrap();
    vm.memory().write(COMMAND_LINE, command_line.as_bytes()).unwrap();
    let mut cpu = vm.create_vcpu(0).unwrap();
    let mut state = Mode::Long.state();
    state.control.cr3 = TABLES;
    state.regs.rip = entry;
    state.regs.gpr[gpr::RSI] = PARAMS;
    state.segment_mut(SegReg::Cs).selector = Mode::CODE64;
    cpu.set_state(&state).unwrap();
    let mut board = Board::default();
    let kick = cpu.kicker();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let exit = std::thread::scope(|s| {
        s.spawn(move || {
            if is_done.recv_timeout(std::time::Duration::from_secs(60)).is_err() {
                kick.stop();
            }
        });
        let exit = cpu.run(&mut board).unwrap();
        drop(done);
        exit
    });
    let said = board.said.lock().unwrap().clone();
    (exit, said, cpu.state().unwrap())
}

#[test]
fn it_says_what_it_sees_and_powers_off() {
    each_engine(|e| {
        if e.skips(Lacks::FloatingPoint) {
            return;
        }
        let (exit, said, state) = boot(e, "console=ttyS0 run=echo hello there;memory;nonsense");
        assert_eq!(exit, Exit::Stopped, "{said} {:#x}", state.regs.rip);
        for text in [
            "Sarang micro-guest, booted by the 64-bit protocol\r\n",
            "memory:     4096 KiB\r\n",
            "> echo hello there\r\nhello there\r\n",
            "0x000000000000         4096 KiB usable\r\n",
            "nonsense: not a command; type help\r\n",
        ] {
            assert!(said.contains(text), "{text:?} is not in {said}");
        }
    });
}

#[test]
fn it_ends_by_a_triple_fault_if_told() {
    each_engine(|e| {
        if e.skips(Lacks::FloatingPoint) {
            return;
        }
        let (exit, said, _) = boot(e, "run=triple-fault");
        assert_eq!(exit, Exit::Shutdown, "{said}");
    });
}

#[test]
fn page_tables_of_noise_end_the_guest_and_nothing_else() {
    each_engine(|e| {
        if e.skips(Lacks::FloatingPoint) {
            return;
        }
        let (exit, said, _) = boot(e, "run=bad-tables");
        assert!(said.contains("bad-tables"), "{said}");
        assert!(matches!(exit, Exit::Shutdown | Exit::Unhandled(_)), "{exit:?}: {said}");
    });
}

#[test]
fn noise_to_every_port_is_survived() {
    each_engine(|e| {
        if e.skips(Lacks::Other("the speed for hundreds of thousands of exits")) {
            return;
        }
        if e.skips(Lacks::FloatingPoint) {
            return;
        }
        let (exit, said, _) = boot(e, "run=garbage-ports");
        assert_eq!(exit, Exit::Stopped);
        assert!(said.contains("garbage-ports done"), "{said}");
    });
}
