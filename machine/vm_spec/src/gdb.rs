//! Where a debugger connects.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::SpecError;

/// The address on which the gdb stub listens.
///
/// Whoever connects reads and writes the guest's memory and registers, so an address that
/// other hosts reach is refused: the protocol knows no authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GdbAddress(SocketAddr);

impl GdbAddress {
    /// A loopback address and a port; port 0 lets the host choose.
    pub fn socket(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for GdbAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: &str| {
            Err(SpecError::new("--gdb", text, reason, "give an address such as tcp:127.0.0.1:1234"))
        };
        let Some(address) = text.strip_prefix("tcp:") else {
            return refuse("only tcp: is known");
        };
        let Ok(address) = address.parse::<SocketAddr>() else {
            return refuse("this is not an IP address with a port");
        };
        if !address.ip().is_loopback() {
            return refuse("the debugger's protocol has no authentication and stays on this host");
        }
        Ok(Self(address))
    }
}

impl TryFrom<String> for GdbAddress {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<GdbAddress> for String {
    fn from(address: GdbAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for GdbAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["tcp:127.0.0.1:1234", "tcp:[::1]:1234", "tcp:127.0.0.1:0"] {
            assert_eq!(text.parse::<GdbAddress>().unwrap().to_string(), text);
        }
        for text in
            ["", "1234", "tcp:1234", "tcp:0.0.0.0:1234", "tcp:10.0.0.1:1", "tcp:127.0.0.1:65536"]
        {
            assert_eq!(text.parse::<GdbAddress>().expect_err(text).option(), "--gdb");
        }
    }

    #[test]
    fn data_is_checked_like_text() {
        assert!(serde_json::from_str::<GdbAddress>("\"tcp:8.8.8.8:1\"").is_err());
        assert!(serde_json::from_str::<GdbAddress>("\"tcp:127.0.0.1:1\"").is_ok());
    }
}
