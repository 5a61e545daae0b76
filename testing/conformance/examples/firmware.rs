//! Runs firmware from its reset vector, interpreted and translated, and compares what it asks
//! of the machine, in order: there are no devices but a host bridge, a clock that ticks with
//! each look at it, and the port to which SeaBIOS writes its log.
//!
//! `firmware IMAGE [EVENTS]`, such as Debian's /usr/share/seabios/bios-256k.bin.

use conformance::{UnderTest, slot, translated};
use engine::*;
use guest_mem::{Change, Memfd};
use std::{error::Error, time::Instant};
use vcpu_state::VcpuState;

const MEMORY: u64 = 32 << 20;

#[derive(Default)]
struct Board {
    /// Port and value, with a bit for what was written.
    log: Vec<(u16, u64)>,
    most: usize,
    console: Vec<u8>,
    pci: u32,
    clock: u64,
    ticks: u8,
}

impl Board {
    fn note(&mut self, port: u16, value: u64) -> Flow {
        self.log.push((port, value));
        if self.log.len() < self.most { Flow::Continue } else { Flow::Stop }
    }

    fn read(&mut self, port: u16) -> u8 {
        let function = self.pci & 0xffff_ff00 == 0x8000_0000;
        match port {
            // Of the log's port, that it is there.
            0x402 => 0xe9,
            // The host bridge's vendor and device.
            0xcfc..=0xcff if function && self.pci & 0xfc == 0 => {
                [0x86, 0x80, 0x37, 0x12][usize::from(port & 3)]
            }
            0xcfc..=0xcff if function => 0,
            // Refresh and timer 2 of the PIT.
            0x61 | 0x40..=0x43 => {
                self.ticks = self.ticks.wrapping_add(1);
                if port == 0x61 { self.ticks << 4 & 0x30 } else { self.ticks }
            }
            // CMOS, and a keyboard controller that is not there.
            0x71 => 0,
            _ => 0xff,
        }
    }
}

impl VcpuHost for Board {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        for operand in data.chunks_mut(size) {
            for (n, byte) in operand.iter_mut().enumerate() {
                *byte = self.read(port + n as u16);
            }
        }
        self.note(port, 0)
    }

    fn pio_out(&mut self, port: u16, _: usize, data: &[u8]) -> Flow {
        let value = data.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        if port == 0x402 {
            self.console.extend(data);
        }
        if port == 0xcf8 {
            self.pci = value as u32;
        }
        self.note(port, 1 << 63 | value)
    }

    fn mmio_read(&mut self, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        self.note(1, 0)
    }

    fn mmio_write(&mut self, gpa: u64, _: &[u8]) -> Flow {
        self.note(2, gpa)
    }

    fn pending(&self) -> Option<Pending> {
        None
    }

    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }

    fn tsc(&mut self) -> u64 {
        self.clock += 10_000;
        self.clock
    }
}

fn run(
    engine: &UnderTest,
    image: &[u8],
    most: usize,
) -> Result<(Board, VcpuState), Box<dyn Error>> {
    let memory = 2 * MEMORY;
    let config = VmConfig { memory, cpuid: engine.cpuid(), ..VmConfig::default() };
    let vm = engine.create_vm(&config)?;
    let (ram, rom) = (Memfd::new(MEMORY)?, Memfd::new(image.len() as u64)?);
    let top = (1 << 32) - image.len() as u64;
    vm.set_layout(&[Change::Map(slot(0, 0, &ram)), Change::Map(slot(1, top, &rom))])?;
    vm.memory().write(top, image)?;
    let low = image.len().min(0x2_0000);
    vm.memory().write(0x10_0000 - low as u64, &image[image.len() - low..])?;
    let mut cpu = vm.create_vcpu(0)?;
    cpu.set_state(&VcpuState::reset(0))?;
    let mut board = Board { most, ..Board::default() };
    let since = Instant::now();
    let exit = cpu.run(&mut board)?;
    println!("# {:?} after {} events, {:.1?}", exit, board.log.len(), since.elapsed());
    println!("{:?}", cpu.stats());
    let state = cpu.state()?;
    Ok((board, state))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let image = std::fs::read(args.next().ok_or("firmware IMAGE [EVENTS]")?)?;
    let most = args.next().map_or(Ok(100_000), |n| n.parse())?;
    let mut seen: Option<(Board, VcpuState)> = None;
    for hot in [u32::MAX, 0, 64] {
        let (board, state) = run(&translated(hot)?, &image, most)?;
        match &seen {
            None => println!("{}", String::from_utf8_lossy(&board.console)),
            Some((first, end)) => {
                let differ = first.log.iter().zip(&board.log).position(|(a, b)| a != b);
                let same = first.log.len() == board.log.len() && differ.is_none();
                println!("# events the same: {same} {differ:?}; state: {}", *end == state);
            }
        }
        seen.get_or_insert((board, state));
    }
    Ok(())
}
