//! A disk's commands (ACS, chapter 7).

use crate::{
    drive::{Answer, Command, status},
    identify,
    transfer::{Fault, Transfer},
};
use disk::{Disk, Shape};

mod op {
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const READ_SECTORS: u8 = 0x20;
    pub const READ_SECTORS_EXT: u8 = 0x24;
    pub const READ_DMA_EXT: u8 = 0x25;
    pub const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const READ_LOG_EXT: u8 = 0x2f;
    pub const WRITE_SECTORS: u8 = 0x30;
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    pub const WRITE_DMA_EXT: u8 = 0x35;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const VERIFY: u8 = 0x40;
    pub const VERIFY_EXT: u8 = 0x42;
    pub const READ_QUEUED: u8 = 0x60;
    pub const WRITE_QUEUED: u8 = 0x61;
    pub const DIAGNOSE: u8 = 0x90;
    pub const READ_MULTIPLE: u8 = 0xc4;
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    pub const SET_MULTIPLE: u8 = 0xc6;
    pub const READ_DMA: u8 = 0xc8;
    pub const WRITE_DMA: u8 = 0xca;
    pub const STANDBY_NOW: u8 = 0xe0;
    pub const IDLE_NOW: u8 = 0xe1;
    pub const STANDBY: u8 = 0xe2;
    pub const IDLE: u8 = 0xe3;
    pub const CHECK_POWER: u8 = 0xe5;
    pub const FLUSH: u8 = 0xe7;
    pub const FLUSH_EXT: u8 = 0xea;
    pub const IDENTIFY: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
    pub const READ_NATIVE_MAX: u8 = 0xf8;
}

/// CHECK POWER MODE: active.
const ACTIVE: u16 = 0xff;
/// DATA SET MANAGEMENT: discard.
const TRIM: u16 = 1;
/// Blocks of 512 bytes with ranges to discard, at most.
pub(crate) const TRIM_BLOCKS: u16 = 8;
/// Features that can be switched without effect here: write cache, read look-ahead, transfer mode,
/// power management (ACS, 7.45).
const FEATURES: [u16; 8] = [0x02, 0x03, 0x05, 0x10, 0x55, 0x82, 0x85, 0xaa];
const ADDRESS_IS_LBA: u8 = 0x40;
/// Bytes that are moved at once.
const CHUNK: usize = 128 << 10;

/// Logs: which there are, and what became of a queued command (ACS, 9.1).
const DIRECTORY: u64 = 0x00;
const QUEUE_ERROR: u64 = 0x10;
/// Bytes of a page of a log.
const LOG_PAGE: usize = 512;
/// In a queued command's device register: it is on the medium when it is reported.
const FORCE_UNIT_ACCESS: u8 = 1 << 7;

/// Sectors that a command is about.
struct Range {
    first: u64,
    count: u64,
}

fn range(command: &Command, extended: bool) -> Option<Range> {
    if command.device & ADDRESS_IS_LBA == 0 {
        return None;
    }
    Some(if extended {
        let count = if command.count == 0 { 1 << 16 } else { command.count.into() };
        Range { first: command.lba, count }
    } else {
        let first = command.lba & 0xff_ffff | u64::from(command.device & 0xf) << 24;
        let count = if command.count & 0xff == 0 { 256 } else { command.count & 0xff };
        Range { first, count: count.into() }
    })
}

/// READ or WRITE FPDMA QUEUED (ACS, 7.26 and 7.69).
pub(crate) fn is_queued(command: &Command) -> bool {
    matches!(command.command, op::READ_QUEUED | op::WRITE_QUEUED)
}

/// Which of the queue a command is.
pub(crate) fn tag(command: &Command) -> u8 {
    (command.count >> 3 & 31) as u8
}

