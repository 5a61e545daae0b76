//! Sense data (SPC-4, 4.5, annex D).

use serde::{Deserialize, Serialize};

/// Sense keys.
pub mod key {
    pub const NONE: u8 = 0;
    pub const NOT_READY: u8 = 2;
    pub const MEDIUM_ERROR: u8 = 3;
    pub const ILLEGAL_REQUEST: u8 = 5;
    pub const UNIT_ATTENTION: u8 = 6;
    pub const DATA_PROTECT: u8 = 7;
}

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense(pub u8, pub u8, pub u8);

impl Sense {
    pub const NONE: Self = Self(key::NONE, 0, 0);
    /// It was stopped by START STOP UNIT.
    pub const STOPPED: Self = Self(key::NOT_READY, 0x04, 0x02);
    pub const NO_DISC: Self = Self(key::NOT_READY, 0x3a, 0);
    pub const TRAY_OPEN: Self = Self(key::NOT_READY, 0x3a, 2);
    pub const WRITE_ERROR: Self = Self(key::MEDIUM_ERROR, 0x0c, 0);
    pub const READ_ERROR: Self = Self(key::MEDIUM_ERROR, 0x11, 0);
    pub const PARAMETER_LENGTH: Self = Self(key::ILLEGAL_REQUEST, 0x1a, 0);
    pub const NO_SUCH_COMMAND: Self = Self(key::ILLEGAL_REQUEST, 0x20, 0);
    pub const NO_SUCH_ADDRESS: Self = Self(key::ILLEGAL_REQUEST, 0x21, 0);
    pub const BAD_FIELD: Self = Self(key::ILLEGAL_REQUEST, 0x24, 0);
    pub const NO_SUCH_UNIT: Self = Self(key::ILLEGAL_REQUEST, 0x25, 0);
    pub const BAD_PARAMETER: Self = Self(key::ILLEGAL_REQUEST, 0x26, 0);
    pub const NOT_SAVED: Self = Self(key::ILLEGAL_REQUEST, 0x39, 0);
    pub const LOCKED: Self = Self(key::ILLEGAL_REQUEST, 0x53, 2);
    pub const DISC_CHANGED: Self = Self(key::UNIT_ATTENTION, 0x28, 0);
    pub const POWER_ON: Self = Self(key::UNIT_ATTENTION, 0x29, 0);
    /// LOGICAL UNIT RESET, as BUS DEVICE RESET FUNCTION OCCURRED.
    pub const UNIT_RESET: Self = Self(key::UNIT_ATTENTION, 0x29, 0x03);
    pub const NEXUS_LOSS: Self = Self(key::UNIT_ATTENTION, 0x29, 0x07);
    pub const WRITE_PROTECTED: Self = Self(key::DATA_PROTECT, 0x27, 0);

    pub fn key(self) -> u8 {
        self.0
    }

    /// Fixed format, current information (SPC-4, 4.5.3).
    pub fn fixed(self) -> [u8; 18] {
        let Self(key, code, qualifier) = self;
        [0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0]
    }
}
