//! The header before each frame (virtio 1.2, section 5.1.6).

use nic::{Checksum, Meta, SegmentKind, Segmentation};

/// With VERSION_1 the number of buffers is always there.
pub(crate) const LEN: usize = 12;
/// Where that number is.
pub(crate) const NUM_BUFFERS: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// For a frame to the driver; the number of buffers is 1.
pub(crate) fn encode(meta: &Meta) -> [u8; LEN] {
    let mut flags = 0;
    let (mut start, mut offset) = (0, 0);
    match meta.checksum {
        Checksum::Unknown => {}
        Checksum::Verified => flags = DATA_VALID,
        Checksum::Partial { start: s, offset: o } => {
            flags = NEEDS_CSUM;
            (start, offset) = (s, o);
        }
    }
    let (kind, header_len, size) = match meta.segmentation {
        None => (GSO_NONE, 0, 0),
        Some(s) => {
            let kind = match s.kind {
                SegmentKind::Tcp4 => GSO_TCPV4,
                SegmentKind::Tcp6 => GSO_TCPV6,
            };
            (kind, s.header_len, s.size)
        }
    };
    let mut bytes = [0; LEN];
    let fields = [header_len, size, start, offset, 1];
    bytes[0] = flags;
    bytes[1] = kind;
    for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

/// Of a frame of the driver; `None` if it asks for what was not offered.
pub(crate) fn decode(bytes: &[u8; LEN]) -> Option<Meta> {
    let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let checksum = if bytes[0] & NEEDS_CSUM != 0 {
        Checksum::Partial { start: field(6), offset: field(8) }
    } else {
        Checksum::Unknown
    };
    let kind = match bytes[1] {
        GSO_NONE => return Some(Meta { checksum, segmentation: None }),
        GSO_TCPV4 => SegmentKind::Tcp4,
        GSO_TCPV6 => SegmentKind::Tcp6,
        _ => return None,
    };
    let segmentation = Segmentation { kind, size: field(4), header_len: field(2) };
    // A frame that is to be cut has no checksum yet (5.1.6.2.1).
    let partial = matches!(checksum, Checksum::Partial { .. });
    (partial && segmentation.size > 0)
        .then_some(Meta { checksum, segmentation: Some(segmentation) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_go_both_ways(start: u16, offset: u16, size in 1u16.., header_len: u16, six: bool) {
            let kind = if six { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 };
            let checksum = Checksum::Partial { start, offset };
            for segmentation in [None, Some(Segmentation { kind, size, header_len })] {
                let meta = Meta { checksum, segmentation };
                prop_assert_eq!(decode(&encode(&meta)), Some(meta));
            }
        }

        #[test]
        fn any_header_is_read_or_refused(bytes: [u8; LEN]) {
            if let Some(meta) = decode(&bytes) {
                let partial = matches!(meta.checksum, Checksum::Partial { .. });
                prop_assert!(partial || meta.segmentation.is_none());
            }
        }
    }

    #[test]
    fn the_bits_are_those_of_the_specification() {
        let checksum = Checksum::Partial { start: 0x0102, offset: 0x0304 };
        let segmentation =
            Some(Segmentation { kind: SegmentKind::Tcp6, size: 0x0506, header_len: 0x0708 });
        let bytes = encode(&Meta { checksum, segmentation });
        assert_eq!(bytes, [1, 4, 8, 7, 6, 5, 2, 1, 4, 3, 1, 0]);
        assert_eq!(encode(&Meta { checksum: Checksum::Verified, segmentation: None })[0], 2);
        assert_eq!(encode(&Meta::default()), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
}
