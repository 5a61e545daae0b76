//! A channel between the guest and a carrier of the host's, as `--channel` says it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Console, SpecError};

const OPTION: &str = "--channel";
const ADVICE: &str = "give NAME=unix:PATH, NAME=pty or NAME=file:PATH";
/// Of a virtio console: one port is one channel.
pub const CHANNELS_MAX: usize = 31;
const NAME_MAX: usize = 64;

/// A port with a name, which Linux shows as `/dev/virtio-ports/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub name: String,
    pub carrier: Console,
}

impl Channel {
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        let refuse = |reason: &str| Err(SpecError::new(OPTION, &self.to_string(), reason, ADVICE));
        let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if self.name.is_empty() || self.name.len() > NAME_MAX || !self.name.bytes().all(sign) {
            return refuse("a name is 1 to 64 letters, digits, and signs of -_.:");
        }
        if matches!(self.carrier, Console::Stdio | Console::None) {
            return refuse("that carries no channel");
        }
        self.carrier.validate()
    }

    /// Each has a name of its own.
    pub(crate) fn validate_all(channels: &[Self]) -> Result<(), SpecError> {
        if let Some(one_more) = channels.get(CHANNELS_MAX) {
            let advice = format!("give at most {CHANNELS_MAX}");
            let reason = "the device has no place for so many channels";
            return Err(SpecError::new(OPTION, &one_more.to_string(), reason, &advice));
        }
        for (index, channel) in channels.iter().enumerate() {
            channel.validate()?;
            if channels.iter().take(index).any(|other| other.name == channel.name) {
                let reason = "another channel has this name";
                return Err(SpecError::new(
                    OPTION,
                    &channel.to_string(),
                    reason,
                    "give each its own",
                ));
            }
        }
        Ok(())
    }
}

impl FromStr for Channel {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let Some((name, carrier)) = text.split_once('=') else {
            return Err(SpecError::new(OPTION, text, "a name and what carries it", ADVICE));
        };
        let carrier = carrier
            .parse()
            .map_err(|_| SpecError::new(OPTION, text, "there is no such carrier", ADVICE))?;
        let channel = Self { name: name.into(), carrier };
        channel.validate()?;
        Ok(channel)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.carrier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_go_both_ways() {
        for text in ["org.qemu.guest_agent.0=unix:/run/ga.sock", "log=file:a=b", "x=pty"] {
            assert_eq!(text.parse::<Channel>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("{}=pty", "x".repeat(65));
        for text in ["", "pty", "=pty", "a b=pty", "a=stdio", "a=none", "a=unix:", "a/b=pty", &long]
        {
            assert_eq!(text.parse::<Channel>().expect_err(text).option(), OPTION);
        }
        let twice: Vec<Channel> = vec!["a=pty".parse().unwrap(), "a=file:b".parse().unwrap()];
        assert!(Channel::validate_all(&twice).is_err());
        let many: Vec<Channel> = (0..32).map(|n| format!("c{n}=pty").parse().unwrap()).collect();
        assert!(Channel::validate_all(&many).is_err() && Channel::validate_all(&many[1..]).is_ok());
    }
}
