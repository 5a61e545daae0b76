//! What the guest's network looks like, and what it may reach.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use nic::Mac;

/// The address of the gateway, and of everything else that this network is.
pub(crate) const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);

/// The smallest MTU that IPv6 allows, RFC 8200 section 5.
pub const MTU_MIN: u16 = 1280;
/// What a frame may hold, [`nic::FRAME_MAX`], less its header.
pub const MTU_MAX: u16 = 65_520;

/// A user-mode network, as its operator describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The guest's IPv4 network, of 256 addresses: the gateway is its `.2`, the name server
    /// its `.3`, and leases begin at `.15`.
    pub network: Ipv4Addr,
    /// The guest's IPv6 prefix, of 64 bits: the gateway is its `::2`, the name server `::3`.
    pub prefix: Ipv6Addr,
    pub mtu: u16,
    pub forwards: Vec<Forward>,
    /// Connections to the gateway's address reach this host's loopback address. Services that
    /// listen there often rely on nobody else being able to.
    pub host_loopback: bool,
    /// A folder, or one file, that is read by TFTP at the gateway's address.
    pub tftp: Option<PathBuf>,
    /// What a guest boots from the network: the name of a file for TFTP, or a URL, which goes
    /// to clients that ask for HTTP boot.
    pub boot_file: Option<String>,
    /// Where the host's resolvers are listed, resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// For tests with a hostile guest: everything that it reaches is this port of the host's loopback
    /// address.
    #[doc(hidden)]
    pub only: Option<u16>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 0, 2, 0),
            prefix: Ipv6Addr::new(0xfd53, 0x6172, 0x616e, 0, 0, 0, 0, 0),
            mtu: 1500,
            forwards: Vec::new(),
            host_loopback: false,
            tftp: None,
            boot_file: None,
            resolv_conf: "/etc/resolv.conf".into(),
            only: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What arrives at an address of the host goes to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub transport: Transport,
    pub listen: SocketAddr,
    /// `None`: the guest's first lease.
    pub guest: Option<IpAddr>,
    pub port: u16,
}

/// Where a guest's packet is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// This address of the outer world.
    Host(SocketAddr),
    /// The host's resolver.
    Resolver,
    Refused,
}

impl Config {
    fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.network.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    fn v6(&self, host: u16) -> Ipv6Addr {
        let [a, b, c, d, ..] = self.prefix.segments();
        Ipv6Addr::new(a, b, c, d, 0, 0, 0, host)
    }

    pub fn gateway4(&self) -> Ipv4Addr {
        self.v4(2)
    }

    pub fn dns4(&self) -> Ipv4Addr {
        self.v4(3)
    }

    pub(crate) fn broadcast4(&self) -> Ipv4Addr {
        self.v4(255)
    }

    pub(crate) fn mask4(&self) -> Ipv4Addr {
        Ipv4Addr::new(255, 255, 255, 0)
    }

    /// The addresses that are leased, the first of them to the first client.
    pub fn lease4(&self, index: u8) -> Option<Ipv4Addr> {
        (index < LEASES).then(|| self.v4(15 + index))
    }

    pub fn gateway6(&self) -> Ipv6Addr {
        self.v6(2)
    }

    pub fn dns6(&self) -> Ipv6Addr {
        self.v6(3)
    }

    pub(crate) fn gateway_of(&self, family: IpAddr) -> IpAddr {
        match family {
            IpAddr::V4(_) => self.gateway4().into(),
            IpAddr::V6(_) => self.gateway6().into(),
        }
    }

    pub(crate) fn is_gateway(&self, addr: IpAddr) -> bool {
        addr == self.gateway4() || addr == self.gateway6() || addr == LINK_LOCAL
    }

    pub(crate) fn is_dns(&self, addr: IpAddr) -> bool {
        addr == self.dns4() || addr == self.dns6()
    }

    /// Whether this network answers for the address itself.
    pub(crate) fn is_ours(&self, addr: IpAddr) -> bool {
        self.is_gateway(addr) || self.is_dns(addr)
    }

    /// Whether a guest may have the address.
    pub(crate) fn is_guest(&self, addr: IpAddr) -> bool {
        if self.is_ours(addr) {
            return false;
        }
        match addr {
            IpAddr::V4(a) => {
                let [.., host] = a.octets();
                self.on_link(addr) && host != 0 && host != 255
            }
            IpAddr::V6(a) => !a.is_unspecified() && self.on_link(addr),
        }
    }