/// A command of the queue.
pub(crate) fn execute_queued(
    disk: &dyn Disk,
    shape: &Shape,
    command: &Command,
    data: &mut Transfer<'_>,
) -> Answer {
    // As in others of 48 bits; what is the count elsewhere has the tag.
    let range = range(&Command { count: command.features, ..*command }, true);
    if command.command == op::READ_QUEUED {
        return read(disk, shape, range, data, false);
    }
    let answer = write(disk, shape, range, data);
    let forced = command.device & FORCE_UNIT_ACCESS != 0;
    if forced && answer == Answer::good() && disk.flush().is_err() {
        return Answer::failed(status::ABORTED);
    }
    answer
}

/// READ LOG EXT (ACS, 7.24): one page of what there is.
fn log(command: &Command, data: &mut Transfer<'_>) -> Answer {
    let (log, page) = (command.lba & 0xff, command.lba >> 8 & 0xff);
    let mut bytes = [0u8; LOG_PAGE];
    match (log, page, command.count, command.queue_error) {
        (DIRECTORY, 0, 1, _) => {
            // Version 1; one page of the other.
            (bytes[0], bytes[2 * QUEUE_ERROR as usize]) = (1, 1);
        }
        // The last one that failed was no queued command.
        (QUEUE_ERROR, 0, 1, None) => bytes[0] = 1 << 7,
        (QUEUE_ERROR, 0, 1, Some(error)) => {
            let [a, b, c, d, e, f, ..] = error.lba.to_le_bytes();
            let [n, m] = error.count.to_le_bytes();
            let page = [error.tag, 0, error.status, error.error, a, b, c, error.device, d, e, f];
            bytes.iter_mut().zip(page).for_each(|(to, from)| *to = from);
            [bytes[12], bytes[13]] = [n, m];
        }
        _ => return Answer::failed(status::ABORTED),
    }
    if log == QUEUE_ERROR {
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[LOG_PAGE - 1] = sum.wrapping_neg();
    }
    give(&bytes, data)
}

pub(crate) fn execute(
    disk: &dyn Disk,
    shape: &Shape,
    serial: &str,
    command: &Command,
    data: &mut Transfer<'_>,
) -> Answer {
    match command.command {
        op::IDENTIFY => give(&identify::disk(shape, serial), data),
        op::READ_SECTORS | op::READ_MULTIPLE | op::READ_DMA => {
            read(disk, shape, range(command, false), data, command.command != op::READ_DMA)
        }
        op::READ_SECTORS_EXT | op::READ_MULTIPLE_EXT | op::READ_DMA_EXT => {
            let pio = command.command != op::READ_DMA_EXT;
            read(disk, shape, range(command, true), data, pio)
        }
        op::WRITE_SECTORS | op::WRITE_MULTIPLE | op::WRITE_DMA => {
            write(disk, shape, range(command, false), data)
        }
        op::WRITE_SECTORS_EXT | op::WRITE_MULTIPLE_EXT | op::WRITE_DMA_EXT => {
            write(disk, shape, range(command, true), data)
        }
        op::VERIFY => verify(shape, range(command, false)),
        op::VERIFY_EXT => verify(shape, range(command, true)),
        op::FLUSH | op::FLUSH_EXT => match disk.flush() {
            Ok(()) => Answer::good(),
            Err(_) => Answer::failed(status::ABORTED),
        },
        op::DATA_SET_MANAGEMENT if shape.discard && command.features == TRIM => {
            trim(disk, shape, command.count, data)
        }
        op::SET_FEATURES if FEATURES.contains(&(command.features & 0xff)) => Answer::good(),
        op::CHECK_POWER => Answer { count: ACTIVE, ..Answer::good() },
        op::READ_NATIVE_MAX | op::READ_NATIVE_MAX_EXT => {
            let last = sectors(shape).saturating_sub(1);
            Answer { lba: last, ..Answer::good() }
        }
        op::READ_LOG_EXT => log(command, data),
        op::DIAGNOSE => Answer { error: 1, ..Answer::good() },
        op::SET_MULTIPLE | op::STANDBY_NOW | op::IDLE_NOW | op::STANDBY | op::IDLE => {
            Answer::good()
        }
        _ => Answer::failed(status::ABORTED),
    }
}

