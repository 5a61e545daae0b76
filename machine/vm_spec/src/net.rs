//! The VM's network, as `--net` says it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use nic::Mac;
use serde::{Deserialize, Serialize};

use crate::SpecError;

const OPTION: &str = "--net";
const ADVICE: &str = "give none, or user[,model=virtio|e1000][,forward=tcp:127.0.0.1:2222-:22]\
     [,mac=52:54:00:12:34:56][,mtu=1500][,loopback][,tftp=PATH][,boot=FILE]; a comma in a name is \
     ',,'";
const FORWARD_ADVICE: &str = "give forward=tcp:ADDRESS:PORT-[GUEST]:PORT, or udp: instead of tcp:";
/// What IPv6 needs, and what a frame holds.
const MTU: std::ops::RangeInclusive<u16> = 1280..=65_520;
/// What an e1000 can send.
const E1000_MTU_MAX: u16 = 16_110;
/// Sockets that listen.
const FORWARDS_MAX: usize = 64;

/// What the guest's network card is plugged into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// There is no card.
    #[default]
    None,
    /// A network of this process: the guest reaches what this host reaches.
    User(UserNet),
}

/// Which card the guest finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetModel {
    #[default]
    Virtio,
    /// Intel's 82540EM, for a guest without a virtio driver.
    E1000,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserNet {
    #[serde(default)]
    pub model: NetModel,
    /// `None`: one that is always the same.
    pub mac: Option<Mac>,
    pub mtu: u16,
    pub forwards: Vec<Forward>,
    /// The guest reaches this host's loopback address at the gateway's.
    pub loopback: bool,
    /// A folder or file that the guest's firmware reads by TFTP.
    pub tftp: Option<PathBuf>,
    /// What the guest's firmware boots: a file of TFTP, or a URL.
    pub boot: Option<String>,
}

impl Default for UserNet {
    fn default() -> Self {
        let (mac, forwards, tftp, boot) = (None, Vec::new(), None, None);
        Self { model: NetModel::Virtio, mac, mtu: 1500, forwards, loopback: false, tftp, boot }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

/// An address of this host at which the guest is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    pub transport: Transport,
    pub listen: SocketAddr,
    /// `None`: the address that the guest gets by DHCP.
    pub guest: Option<IpAddr>,
    pub port: u16,
}

impl Net {
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        let Self::User(user) = self else { return Ok(()) };
        let refuse = |reason: &str| Err(SpecError::new(OPTION, &self.to_string(), reason, ADVICE));
        if !MTU.contains(&user.mtu) {
            return refuse(&format!("an MTU lies between {} and {}", MTU.start(), MTU.end()));
        }
        if user.model == NetModel::E1000 && user.mtu > E1000_MTU_MAX {
            return refuse(&format!("an e1000 has an MTU of at most {E1000_MTU_MAX}"));
        }
        if user.mac.is_some_and(|mac| !mac.is_unicast()) {
            return refuse("that address is not one card's");
        }
        if user.forwards.len() > FORWARDS_MAX {
            return refuse(&format!("there are more than {FORWARDS_MAX} forwards"));
        }
        if user.forwards.iter().any(|f| f.port == 0 || f.listen.port() == 0) {
            return refuse("ports are counted from 1");
        }
        if user.tftp.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return refuse("the path for TFTP is missing");
        }
        let printable = |text: &String| text.bytes().all(|b| b.is_ascii_graphic());
        if user.boot.as_ref().is_some_and(|b| b.is_empty() || b.len() > 255 || !printable(b)) {
            return refuse("a boot file has a name of up to 255 characters without spaces");
        }
        Ok(())
    }
}