    /// Whether the address is in the guest's own network.
    pub(crate) fn on_link(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => a.octets()[..3] == self.network.octets()[..3],
            IpAddr::V6(a) => {
                a.is_unicast_link_local() || a.segments()[..4] == self.prefix.segments()[..4]
            }
        }
    }

    /// Where packets to this address go. What is not routed by any router is not by this one:
    /// loopback, link-local addresses (RFC 3927 section 7; clouds serve credentials there),
    /// groups, and the guest's own network.
    pub(crate) fn target(&self, to: SocketAddr) -> Target {
        match (self.anywhere(to), self.only) {
            (Target::Host(_), Some(port)) => Target::Host((Ipv4Addr::LOCALHOST, port).into()),
            (target, _) => target,
        }
    }

    fn anywhere(&self, to: SocketAddr) -> Target {
        if to.port() == 53 && self.is_dns(to.ip()) {
            return Target::Resolver;
        }
        if self.host_loopback && self.is_gateway(to.ip()) {
            let ip: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            return Target::Host(SocketAddr::new(ip, to.port()));
        }
        if to.port() == 0 || self.on_link(to.ip()) || !routed(to.ip()) || is_metadata(to.ip()) {
            return Target::Refused;
        }
        Target::Host(to)
    }

    /// How the guest sees a peer of the outer world that calls it.
    pub(crate) fn seen(&self, peer: SocketAddr, guest: IpAddr) -> SocketAddr {
        let same = peer.is_ipv4() == guest.is_ipv4();
        if same && routed(peer.ip()) && !self.on_link(peer.ip()) {
            return SocketAddr::new(peer.ip(), peer.port());
        }
        SocketAddr::new(self.gateway_of(guest), peer.port())
    }
}

pub(crate) const LEASES: u8 = 16;

/// The gateway's link-local address.
pub(crate) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Where clouds serve a host's credentials, besides 169.254.169.254: Amazon, Google, Alibaba, Oracle.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

fn is_metadata(addr: IpAddr) -> bool {
    METADATA.contains(&translated(addr))
}

/// The IPv4 address that a NAT64 would make of this, RFC 6052 section 2.1.
fn translated(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V6(a) => match a.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)).into()
            }
            _ => addr,
        },
        IpAddr::V4(_) => addr,
    }
}

/// Whether routers forward packets to the address.
pub(crate) fn routed(addr: IpAddr) -> bool {
    match translated(addr) {
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            first != 0 && first < 224 && !a.is_loopback() && !a.is_link_local()
        }
        IpAddr::V6(a) => match a.to_ipv4_mapped() {
            // A mapped address would reach an IPv4 address past the rules for it.
            Some(_) => false,
            None => {
                // IPv4-compatible addresses, among them :: and ::1.
                a.segments()[..6] != [0; 6] && !a.is_multicast() && !a.is_unicast_link_local()
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(config: &Config, to: &str) -> Target {
        config.target(to.parse().unwrap())
    }

    #[test]
    fn the_outer_world_is_reached_and_the_host_is_not() {
        let config = Config::default();
        for to in ["192.0.2.1:80", "10.0.3.2:80", "[2001:db8::1]:443", "[64:ff9b::192.0.2.1]:80"] {
            assert_eq!(target(&config, to), Target::Host(to.parse().unwrap()));
        }
        for to in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "0.0.0.0:80",
            "0.0.0.1:80",
            "169.254.169.254:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "10.0.2.2:80",
            "10.0.2.77:80",
            "192.0.2.1:0",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[fe80::1]:80",
            "[ff02::1]:80",
            "[fd53:6172:616e::2]:80",
            "[64:ff9b::127.0.0.1]:80",
            "[64:ff9b::169.254.169.254]:80",
            "[64:ff9b::100.100.100.200]:80",
            "[fd00:ec2::254]:80",
            "[fd20:ce::254]:80",
            "100.100.100.200:80",
            "192.0.0.192:80",
        ] {
            assert_eq!(target(&config, to), Target::Refused, "{to}");
        }
        assert_eq!(target(&config, "10.0.2.3:53"), Target::Resolver);
        assert_eq!(target(&config, "[fd53:6172:616e::3]:53"), Target::Resolver);
    }

    #[test]
    fn loopback_is_reached_when_it_is_asked_for() {
        let config = Config { host_loopback: true, ..Config::default() };
        assert_eq!(target(&config, "10.0.2.2:80"), Target::Host("127.0.0.1:80".parse().unwrap()));
        assert_eq!(
            target(&config, "[fd53:6172:616e::2]:80"),
            Target::Host("[::1]:80".parse().unwrap())
        );
        assert_eq!(target(&config, "127.0.0.1:80"), Target::Refused);
    }

    #[test]
    fn callers_are_seen_by_an_address_that_can_be_answered() {
        let config = Config::default();
        let seen = |peer: &str, guest: &str| {
            config.seen(peer.parse().unwrap(), guest.parse().unwrap()).to_string()
        };
        assert_eq!(seen("127.0.0.1:5", "10.0.2.15"), "10.0.2.2:5");
        assert_eq!(seen("10.0.2.15:5", "10.0.2.15"), "10.0.2.2:5");
        assert_eq!(seen("192.0.2.9:5", "10.0.2.15"), "192.0.2.9:5");
        assert_eq!(seen("[2001:db8::1]:5", "10.0.2.15"), "10.0.2.2:5");
    }
}