/// Sectors of the disk.
pub(crate) fn sectors(shape: &Shape) -> u64 {
    shape.bytes / u64::from(shape.logical_block.max(1))
}

/// Data that the drive itself has.
pub(crate) fn give(bytes: &[u8], data: &mut Transfer<'_>) -> Answer {
    match data.write(bytes) {
        Ok(_) => Answer::pio(),
        Err(Fault) => Answer::failed(status::ABORTED),
    }
}

/// Where the sectors are in bytes, if they are all there.
fn place(shape: &Shape, range: Option<Range>) -> Result<(u64, u64), Answer> {
    let Range { first, count } = range.ok_or(Answer::failed(status::ABORTED))?;
    let end = first.checked_add(count).filter(|end| *end <= sectors(shape));
    let block = u64::from(shape.logical_block);
    match end {
        Some(_) => Ok((first * block, count * block)),
        None => Err(Answer::failed(status::NO_SUCH_ADDRESS)),
    }
}

/// Each piece of a range: its offset and length.
fn pieces(at: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let starts = (0..len).step_by(CHUNK);
    starts.map(move |done| (at + done, (len - done).min(CHUNK as u64) as usize))
}

fn read(
    disk: &dyn Disk,
    shape: &Shape,
    range: Option<Range>,
    data: &mut Transfer<'_>,
    pio: bool,
) -> Answer {
    let (at, len) = match place(shape, range) {
        Ok(place) => place,
        Err(answer) => return answer,
    };
    let mut buffer = vec![0; CHUNK.min(len as usize)];
    for (at, len) in pieces(at, len) {
        let Some(piece) = buffer.get_mut(..len) else { break };
        if disk.read(at, piece).is_err() {
            return Answer::failed(status::UNCORRECTABLE);
        }
        match data.write(piece) {
            Ok(written) if written == len => {}
            // The host's regions have no room for the rest.
            _ => return Answer::failed(status::ABORTED),
        }
    }
    Answer { pio, ..Answer::good() }
}

fn write(disk: &dyn Disk, shape: &Shape, range: Option<Range>, data: &mut Transfer<'_>) -> Answer {
    let (at, len) = match place(shape, range) {
        Ok(place) => place,
        Err(answer) => return answer,
    };
    if shape.read_only {
        return Answer::failed(status::ABORTED);
    }
    let mut buffer = vec![0; CHUNK.min(len as usize)];
    for (at, len) in pieces(at, len) {
        let Some(piece) = buffer.get_mut(..len) else { break };
        if data.read(piece).is_err() || disk.write(at, piece).is_err() {
            return Answer::failed(status::ABORTED);
        }
    }
    Answer::good()
}

fn verify(shape: &Shape, range: Option<Range>) -> Answer {
    place(shape, range).map_or_else(|answer| answer, |_| Answer::good())
}

/// Ranges of eight bytes: 48 bits of address, 16 of length (ACS, 7.5).
fn trim(disk: &dyn Disk, shape: &Shape, blocks: u16, data: &mut Transfer<'_>) -> Answer {
    if blocks == 0 || blocks > TRIM_BLOCKS {
        return Answer::failed(status::ABORTED);
    }
    let mut list = vec![0; usize::from(blocks) * 512];
    if data.read(&mut list).is_err() {
        return Answer::failed(status::ABORTED);
    }
    for entry in list.chunks_exact(8) {
        let entry = entry.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (first, count) = (entry & 0xffff_ffff_ffff, entry >> 48);
        if count == 0 {
            continue;
        }
        let done = place(shape, Some(Range { first, count }))
            .is_ok_and(|(at, len)| !shape.read_only && disk.discard(at, len).is_ok());
        if !done {
            return Answer::failed(status::ABORTED);
        }
    }
    Answer::good()
}
