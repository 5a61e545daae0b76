//! A CD drive's ATA commands; what it is for comes in packets (ACS, 7.18).

use crate::{
    ata::give,
    drive::{Answer, Command, status},
    identify,
    transfer::{Fault, Transfer},
};
use scsi::{Cd, Outcome, Sense};

mod op {
    pub const NOP: u8 = 0x00;
    pub const DEVICE_RESET: u8 = 0x08;
    pub const PACKET: u8 = 0xa0;
    pub const IDENTIFY_PACKET: u8 = 0xa1;
    pub const STANDBY_NOW: u8 = 0xe0;
    pub const IDLE_NOW: u8 = 0xe1;
    pub const CHECK_POWER: u8 = 0xe5;
    pub const SET_FEATURES: u8 = 0xef;
}

/// PACKET's features: the data go by DMA.
const DMA: u16 = 1;
/// The count register after PACKET: the command is complete (ACS, 6.4).
const COMPLETE: u16 = 3;
/// Bytes that are moved at once: 32 blocks.
const CHUNK: usize = 64 << 10;

pub(crate) fn execute(cd: &Cd, command: &Command, data: &mut Transfer<'_>) -> Answer {
    match command.command {
        op::PACKET => packet(cd, command, data),
        op::IDENTIFY_PACKET => give(&identify::cd(), data),
        op::DEVICE_RESET => {
            cd.reset(Sense::POWER_ON);
            // The signature.
            Answer { status: 0, error: 1, count: 1, lba: 0xeb_1401, pio: false }
        }
        op::CHECK_POWER => Answer { count: 0xff, ..Answer::good() },
        op::SET_FEATURES | op::STANDBY_NOW | op::IDLE_NOW => Answer::good(),
        op::NOP => Answer::failed(status::ABORTED),
        // IDENTIFY DEVICE among them: by the signature hosts know what it is.
        _ => Answer { count: 1, lba: 0xeb_1401, ..Answer::failed(status::ABORTED) },
    }
}

fn packet(cd: &Cd, command: &Command, data: &mut Transfer<'_>) -> Answer {
    let outcome = match cd.command(&command.packet) {
        // The data's direction is the host's mistake.
        Outcome::Data(_) | Outcome::Read { .. } if command.to_drive => cd.refuse_field(),
        other => other,
    };
    let pio = command.features & DMA == 0;
    let complete = Answer { count: COMPLETE, ..Answer::good() };
    match outcome {
        Outcome::Good => complete,
        Outcome::Data(bytes) => match data.write(&bytes) {
            Ok(_) => Answer { pio: pio && !bytes.is_empty(), ..complete },
            Err(Fault) => Answer::failed(status::ABORTED),
        },
        Outcome::Read { at, len } => read(cd, at, len, data, Answer { pio, ..complete }),
        Outcome::Failed(why) => failed(why),
        // A drive that only reads has no other.
        _ => failed(Sense::NO_SUCH_COMMAND),
    }
}

/// The sense key is in the error register, the rest for REQUEST SENSE.
fn failed(why: Sense) -> Answer {
    Answer { count: COMPLETE, ..Answer::failed(why.key() << 4 | status::ABORTED) }
}

/// Inside the disc: the drive has checked.
fn read(cd: &Cd, at: u64, len: u64, data: &mut Transfer<'_>, complete: Answer) -> Answer {
    let mut buffer = vec![0; CHUNK.min(len as usize)];
    for done in (0..len).step_by(CHUNK) {
        let here = (len - done).min(CHUNK as u64) as usize;
        let Some(piece) = buffer.get_mut(..here) else { break };
        if let Err(why) = cd.read(at + done, piece) {
            return failed(why);
        }
        match data.write(piece) {
            Ok(written) if written == here => {}
            // What the host has no room for is not transferred.
            Ok(_) => break,
            Err(Fault) => return Answer::failed(status::ABORTED),
        }
    }
    complete
}
