//! Where a frame's transport header is, by which the two ends of a domain's network say what is left
//! undone of its checksum. What Linux's `skb_checksum_setup` finds is found.

use nic::checksum::{combine, sum};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const HEADER4: usize = 20;
const HEADER6: usize = 40;
/// Headers of IPv6 that are looked through, in bytes.
const HEADERS6_MAX: usize = 256;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// So many bytes of a frame are looked at.
pub(crate) const HEAD: usize = ETHERNET + HEADERS6_MAX + 60;

/// A header of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    pub ipv6: bool,
    pub tcp: bool,
    /// Where it begins in the frame.
    pub start: usize,
}

impl Transport {
    /// Of a frame, or of its first [`HEAD`] bytes. None of a fragment, of anything in a VLAN, or where
    /// the header is not all there.
    pub fn find(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        let (ipv6, protocol, len) = match [*frame.get(12)?, *frame.get(13)?] {
            IPV4 => {
                let (protocol, len) = transport4(packet)?;
                (false, protocol, len)
            }
            IPV6 => {
                let (protocol, len) = transport6(packet)?;
                (true, protocol, len)
            }
            _ => return None,
        };
        let (tcp, least) = match protocol {
            TCP => (true, 20),
            UDP => (false, 8),
            _ => return None,
        };
        let start = ETHERNET + len;
        frame.get(start..start + least)?;
        Some(Self { ipv6, tcp, start })
    }

