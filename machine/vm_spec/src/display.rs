//! Whether the guest has a screen, and who may look at it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::SpecError;

const OPTION: &str = "--display";
const ADVICE: &str = "give none, or vnc=ADDRESS:N[,password-file=FILE] where N is a display's \
                      number, or auto, as in vnc=127.0.0.1:0";

/// The TCP port of display 0 (RFC 6143, 8.1.1).
const FIRST_PORT: u16 = 5900;

/// A screen, with a keyboard and a mouse.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Display {
    /// The guest has none of them.
    #[default]
    None,
    /// Clients see it by VNC.
    Vnc(Vnc),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vnc {
    pub address: IpAddr,
    /// The port is that of display 0 and this; `None` lets the host choose one.
    pub display: Option<u16>,
    /// A file whose first line clients must know.
    pub password_file: Option<PathBuf>,
}

impl Vnc {
    /// Where to listen; port 0 stands for any.
    pub fn socket(&self) -> SocketAddr {
        let port = self.display.map_or(0, |display| FIRST_PORT.saturating_add(display));
        SocketAddr::new(self.address, port)
    }

    /// The display's number of a port that the host chose.
    pub fn display_of(port: u16) -> Option<u16> {
        port.checked_sub(FIRST_PORT)
    }
}

impl Display {
    pub fn is_there(&self) -> bool {
        *self != Self::None
    }

    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        let Self::Vnc(vnc) = self else { return Ok(()) };
        let refuse = |reason: &str, advice: &str| {
            Err(SpecError::new(OPTION, &self.to_string(), reason, advice))
        };
        if vnc.display.is_some_and(|display| display.checked_add(FIRST_PORT).is_none()) {
            return refuse("there is no TCP port for a display of this number", ADVICE);
        }
        if vnc.password_file.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return refuse("the password's file is missing", ADVICE);
        }
        if !vnc.address.is_loopback() && vnc.password_file.is_none() {
            return refuse(
                "others than this host's users could see the screen and type",
                "give an address such as 127.0.0.1, or a password-file",
            );
        }
        Ok(())
    }
}

impl FromStr for Display {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: &str| SpecError::new(OPTION, text, reason, ADVICE);
        if text == "none" {
            return Ok(Self::None);
        }
        let rest = text.strip_prefix("vnc=").ok_or_else(|| refuse("there is no such display"))?;
        let (place, options) = rest.split_once(',').unwrap_or((rest, ""));
        let (address, display) =
            place.rsplit_once(':').ok_or_else(|| refuse("the display's number is missing"))?;
        let address =
            address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        let address = address.parse().map_err(|_| refuse("that is no IP address of this host"))?;
        let display = match display {
            "auto" => None,
            number => Some(number.parse().map_err(|_| refuse("that is no display's number"))?),
        };
        let password_file = match options.split_once('=') {
            None if options.is_empty() && !rest.ends_with(',') => None,
            Some(("password-file", path)) => Some(path.into()),
            _ => return Err(refuse("there is no such option")),
        };
        let display = Self::Vnc(Vnc { address, display, password_file });
        display.validate()?;
        Ok(display)
    }
}

impl fmt::Display for Display {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Vnc(vnc) = self else { return f.write_str("none") };
        match vnc.address {
            IpAddr::V4(address) => write!(f, "vnc={address}:")?,
            IpAddr::V6(address) => write!(f, "vnc=[{address}]:")?,
        }
        match vnc.display {
            Some(display) => write!(f, "{display}")?,
            None => f.write_str("auto")?,
        }
        match &vnc.password_file {
            Some(path) => write!(f, ",password-file={}", path.display()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_both_ways() {
        for text in [
            "none",
            "vnc=127.0.0.1:0",
            "vnc=[::1]:59635",
            "vnc=127.0.0.1:auto",
            "vnc=0.0.0.0:1,password-file=/etc/a=b,c",
        ] {
            let display: Display = text.parse().unwrap();
            assert_eq!(display.to_string(), text);
            let data = serde_json::to_string(&display).unwrap();
            assert_eq!(serde_json::from_str::<Display>(&data).unwrap(), display);
        }
        let Display::Vnc(vnc) = "vnc=127.0.0.1:3".parse().unwrap() else { panic!() };
        assert_eq!(vnc.socket(), "127.0.0.1:5903".parse().unwrap());
        assert_eq!((Vnc::display_of(5903), Vnc::display_of(80)), (Some(3), None));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "sdl",
            "vnc",
            "vnc=",
            "vnc=127.0.0.1",
            "vnc=localhost:0",
            "vnc=127.0.0.1:",
            "vnc=127.0.0.1:-1",
            "vnc=127.0.0.1:59636",
            "vnc=127.0.0.1:0,",
            "vnc=127.0.0.1:0,lossy",
            "vnc=127.0.0.1:0,password-file=",
            "vnc=0.0.0.0:0",
            "none,x",
        ] {
            assert_eq!(text.parse::<Display>().expect_err(text).option(), OPTION, "{text}");
        }
    }
}
