//! Which pair of queues a frame for the guest goes to: the one by which the guest sends in the same
//! conversation (virtio 1.2, section 5.1.6.5.6, automatic receive steering).

use crate::head;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Conversations that are told apart.
const PLACES: usize = 256;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// By conversation, the pair of its last frame of the guest's. It is a hint: not saved, and two
/// conversations may share a place.
#[derive(Debug)]
pub struct Steering([AtomicU8; PLACES]);

impl Default for Steering {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU8::new(0)))
    }
}

impl Steering {
    /// The guest has sent this by a pair.
    pub fn sent(&self, frame: &[u8], pair: u16) {
        if let Some(place) = self.0.get(place(&[frame])) {
            place.store(pair as u8, Relaxed);
        }
    }

    /// Where a frame for the guest goes, of so many pairs.
    pub fn pair(&self, parts: &[&[u8]], pairs: u16) -> u16 {
        if pairs < 2 {
            return 0;
        }
        let pair = self.0.get(place(parts)).map_or(0, |place| place.load(Relaxed));
        u16::from(pair) % pairs
    }
}

/// The same for both directions: addresses and ports are summed.
fn place(parts: &[&[u8]]) -> usize {
    // Ethernet, IPv6 without options, and the ports; or IPv4 with all its options.
    let head = head::<{ 14 + 60 + 4 }>(parts);
    let sum = |from: usize, len: usize| {
        let bytes = head.iter().skip(from).take(len);
        bytes.fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte) + 1))
    };
    let ports = |at: usize| sum(at, 2).wrapping_add(sum(at + 2, 2));
    let hash = match [head[12], head[13]] {
        IPV4 => {
            let addresses = sum(26, 4).wrapping_add(sum(30, 4));
            addresses.wrapping_add(ports(14 + 4 * usize::from(head[14] & 0xf)))
        }
        IPV6 => sum(22, 16).wrapping_add(sum(38, 16)).wrapping_add(ports(54)),
        _ => 0,
    };
    // Spread over the upper bits, of which eight are taken.
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP segment of IPv4.
    fn frame(from: [u8; 4], to: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(IPV4);
        frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([from, to].concat());
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame
    }

    #[test]
    fn answers_come_where_questions_went() {
        let steering = Steering::default();
        let (guest, peer) = ([10, 0, 2, 15], [192, 0, 2, 1]);
        let mut places = std::collections::BTreeSet::new();
        for port in 0..64u16 {
            let pair = port % 4;
            let question = frame(guest, peer, [40_000 + port, 443]);
            let answer = frame(peer, guest, [443, 40_000 + port]);
            assert_eq!(place(&[&question]), place(&[&answer[..20], &answer[20..]]));
            places.insert(place(&[&question]));
            steering.sent(&question, pair);
            assert_eq!(steering.pair(&[&answer], 4), pair);
            assert_eq!(steering.pair(&[&answer], 2), pair % 2);
            assert_eq!(steering.pair(&[&answer], 1), 0);
        }
        assert!(places.len() > 32, "{} places for 64 conversations", places.len());
        steering.pair(&[], 4);
        steering.sent(&[0x45; 15], 3);
    }
}