    /// Where the checksum is, from the header's start on.
    pub fn field(self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// Bytes of all headers of a TCP segment; `None` if they are not all there.
    pub fn header_len(self, frame: &[u8]) -> Option<usize> {
        let words = usize::from(*frame.get(self.start + 12)? >> 4);
        let len = self.start + 4 * words;
        (words >= 5 && len <= frame.len()).then_some(len)
    }

    /// The sum of the pseudo-header: RFC 9293 section 3.1, RFC 8200 section 8.1.
    pub fn pseudo(self, frame: &[u8]) -> u16 {
        let addresses = if self.ipv6 { 22..54 } else { 26..34 };
        let protocol = if self.tcp { TCP } else { UDP };
        let len = frame.len().saturating_sub(self.start) as u32;
        let addresses = sum(frame.get(addresses).unwrap_or_default());
        combine(&[addresses, u16::from(protocol), sum(&len.to_be_bytes())])
    }
}

/// The transport's protocol, and where it begins: RFC 791, section 3.1.
fn transport4(packet: &[u8]) -> Option<(u8, usize)> {
    let header = packet.first_chunk::<HEADER4>()?;
    let len = 4 * usize::from(header[0] & 0xf);
    // More fragments, or an offset.
    let fragment = (header[6] & 0x3f) | header[7] != 0;
    (header[0] >> 4 == 4 && len >= HEADER4 && !fragment).then_some((header[9], len))
}

/// The same behind the extension headers of RFC 8200, section 4.
fn transport6(packet: &[u8]) -> Option<(u8, usize)> {
    let header = packet.first_chunk::<HEADER6>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut next, mut at) = (header[6], HEADER6);
    while at <= HEADERS6_MAX {
        let byte = |n: usize| packet.get(at + n).copied();
        let len = match next {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => 8 * (usize::from(byte(1)?) + 1),
            // A fragment, which may be the whole.
            44 if byte(2)? == 0 && byte(3)? & 0xf9 == 0 => 8,
            // Authentication: RFC 4302, section 2.2.
            51 => 4 * (usize::from(byte(1)?) + 2),
            _ => return Some((next, at)),
        };
        next = byte(0)?;
        at += len;
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame with this behind the IP header.
    pub(crate) fn ipv4(protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(IPV4);
        frame.extend([0x45, 0]);
        frame.extend((20 + body.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        frame.extend(body);
        frame
    }

    pub(crate) fn ipv6(next: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(IPV6);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((body.len() as u16).to_be_bytes());
        frame.extend([next, 64]);
        frame.extend([0xfe; 32]);
        frame.extend(body);
        frame
    }

    #[test]
    fn transports_are_found() {
        let found = |ipv6, tcp, start| Some(Transport { ipv6, tcp, start });
        assert_eq!(Transport::find(&ipv4(6, &[0; 20])), found(false, true, 34));
        assert_eq!(Transport::find(&ipv4(17, &[0; 8])), found(false, false, 34));
        assert_eq!(Transport::find(&ipv6(6, &[0; 20])), found(true, true, 54));
        // Options of both.
        let mut long = ipv4(6, &[0; 24]);
        long[14] = 0x46;
        assert_eq!(Transport::find(&long), found(false, true, 38));
        let extended = [vec![44, 0, 0, 0, 0, 0, 0, 0], vec![51, 0, 0, 0, 0, 0, 0, 7]];
        let extended = [&extended.concat()[..], &[17, 1, 0, 0, 0, 0, 0, 0], &[0; 8 + 4]].concat();
        assert_eq!(Transport::find(&ipv6(0, &extended)), found(true, false, 54 + 16 + 12));
    }

    #[test]
    fn what_has_no_transport_header_has_none() {
        for (protocol, body) in [(6, 19), (17, 7), (1, 64), (0, 0)] {
            assert_eq!(Transport::find(&ipv4(protocol, &vec![0; body])), None, "{protocol}");
        }
        for (at, value) in
            [(14, 0x44), (14, 0x65), (14, 0x4f), (20, 0x20), (20, 1), (21, 1), (12, 9)]
        {
            let mut frame = ipv4(6, &[0; 20]);
            frame[at] = value;
            assert_eq!(Transport::find(&frame), None, "{at} {value}");
        }
        let behind = |headers: &[[u8; 8]]| {
            let next = if headers.len() == 1 { 44 } else { 0 };
            Transport::find(&ipv6(next, &[headers.concat(), vec![0; 20]].concat()))
        };
        assert!(behind(&[[6, 0, 0, 0, 0, 0, 0, 0]]).is_some());
        assert_eq!(behind(&[[6, 0, 0, 1, 0, 0, 0, 0]]), None, "a fragment");
        assert_eq!(behind(&[[6, 0, 0, 8, 0, 0, 0, 0]]), None, "a fragment");
        let mut many = [[0; 8]; 40];
        many[39][0] = 6;
        assert_eq!(behind(&many), None, "too many headers");
        assert!(behind(&many[20..]).is_some());
        assert_eq!(Transport::find(&ipv6(0, &[6, 255, 0, 0])), None);
    }

    #[test]
    fn the_pseudo_header_is_that_of_the_rfcs() {
        // By hand: 0a00 + 020f + 0a00 + 0202 + 6 + 24.
        let frame = ipv4(6, &[0; 24]);
        assert_eq!(Transport::find(&frame).unwrap().pseudo(&frame), 0x1811 + 6 + 24);
        let frame = ipv6(17, &[0; 8]);
        // Sixteen words of fefe, with their carries: fefe * 16 = fefe0 + ...
        let sum = (0xfefe_u32 * 16 + 17 + 8) as u64;
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        assert_eq!(Transport::find(&frame).unwrap().pseudo(&frame), sum);
    }

    proptest! {
        /// Whatever the bytes, what is found lies in the frame.
        #[test]
        fn nothing_is_found_outside(six: bool, next: u8, body: Vec<u8>, flips: Vec<(u16, u8)>, cut: u16) {
            let mut frame = if six { ipv6(next, &body) } else { ipv4(next, &body) };
            for (at, value) in flips {
                let at = usize::from(at) % frame.len();
                frame[at] ^= value;
            }
            frame.truncate(frame.len() - usize::from(cut) % (frame.len() + 1));
            if let Some(found) = Transport::find(&frame) {
                prop_assert!(found.start + found.field() + 2 <= frame.len());
                prop_assert!(found.start + 20 <= HEAD);
                prop_assert!(found.header_len(&frame).is_none_or(|len| len <= frame.len()));
                found.pseudo(&frame);
            }
        }
    }
}
