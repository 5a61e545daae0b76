//! MAC addresses.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An Ethernet address, IEEE 802-2014 section 8.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group of stations.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether one station may have it.
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }

    /// A locally administered address that depends on `identity` and on nothing else: the same
    /// VM gets the same address at each start.
    pub fn derived(identity: &[u8], index: u32) -> Self {
        // FNV-1a: the address is to be spread, not to be secret.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in identity.iter().copied().chain(index.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let [a, b, c, d, e, ..] = (hash ^ (hash >> 40)).to_le_bytes();
        Self([0x52, a, b, c, d, e])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is no MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAMac;

impl fmt::Display for NotAMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MAC address is six bytes in hexadecimal with colons: 52:54:00:12:34:56")
    }
}

impl std::error::Error for NotAMac {}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(NotAMac)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(NotAMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        if parts.next().is_some() { Err(NotAMac) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = NotAMac;

    fn try_from(text: String) -> Result<Self, NotAMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_goes_both_ways(bytes: [u8; 6]) {
            prop_assert_eq!(Mac(bytes).to_string().parse(), Ok(Mac(bytes)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-fg:+ ]{0,20}") {
            if let Ok(mac) = text.parse::<Mac>() {
                prop_assert_eq!(mac.to_string(), text);
            }
        }

        #[test]
        fn derived_addresses_are_local_and_unicast(identity: Vec<u8>, index: u32) {
            let mac = Mac::derived(&identity, index);
            prop_assert!(mac.is_unicast());
            prop_assert_eq!(mac.0[0] & 2, 2);
            prop_assert_eq!(mac, Mac::derived(&identity, index));
            prop_assert_ne!(mac, Mac::derived(&identity, index ^ 1));
        }
    }

    #[test]
    fn what_is_no_address() {
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "+2:54:00:12:34:56"]
        {
            assert_eq!(text.parse::<Mac>(), Err(NotAMac), "{text}");
        }
        assert!(!Mac::BROADCAST.is_unicast() && !Mac([0; 6]).is_unicast());
    }
}
