//! The VM's networks, started as the options say.

use machine::NetworkPart;
use nic::Mac;
use nic_user::{Config, Error, UserNet};
use vm_spec::{Forward, Net, Transport};

use crate::{Failure, host, report};

/// What the address of a card is derived from that was given none. A user-mode network has one
/// guest, so that another VM's card may have the same.
const IDENTITY: &[u8] = b"sarang";

/// Starts what the option says.
pub fn open(net: &Net) -> Result<Vec<NetworkPart>, Failure> {
    let Net::User(user) = net else { return Ok(Vec::new()) };
    let config = Config {
        mtu: user.mtu,
        forwards: user.forwards.iter().map(forward).collect(),
        host_loopback: user.loopback,
        tftp: user.tftp.clone(),
        boot_file: user.boot.clone(),
        ..Config::default()
    };
    if let Some(path) = &user.tftp
        && let Err(error) = std::fs::metadata(path)
    {
        let why = report::os_reason(&error);
        let line = format!("--net {net}: tftp={}: {why}; give a folder or a file", path.display());
        return Err(Failure::host(line));
    }
    if !host::allow_files(nic_user::FILES_MAX) {
        report::notice(&format!(
            "--net {net}: this user may open too few files for all connections that a guest may \
             have; ulimit -n {} would do",
            nic_user::FILES_MAX
        ));
    }
    let network = UserNet::start(config, 0).map_err(|error| explain(net, &error))?;
    let mac = user.mac.unwrap_or_else(|| Mac::derived(IDENTITY, 0));
    let (model, mtu) = (user.model, user.mtu);
    Ok(vec![NetworkPart { network: network.clone(), device: network, model, mac, mtu }])
}

fn forward(forward: &Forward) -> nic_user::Forward {
    nic_user::Forward {
        transport: match forward.transport {
            Transport::Tcp => nic_user::Transport::Tcp,
            Transport::Udp => nic_user::Transport::Udp,
        },
        listen: forward.listen,
        guest: forward.guest,
        port: forward.port,
    }
}

fn explain(net: &Net, error: &Error) -> Failure {
    match error {
        Error::Listen { source, .. } => Failure::host(format!(
            "--net {net}: {error}: {}; forward another address or port of this host",
            report::os_reason(source)
        )),
        Error::Host(source) => {
            let why = report::os_reason(source);
            Failure::host(format!("--net {net}: {error}: {why}; leave --net out"))
        }
        Error::Guest(_) => Failure::usage(format!(
            "--net {net}: {error}; forward to its address in 10.0.2.0/24 or fd53:6172:616e::/64, or \
             leave it out"
        )),
        Error::Mtu(_) => Failure::usage(format!("--net {net}: {error}; give another MTU")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_network_is_one_line() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let net: Net = format!("user,forward=tcp:{at}-:22").parse().unwrap();
        let line = open(&net).unwrap_err().line;
        assert!(line.starts_with(&format!("--net {net}: cannot listen at {at}: ")), "{line}");
        let net: Net = "user,tftp=/nonexistent".parse().unwrap();
        assert!(open(&net).unwrap_err().line.contains("tftp=/nonexistent"));
        assert!(open(&Net::None).unwrap().is_empty());
    }

    #[test]
    fn cards_have_the_address_that_was_given_or_always_the_same() {
        let mac = |text: &str| open(&text.parse().unwrap()).unwrap()[0].mac;
        assert_eq!(mac("user,mac=52:54:00:12:34:56").to_string(), "52:54:00:12:34:56");
        assert_eq!(mac("user"), mac("user,mtu=9000"));
    }
}
