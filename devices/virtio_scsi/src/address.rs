//! Where a logical unit is (5.6.6.1; SAM-5, 4.7).

use serde::{Deserialize, Serialize};

/// The last target and the last unit of one that an adapter may have.
pub const TARGET_MAX: u8 = 31;
pub const LUN_MAX: u16 = 255;

/// A unit's target, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    pub target: u8,
    pub lun: u16,
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Unit(Address),
    /// The well-known logical unit that knows all others.
    ReportLuns,
    Nobody,
}

impl Address {
    /// As REPORT LUNS has it: peripheral addressing, and flat space above 255 (SAM-5, 4.7.7).
    pub(crate) fn lun_field(self) -> [u8; 2] {
        let flat = if self.lun > 0xff { 0x4000 } else { 0 };
        (flat | self.lun & 0x3fff).to_be_bytes()
    }

    /// As the field `lun` of events has it. The unit's number is as in REPORT LUNS: Linux compares the
    /// two without a look at the method of addressing.
    pub(crate) fn field(self) -> [u8; 8] {
        let [high, low] = self.lun_field();
        [1, self.target, high, low, 0, 0, 0, 0]
    }
}

impl Whom {
    pub(crate) fn parse(field: [u8; 8]) -> Self {
        match field {
            [1, target, high, low, 0, 0, 0, 0] => {
                // The method of addressing is in the upper two bits: peripheral or flat space.
                let lun = match high >> 6 {
                    0 if high == 0 => low.into(),
                    1 => u16::from_be_bytes([high & 0x3f, low]),
                    _ => return Self::Nobody,
                };
                Self::Unit(Address { target, lun })
            }
            [0xc1, 1, 0, 0, 0, 0, 0, 0] => Self::ReportLuns,
            _ => Self::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_name_units() {
        let unit = |target, lun| Whom::Unit(Address { target, lun });
        assert_eq!(Whom::parse([1, 3, 0, 7, 0, 0, 0, 0]), unit(3, 7));
        assert_eq!(Whom::parse([1, 3, 0x40, 7, 0, 0, 0, 0]), unit(3, 7));
        assert_eq!(Whom::parse([1, 3, 0x7f, 0xff, 0, 0, 0, 0]), unit(3, 0x3fff));
        assert_eq!(Whom::parse([0xc1, 1, 0, 0, 0, 0, 0, 0]), Whom::ReportLuns);
        for nobody in [
            [0; 8],
            [1, 0, 1, 0, 0, 0, 0, 0],
            [1, 0, 0x80, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 1],
        ] {
            assert_eq!(Whom::parse(nobody), Whom::Nobody);
        }
        let address = Address { target: 9, lun: 0x123 };
        assert_eq!(Whom::parse(address.field()), Whom::Unit(address));
        assert_eq!(Address { target: 2, lun: 5 }.field(), [1, 2, 0, 5, 0, 0, 0, 0]);
        assert_eq!(
            (address.lun_field(), Address { target: 0, lun: 5 }.lun_field()),
            ([0x41, 0x23], [0, 5])
        );
    }
}