impl FromStr for Net {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: &str| SpecError::new(OPTION, text, reason, ADVICE);
        let parts = crate::disk::parts(text);
        let mut parts = parts.iter().map(String::as_str);
        match parts.next() {
            Some("none") if parts.next().is_none() => return Ok(Self::None),
            Some("user") => {}
            _ => return Err(refuse("there is no such network")),
        }
        let mut user = UserNet::default();
        for part in parts {
            match part.split_once('=').unwrap_or((part, "")) {
                ("model", "virtio") => user.model = NetModel::Virtio,
                ("model", "e1000") => user.model = NetModel::E1000,
                ("model", _) => return Err(refuse("there is no such card")),
                ("forward", forward) => user.forwards.push(forward.parse()?),
                ("mac", mac) => {
                    user.mac = Some(mac.parse().map_err(|_| {
                        refuse("a MAC address is six bytes in hexadecimal with colons")
                    })?)
                }
                ("mtu", mtu) => {
                    user.mtu = mtu.parse().map_err(|_| refuse("that MTU is no number"))?;
                }
                ("loopback", "") => user.loopback = true,
                ("tftp", path) => user.tftp = Some(path.into()),
                ("boot", file) => user.boot = Some(file.into()),
                _ => return Err(refuse(&format!("there is no option {part:?}"))),
            }
        }
        let net = Self::User(user);
        net.validate()?;
        Ok(net)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::User(user) = self else { return f.write_str("none") };
        f.write_str("user")?;
        if user.model == NetModel::E1000 {
            f.write_str(",model=e1000")?;
        }
        for forward in &user.forwards {
            write!(f, ",forward={forward}")?;
        }
        if let Some(mac) = user.mac {
            write!(f, ",mac={mac}")?;
        }
        write!(f, ",mtu={}", user.mtu)?;
        if user.loopback {
            f.write_str(",loopback")?;
        }
        if let Some(path) = &user.tftp {
            write!(f, ",tftp={}", path.display().to_string().replace(',', ",,"))?;
        }
        match &user.boot {
            Some(file) => write!(f, ",boot={}", file.replace(',', ",,")),
            None => Ok(()),
        }
    }
}

impl FromStr for Forward {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: &str| SpecError::new(OPTION, text, reason, FORWARD_ADVICE);
        let (transport, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some(("udp", rest)) => (Transport::Udp, rest),
            _ => return Err(refuse("a forward begins with tcp: or udp:")),
        };
        let (listen, to) =
            rest.split_once('-').ok_or_else(|| refuse("a forward has two ends with - between"))?;
        let listen = listen
            .parse()
            .map_err(|_| refuse("the first end is an address of this host and a port"))?;
        let no_end = || refuse("the second end is the guest's address, or nothing, and a port");
        let (guest, port) = match to.strip_prefix(':') {
            Some(port) => (None, port.parse().map_err(|_| no_end())?),
            None => {
                let to: SocketAddr = to.parse().map_err(|_| no_end())?;
                (Some(to.ip()), to.port())
            }
        };
        Ok(Self { transport, listen, guest, port })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{transport}:{}-", self.listen)?;
        match self.guest {
            Some(guest) => write!(f, "{}", SocketAddr::new(guest, self.port)),
            None => write!(f, ":{}", self.port),
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
            "user,mtu=1500",
            "user,forward=tcp:127.0.0.1:2222-:22,forward=udp:[::1]:53-10.0.2.15:53,\
             mac=52:54:00:12:34:56,mtu=9000,loopback,tftp=/srv/boot,boot=http://x/y",
            "user,mtu=1500,tftp=/srv/a,,b,boot=c,,d",
            "user,model=e1000,mtu=9000",
        ] {
            let net: Net = text.parse().unwrap();
            assert_eq!(net.to_string(), text);
            let data = serde_json::to_string(&net).unwrap();
            assert_eq!(serde_json::from_str::<Net>(&data).unwrap(), net);
        }
        assert_eq!("user".parse::<Net>().unwrap(), Net::User(UserNet::default()));
    }

    #[test]
    fn nonsense_is_refused() {
        let many = format!("user{}", ",forward=tcp:1.2.3.4:5-:6".repeat(65));
        for text in [
            "",
            "tap",
            "none,mac=52:54:00:12:34:56",
            "user,",
            "user,colour=red",
            "user,mac=01:00:5e:00:00:01",
            "user,mac=5254",
            "user,mtu=100",
            "user,mtu=x",
            "user,model=ne2000",
            "user,model=e1000,mtu=20000",
            "user,loopback=yes",
            "user,tftp=",
            "user,boot=a b",
            "user,forward=sctp:1.2.3.4:5-:6",
            "user,forward=tcp:1.2.3.4:5",
            "user,forward=tcp::5-:6",
            "user,forward=tcp:1.2.3.4:5-6",
            "user,forward=tcp:1.2.3.4:5-:0",
            "user,forward=tcp:1.2.3.4:0-:5",
            &many,
        ] {
            assert_eq!(text.parse::<Net>().expect_err(text).option(), OPTION, "{text}");
        }
    }
}
