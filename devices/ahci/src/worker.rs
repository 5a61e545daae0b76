//! The thread of a drive, and what a command is in the host's memory (AHCI, 4.2).

use crate::{
    Core,
    drive::{Answer, Command, Drive, status},
    regs::interrupt,
    transfer::Transfer,
};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
};

/// Bytes of a command header.
const HEADER: u64 = 32;
/// Where the regions' table is in a command's table.
const REGIONS: u64 = 0x80;
/// Offsets of what a port receives.
const PIO_SETUP: u64 = 0x20;
const REGISTER: u64 = 0x40;
/// Bits of the header's first number.
const WRITE: u32 = 1 << 6;
/// The register FIS carries a command, not a reset.
const IS_COMMAND: u8 = 0x80;
const HOST_TO_DEVICE: u8 = 0x27;
/// The control register's reset.
const SOFT_RESET: u8 = 4;

/// A command under way.
struct Job {
    slot: u8,
    generation: u64,
    list: u64,
    received: u64,
    receives: bool,
}

/// What came of it.
enum Done {
    Answered(Answer, u32),
    /// A soft reset: the port shows the drive's signature again when it ends.
    Reset {
        ends: bool,
    },
    /// There was no command.
    Malformed,
}

pub(crate) fn start(core: &Arc<Core>, port: usize) -> io::Result<JoinHandle<()>> {
    let core = core.clone();
    thread::Builder::new().name(format!("ahci.{port}")).spawn(move || {
        while let Some(job) = next(&core, port) {
            // A panic has been reported by the panic hook; the thread stays, and the driver hears
            // that the command failed.
            let work = AssertUnwindSafe(|| execute(&core, port, &job));
            let done = catch_unwind(work).unwrap_or(Done::Malformed);
            finish(&core, port, &job, done);
        }
    })
}

