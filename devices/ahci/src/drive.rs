//! What is plugged into a port.

use crate::{
    Plug, ata, atapi,
    regs::Signature,
    state::{DriveState, QueueError},
    transfer::Transfer,
};
use disk::{Disk, Shape};
use scsi::{Cd, Sense};
use std::sync::Arc;

/// The command register FIS that the host sends (AHCI, 4.2.3.1; Serial ATA, 10.5.5).
pub(crate) struct Command {
    pub(crate) command: u8,
    pub(crate) features: u16,
    /// 48 bits.
    pub(crate) lba: u64,
    pub(crate) device: u8,
    pub(crate) count: u16,
    /// For PACKET.
    pub(crate) packet: [u8; 12],
    /// The command's data come from the host's memory.
    pub(crate) to_drive: bool,
    /// What the drive's log says.
    pub(crate) queue_error: Option<QueueError>,
}

impl Command {
    /// Of the first 96 bytes of a command table.
    pub(crate) fn parse(table: &[u8; 96], to_drive: bool) -> Self {
        let fis = |at: usize| table.get(at).copied().unwrap_or(0);
        let lba = [fis(4), fis(5), fis(6), fis(8), fis(9), fis(10), 0, 0];
        let mut packet = [0; 12];
        packet.iter_mut().zip(table.iter().skip(64)).for_each(|(to, from)| *to = *from);
        Self {
            command: fis(2),
            features: u16::from_le_bytes([fis(3), fis(11)]),
            lba: u64::from_le_bytes(lba),
            device: fis(7),
            count: u16::from_le_bytes([fis(12), fis(13)]),
            packet,
            to_drive,
            queue_error: None,
        }
    }
}

/// Bits of the status and of the error register (ACS, 6.2, 6.3).
pub(crate) mod status {
    /// Ready, and the seek is done.
    pub const READY: u8 = 0x50;
    pub const ERROR: u8 = 0x01;
    pub const ABORTED: u8 = 0x04;
    pub const NO_SUCH_ADDRESS: u8 = 0x10;
    pub const UNCORRECTABLE: u8 = 0x40;
}

/// What a drive answers a command with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    pub(crate) error: u8,
    pub(crate) count: u16,
    pub(crate) lba: u64,
    /// The data went by the PIO protocol, to the host.
    pub(crate) pio: bool,
}

impl Answer {
    pub(crate) fn good() -> Self {
        Self { status: status::READY, error: 0, count: 0, lba: 0, pio: false }
    }

    pub(crate) fn failed(error: u8) -> Self {
        Self { status: status::READY | status::ERROR, error, ..Self::good() }
    }

    /// With data by PIO.
    pub(crate) fn pio() -> Self {
        Self { pio: true, ..Self::good() }
    }
}

pub(crate) enum Drive {
    Disk { disk: Arc<dyn Disk>, shape: Shape, serial: String },
    Cd(Cd),
}

impl Drive {
    pub(crate) fn new(plug: Plug) -> Self {
        match plug {
            Plug::Disk { disk, serial } => {
                let shape = disk.shape();
                Self::Disk { disk, shape, serial }
            }
            Plug::Cd(disc) => Self::Cd(Cd::new(disc, None)),
        }
    }

    pub(crate) fn signature(&self) -> Signature {
        match self {
            Self::Disk { .. } => Signature { sig: 0x0000_0101, tfd: 0x0150 },
            Self::Cd(_) => Signature { sig: 0xeb14_0101, tfd: 0x0110 },
        }
    }

    /// Executes a command; blocks until it is done.
    pub(crate) fn execute(&self, command: &Command, data: &mut Transfer<'_>) -> Answer {
        match self {
            Self::Disk { disk, shape, .. } if ata::is_queued(command) => {
                ata::execute_queued(&**disk, shape, command, data)
            }
            Self::Disk { disk, shape, serial } => {
                ata::execute(&**disk, shape, serial, command, data)
            }
            Self::Cd(cd) => atapi::execute(cd, command, data),
        }
    }

    /// Which of the drive's queue the command is; none if it is not queued.
    pub(crate) fn tag(&self, command: &Command) -> Option<u8> {
        match self {
            Self::Disk { .. } => ata::is_queued(command).then(|| ata::tag(command)),
            Self::Cd(_) => None,
        }
    }

    pub(crate) fn reset(&self) {
        if let Self::Cd(cd) = self {
            cd.reset(Sense::POWER_ON);
        }
    }

    pub(crate) fn save(&self) -> DriveState {
        match self {
            Self::Disk { .. } => DriveState::default(),
            Self::Cd(cd) => cd.state(),
        }
    }

    pub(crate) fn restore(&self, state: &DriveState) {
        if let Self::Cd(cd) = self {
            cd.set_state(*state);
        }
    }
}
