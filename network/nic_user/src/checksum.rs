//! The internet checksum, RFC 1071.

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

/// The ones' complement sum of the bytes as 16-bit words, the last one padded with zero.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    // Summed in the host's byte order, which RFC 1071 section 2 (B) allows, in words of 32 bits:
    // their carries are folded in at the end.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    total += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(total))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The sum of parts, all but the last of even length.
pub(crate) fn combine(sums: &[u16]) -> u16 {
    fold(sums.iter().copied().map(u64::from).sum())
}

/// The sum of the pseudo-header: RFC 9293 section 3.1, RFC 8200 section 8.1.
pub(crate) fn pseudo(src: IpAddr, dst: IpAddr, protocol: IpProtocol, len: usize) -> u16 {
    let addr = |addr: IpAddr| match addr {
        IpAddr::V4(a) => sum(&a.octets()),
        IpAddr::V6(a) => sum(&a.octets()),
    };
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    combine(&[addr(src), addr(dst), u8::from(protocol).into(), sum(&len.to_be_bytes())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// By the definition, word by word.
        #[test]
        fn sums_are_those_of_the_definition(bytes: Vec<u8>) {
            let mut total: u32 = 0;
            for pair in bytes.chunks(2) {
                total += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
                total = (total & 0xffff) + (total >> 16);
            }
            prop_assert_eq!(u32::from(sum(&bytes)), total);
            let (a, b) = bytes.split_at(bytes.len() / 4 * 2);
            prop_assert_eq!(combine(&[sum(a), sum(b)]), sum(&bytes));
        }
    }

    #[test]
    fn the_longest_datagram_does_not_overflow() {
        assert_eq!(sum(&[0xff; 65_536]), 0xffff);
    }
}
