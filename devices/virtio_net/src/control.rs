//! Commands of the control queue (virtio 1.2, section 5.1.6.5).

use nic::Mac;
use virtio::Chain;

const OK: u8 = 0;
const ERR: u8 = 1;

const CLASS_RX: u8 = 0;
/// Promiscuous, all multicast, and the finer ones up to "no broadcast".
const RX_LAST: u8 = 5;
const CLASS_MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;

/// What the device is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// It gives the guest what the network gives, whatever is asked for.
    Filter,
    SetMac(Mac),
    Unknown,
}

/// Reads the command from the front of a request.
pub(crate) fn parse(chain: &mut Chain) -> Command {
    let mut bytes = [0; 8];
    let n = chain.readable.read(&mut bytes);
    match (bytes[0], bytes[1]) {
        (CLASS_RX, kind) if n >= 3 && kind <= RX_LAST => Command::Filter,
        (CLASS_MAC, MAC_TABLE_SET) => Command::Filter,
        (CLASS_MAC, MAC_ADDR_SET) if n == bytes.len() => {
            let [_, _, mac @ ..] = bytes;
            if Mac(mac).is_unicast() { Command::SetMac(Mac(mac)) } else { Command::Unknown }
        }
        _ => Command::Unknown,
    }
}

/// Answers; how many bytes that took.
pub(crate) fn answer(chain: &mut Chain, done: bool) -> u32 {
    chain.writable.write(&[if done { OK } else { ERR }]) as u32
}
