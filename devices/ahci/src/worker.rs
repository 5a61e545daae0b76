//! The thread of a drive, and what a command is in the host's memory (AHCI, 4.2).

use crate::{
    Core,
    drive::{Answer, Command, Drive, status},
    regs::interrupt,
    state::QueueError,
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
const SET_DEVICE_BITS: u64 = 0x58;
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
    /// A queued command.
    Queued(Answer, QueueError),
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
            port.regs.last = slot;
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
    let mut command = Command::parse(&start, first & WRITE != 0);
    let Some(regions) = table.checked_add(REGIONS) else { return Done::Malformed };
    let mut data = Transfer::new(&core.memory, regions, (first >> 16) as u16);
    let tag = drive.tag(&command);
    command.queue_error = begin(core, port, job, tag.is_some());
    let answer = run(core, drive, &command, &mut data);
    match tag {
        Some(tag) => Done::Queued(answer, queue_error(tag, &command, &answer)),
        None => Done::Answered(answer, data.done),
    }
}

/// The drive takes the command, and says so of a queued one; what its log has.
fn begin(core: &Core, port: usize, job: &Job, queued: bool) -> Option<QueueError> {
    let mut hba = core.hba();
    let port = hba.ports.get_mut(port).filter(|port| port.generation == job.generation)?;
    if queued {
        port.accept(job.slot);
        if job.receives {
            let at = job.received.saturating_add(REGISTER);
            drop(core.memory.write(at, &without_interrupt(register(&Answer::good()))));
        }
    }
    port.regs.queue_error
}

/// For the drive's log, if the command failed.
fn queue_error(tag: u8, command: &Command, answer: &Answer) -> QueueError {
    let Command { device, lba, count, .. } = *command;
    QueueError { tag, status: answer.status, error: answer.error, device, lba, count }
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
            Done::Queued(answer, what) => {
                let failed = answer.status & status::ERROR != 0;
                raised = report_queued(core, job, &answer, if failed { 0 } else { 1 << what.tag });
                let busy = port.regs.tfd & u32::from(!STATUS_BITS);
                port.regs.tfd = u32::from(answer.error) << 8
                    | busy & 0xff
                    | u32::from(answer.status & STATUS_BITS);
                port.regs.failed = failed;
                if failed {
                    port.regs.queue_error = Some(what);
                } else {
                    port.regs.sact &= !(1 << what.tag);
                }
            }
            Done::Reset { ends } => {
                port.regs.queue_error = None;
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
        if !port.regs.failed && !port.accepted {
            port.regs.ci &= !(1 << job.slot);
        }
    }
    if let Some(port) = hba.ports.get_mut(port) {
        (port.executing, port.accepted) = (None, false);
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

/// What the bits of the status that a queued command's end changes are.
const STATUS_BITS: u8 = 0x77;

/// The end of queued commands: Set Device Bits (Serial ATA, 10.5.7).
fn report_queued(core: &Core, job: &Job, answer: &Answer, done: u32) -> u32 {
    let mut fis = [0xa1, 0x40, answer.status & STATUS_BITS, answer.error, 0, 0, 0, 0];
    fis.iter_mut().skip(4).zip(done.to_le_bytes()).for_each(|(to, from)| *to = from);
    if job.receives {
        drop(core.memory.write(job.received.saturating_add(SET_DEVICE_BITS), &fis));
    }
    let failed = answer.status & status::ERROR != 0;
    interrupt::SET_DEVICE_BITS | if failed { interrupt::TASK_FILE_ERROR } else { 0 }
}

/// The same without its bit for an interrupt.
fn without_interrupt(mut fis: [u8; 20]) -> [u8; 20] {
    fis[1] &= !0x40;
    fis
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