/// Waits for a command; none when it is time to end.
fn next(core: &Core, port: usize) -> Option<Job> {
    let mut hba = core.hba();
    loop {
        if hba.stop {
            return None;
        }
        let wanted = if hba.paused || !core.requester.is_master() {
            None
        } else {
            hba.ports.get(port).and_then(|port| port.next())
        };
        if let (Some(slot), Some(port)) = (wanted, hba.ports.get_mut(port)) {
            port.executing = Some(slot);
            return Some(Job {
                slot,
                generation: port.generation,
                list: port.regs.clb,
                received: port.regs.fb,
                receives: port.receives(),
            });
        }
        hba = core.changed.wait(hba).unwrap_or_else(PoisonError::into_inner);
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.iter().skip(at).take(len).rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn execute(core: &Core, port: usize, job: &Job) -> Done {
    let mut header = [0; HEADER as usize];
    let at = job.list.saturating_add(HEADER * u64::from(job.slot));
    let Some(drive) = core.drives.get(port) else { return Done::Malformed };
    if core.memory.read(at, &mut header).is_err() {
        return Done::Malformed;
    }
    let (first, table) = (number(&header, 0, 4) as u32, number(&header, 8, 8) & !0x7f);
    let mut start = [0; 96];
    if core.memory.read(table, &mut start).is_err() {
        return Done::Malformed;
    }
    match start {
        [HOST_TO_DEVICE, flags, ..] if flags & IS_COMMAND != 0 => {}
        [HOST_TO_DEVICE, ..] => {
            drive.reset();
            return Done::Reset { ends: start.get(15).is_some_and(|c| c & SOFT_RESET == 0) };
        }
        _ => return Done::Malformed,
    }
    let command = Command::parse(&start, first & WRITE != 0);
    let Some(regions) = table.checked_add(REGIONS) else { return Done::Malformed };
    let mut data = Transfer::new(&core.memory, regions, (first >> 16) as u16);
    let answer = run(core, drive, &command, &mut data);
    Done::Answered(answer, data.done)
}

fn run(core: &Core, drive: &Drive, command: &Command, data: &mut Transfer<'_>) -> Answer {
    let answer = drive.execute(command, data);
    core.commands.fetch_add(1, Relaxed);
    if answer.status & status::ERROR != 0 {
        core.failed.fetch_add(1, Relaxed);
    }
    answer
}

/// Tells the host, if it still waits for this command.
fn finish(core: &Core, port: usize, job: &Job, done: Done) {
    let mut hba = core.hba();
    let current = hba.ports.get_mut(port).filter(|port| port.generation == job.generation);
    let mut raised = 0;
    if let Some(port) = current {
        match done {
            Done::Answered(answer, moved) => {
                raised = report(core, job, &answer, moved);
                port.regs.tfd = u32::from(answer.error) << 8 | u32::from(answer.status);
                port.regs.failed = answer.status & status::ERROR != 0;
            }
            Done::Reset { ends } => {
                if ends {
                    port.answer();
                    let tfd = port.regs.tfd;
                    let answer = Answer {
                        status: tfd as u8,
                        error: 1,
                        count: 1,
                        lba: u64::from(port.regs.sig >> 8),
                        pio: false,
                    };
                    if job.receives {
                        drop(
                            core.memory
                                .write(job.received.saturating_add(REGISTER), &register(&answer)),
                        );
                    }
                }
            }
            Done::Malformed => {
                core.malformed.fetch_add(1, Relaxed);
                raised = interrupt::TASK_FILE_ERROR;
                port.regs.tfd =
                    u32::from(status::ABORTED) << 8 | u32::from(status::READY | status::ERROR);
                port.regs.failed = true;
            }
        }
        if !port.regs.failed {
            port.regs.ci &= !(1 << job.slot);
        }
    }
    if let Some(port) = hba.ports.get_mut(port) {
        port.executing = None;
    }
    hba.raise(port, raised);
    core.drive_pin(&hba);
    drop(hba);
    core.changed.notify_all();
}

/// Writes how much was moved, and the drive's answer; the interrupts that these cause. Memory
/// that is none swallows them.
fn report(core: &Core, job: &Job, answer: &Answer, moved: u32) -> u32 {
    let header = job.list.saturating_add(HEADER * u64::from(job.slot));
    drop(core.memory.write(header.saturating_add(4), &moved.to_le_bytes()));
    let mut raised = interrupt::REGISTER_FIS;
    if answer.status & status::ERROR != 0 {
        raised |= interrupt::TASK_FILE_ERROR;
    }
    if answer.pio {
        raised |= interrupt::PIO_SETUP;
    }
    if job.receives {
        if answer.pio {
            let at = job.received.saturating_add(PIO_SETUP);
            drop(core.memory.write(at, &pio_setup(answer, moved)));
        }
        drop(core.memory.write(job.received.saturating_add(REGISTER), &register(answer)));
    }
    raised
}

/// The register FIS from the drive (Serial ATA, 10.5.6).
fn register(answer: &Answer) -> [u8; 20] {
    let [l0, l1, l2, l3, l4, l5, ..] = answer.lba.to_le_bytes();
    let [c0, c1] = answer.count.to_le_bytes();
    let (status, error) = (answer.status, answer.error);
    [0x34, 0x40, status, error, l0, l1, l2, 0, l3, l4, l5, 0, c0, c1, 0, 0, 0, 0, 0, 0]
}

/// The PIO Setup FIS (Serial ATA, 10.5.11), to the host.
fn pio_setup(answer: &Answer, moved: u32) -> [u8; 20] {
    let [c0, c1] = answer.count.to_le_bytes();
    let [m0, m1, ..] = moved.to_le_bytes();
    let (busy, status, error) = (0x58, answer.status, answer.error);
    [0x5f, 0x60, busy, error, 0, 0, 0, 0, 0, 0, 0, 0, c0, c1, 0, status, m0, m1, 0, 0]
}
