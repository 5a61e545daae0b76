//! One message instead of the pin (PCI, 6.8.1).

use crate::config::Capability;
use device::Msi;

pub(crate) const ID: u8 = 5;

/// Message control: on, and with 64 bits of address.
const ENABLE: u8 = 1;
const LONG: u8 = 1 << 7;

impl Capability {
    /// One message with 64 bits of address, which cannot be masked: the function sends it whenever its
    /// pin would rise, and when it [asks](crate::Requester::repeat).
    pub fn msi() -> Self {
        let mut body = vec![0; 12];
        body[0] = LONG;
        let mut writable = vec![ENABLE, 0, 0xfc];
        writable.extend([0xff; 9]);
        Self { id: ID, body, writable, window: false }
    }
}

/// What a capability with its header says; nothing if it is off.
pub(crate) fn message(capability: &[u8]) -> Option<Msi> {
    let (control, rest) = capability.get(2..)?.split_first()?;
    let (address, data) = rest.get(1..)?.split_first_chunk::<8>()?;
    let data = data.first_chunk::<2>()?;
    let message =
        Msi { address: u64::from_le_bytes(*address), data: u16::from_le_bytes(*data).into() };
    (control & ENABLE != 0).then_some(message)
}
