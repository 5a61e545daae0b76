//! Where the guest's serial console goes.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::SpecError;

const OPTION: &str = "--console";
const ADVICE: &str = "give stdio, none, pty, unix:PATH or file:PATH, or virtio: before one of them";

/// A Unix socket's address has room for this many bytes of path (`sockaddr_un`, unix(7)),
/// the terminating zero not counted.
const UNIX_PATH_MAX: usize = 107;

/// The device that is the guest's console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleDevice {
    /// A serial port, `ttyS0` in Linux.
    #[default]
    Serial,
    /// A virtio console, `hvc0` in Linux. What the serial port says goes to the same carrier.
    Virtio,
}

/// `virtio` or `virtio:CARRIER`, or a carrier alone.
pub fn parse_console(text: &str) -> Result<(ConsoleDevice, Console), SpecError> {
    match text.strip_prefix("virtio") {
        Some("") => Ok((ConsoleDevice::Virtio, Console::Stdio)),
        Some(rest) if rest.starts_with(':') => {
            Ok((ConsoleDevice::Virtio, rest.trim_start_matches(':').parse()?))
        }
        _ => Ok((ConsoleDevice::Serial, text.parse()?)),
    }
}

/// What carries the bytes of the guest's console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Console {
    /// This process's standard input and output.
    #[default]
    Stdio,
    /// Nothing: output is thrown away, and there is no input.
    None,
    /// A new pseudo-terminal, whose path is printed.
    Pty,
    /// A Unix socket that listens here; one client at a time.
    Unix(PathBuf),
    /// A file to which output is appended; there is no input.
    File(PathBuf),
}

impl Console {
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Stdio | Self::None | Self::Pty => Ok(()),
            Self::File(path) => self.check_path(path),
            Self::Unix(path) => {
                self.check_path(path)?;
                let length = path.as_os_str().len();
                if length > UNIX_PATH_MAX {
                    return Err(SpecError::new(
                        OPTION,
                        &self.to_string(),
                        &format!(
                            "a socket's path holds {UNIX_PATH_MAX} bytes and this has {length}"
                        ),
                        "give a shorter path",
                    ));
                }
                Ok(())
            }
        }
    }

    fn check_path(&self, path: &Path) -> Result<(), SpecError> {
        let reason = if path.as_os_str().is_empty() {
            "the path is missing"
        } else if path.as_os_str().as_encoded_bytes().contains(&0) {
            "a path has no zero bytes"
        } else {
            return Ok(());
        };
        Err(SpecError::new(OPTION, &self.to_string(), reason, ADVICE))
    }
}

impl FromStr for Console {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let console = match text.split_once(':') {
            None => match text {
                "stdio" => Self::Stdio,
                "none" => Self::None,
                "pty" => Self::Pty,
                _ => return Err(no_such(text)),
            },
            Some(("unix", path)) => Self::Unix(path.into()),
            Some(("file", path)) => Self::File(path.into()),
            Some(_) => return Err(no_such(text)),
        };
        console.validate()?;
        Ok(console)
    }
}

fn no_such(text: &str) -> SpecError {
    SpecError::new(OPTION, text, "there is no such console", ADVICE)
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::None => f.write_str("none"),
            Self::Pty => f.write_str("pty"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for text in ["stdio", "none", "pty", "unix:/run/vm.sock", "file:out:put.log"] {
            assert_eq!(text.parse::<Console>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_console_has_a_device() {
        use ConsoleDevice::*;
        for (text, device, carrier) in [
            ("stdio", Serial, "stdio"),
            ("virtio", Virtio, "stdio"),
            ("virtio:unix:/a", Virtio, "unix:/a"),
        ] {
            let (got, console) = parse_console(text).unwrap();
            assert_eq!((got, console.to_string().as_str()), (device, carrier));
        }
        for text in ["virtio:", "virtios", "virtio:virtio", "serial"] {
            assert_eq!(parse_console(text).expect_err(text).option(), "--console");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("unix:/{}", "x".repeat(107));
        for text in ["", "tty", "unix:", "file:", "unix", "tcp:1.2.3.4:5", "file:a\0b", &long] {
            assert_eq!(text.parse::<Console>().expect_err(text).option(), "--console");
        }
        assert!(format!("unix:/{}", "x".repeat(106)).parse::<Console>().is_ok());
    }
}
