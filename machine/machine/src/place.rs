//! Where a device is that came while the machine runs.

use std::{fmt, str::FromStr};
use virtio_scsi::Address;
use xen_bus::Id;

/// A port of the board, a unit of its SCSI adapter, or a Xen domain's device; as text, `1`, `0:1` for
/// target and unit, or `vbd/51728`, the name of its folder in xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Port(usize),
    Unit(Address),
    Device(Id),
}

/// The kinds of a Xen domain's devices.
const KINDS: [&str; 2] = ["vbd", "vif"];

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Unit(Address { target, lun }) => write!(f, "{target}:{lun}"),
            Self::Device(id) => id.fmt(f),
        }
    }
}

/// The text is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give the number of a port, target and unit such as 0:1, or a name such as vbd/51728")]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        if let Some((kind, number)) = text.split_once('/') {
            let kind = KINDS.into_iter().find(|known| *known == kind).ok_or(NoPlace)?;
            let number = number.parse().map_err(|_| NoPlace)?;
            return Ok(Self::Device(Id { kind, number }));
        }
        match text.split_once(':') {
            Some((target, lun)) => target
                .parse()
                .ok()
                .zip(lun.parse().ok())
                .map(|(target, lun)| Self::Unit(Address { target, lun })),
            None => text.parse().ok().map(Self::Port),
        }
        .ok_or(NoPlace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_both_ways() {
        for text in ["0", "7", "0:1", "31:255", "vbd/51712", "vif/0"] {
            assert_eq!(text.parse::<Place>().map(|place| place.to_string()), Ok(text.into()));
        }
        assert_eq!("3:4".parse(), Ok(Place::Unit(Address { target: 3, lun: 4 })));
        for wrong in
            ["", "x", "-1", "1:", ":1", "256:0", "0:0:1", "0:65536", "vbd/", "vbd/x", "console/0"]
        {
            assert_eq!(wrong.parse::<Place>(), Err(NoPlace), "{wrong}");
        }
    }
}
