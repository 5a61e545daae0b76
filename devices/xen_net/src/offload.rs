//! What is left undone of a frame, in the words of both sides: the domain says by flags that
//! something is, and where it is follows from the frame's headers; the network says where.

use crate::{
    front::Wants,
    headers::{ETHERNET, HEAD, Transport},
};
use nic::{Checksum, FRAME_MAX, Meta, SegmentKind, Segmentation, checksum, head};
use xen_abi::netif::{Extra, extra, rx, tx};

/// What the flags of a frame of the domain's and its segmentation mean; `None` if the frame's headers
/// do not fit them.
pub(crate) fn of_domain(frame: &mut [u8], flags: u16, cut: Option<Extra>) -> Option<Meta> {
    if flags & tx::CSUM_BLANK == 0 && cut.is_none() {
        // That it were right is only said.
        return Some(Meta::default());
    }
    let found = Transport::find(frame)?;
    let (start, offset) = (u16::try_from(found.start).ok()?, found.field() as u16);
    let segmentation = match cut {
        Some(cut) => Some(segmentation(frame, found, cut)?),
        None => None,
    };
    if flags & tx::CSUM_BLANK == 0 {
        // A frame that is to be cut has no checksum yet, whatever is in its place.
        let pseudo = found.pseudo(frame);
        checksum::set(frame, found.start + found.field(), pseudo);
    }
    Some(Meta { checksum: Checksum::Partial { start, offset }, segmentation })
}

fn segmentation(frame: &[u8], found: Transport, cut: Extra) -> Option<Segmentation> {
    let kind = match cut.gso {
        extra::GSO_TCPV4 => SegmentKind::Tcp4,
        extra::GSO_TCPV6 => SegmentKind::Tcp6,
        _ => return None,
    };
    let fits = found.tcp && found.ipv6 == (kind == SegmentKind::Tcp6) && cut.size > 0;
    let header_len = u16::try_from(found.header_len(frame)?).ok()?;
    fits.then_some(Segmentation { kind, size: cut.size, header_len })
}

/// What there is to do for a frame of the network's before the domain can have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    /// Its first response has these flags.
    Nothing { flags: u16 },
    /// The checksum.
    Finish { start: usize, field: usize },
    /// It cannot have it.
    Drop,
}

impl Todo {
    pub fn of(meta: &Meta, parts: &[&[u8]], len: usize, wants: &Wants) -> Self {
        let cut = meta.segmentation.map(|cut| cut.kind);
        let taken = match cut {
            None => true,
            Some(SegmentKind::Tcp4) => wants.offloads.tso4,
            Some(SegmentKind::Tcp6) => wants.offloads.tso6,
        };
        if !taken || !(ETHERNET..=FRAME_MAX).contains(&len) {
            return Self::Drop;
        }
        match meta.checksum {
            Checksum::Partial { start, offset } => {
                partial(parts, len, (start.into(), offset.into()), cut.is_some(), wants)
            }
            // A frame that is to be cut has none yet.
            _ if cut.is_some() => Self::Drop,
            Checksum::Unknown => Self::Nothing { flags: 0 },
            Checksum::Verified => Self::Nothing { flags: rx::DATA_VALIDATED },
        }
    }
}

fn partial(
    parts: &[&[u8]],
    len: usize,
    (start, offset): (usize, usize),
    cut: bool,
    wants: &Wants,
) -> Todo {
    let bytes = head::<HEAD>(parts);
    let found = Transport::find(bytes.get(..len).unwrap_or(&bytes));
    // The domain looks for it where its own headers say.
    let same = found.is_some_and(|found| (found.start, found.field()) == (start, offset));
    let six = found.is_some_and(|found| found.ipv6);
    let wanted = if six { wants.checksum6 } else { wants.offloads.checksum };
    if same && wanted {
        Todo::Nothing { flags: rx::CSUM_BLANK | rx::DATA_VALIDATED }
    } else if cut {
        Todo::Drop
    } else {
        Todo::Finish { start, field: start + offset }
    }
}

/// What says that a frame is to be cut.
pub(crate) fn cut(segmentation: &Segmentation) -> Extra {
    let gso = match segmentation.kind {
        SegmentKind::Tcp4 => extra::GSO_TCPV4,
        SegmentKind::Tcp6 => extra::GSO_TCPV6,
    };
    Extra { kind: extra::GSO, size: segmentation.size, gso, ..Extra::default() }
}

/// Finishes a checksum; false if it is not in the frame.
pub(crate) fn finish(frame: &mut [u8], start: usize, field: usize) -> bool {
    let len = frame.len();
    if !checksum::insert(frame, start, len, field) {
        return false;
    }
    // In UDP, zero is none (RFC 768); elsewhere it is the same number.
    checksum::get(frame, field) != Some(0) || checksum::set(frame, field, 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::tests::{ipv4, ipv6};
    use nic::Offloads;

    const ALL: Wants = Wants {
        offloads: Offloads { checksum: true, tso4: true, tso6: true },
        checksum6: true,
        scatter: true,
    };
    const BLANK: Todo = Todo::Nothing { flags: rx::CSUM_BLANK | rx::DATA_VALIDATED };

    fn tcp(payload: usize) -> Vec<u8> {
        let mut body = vec![0; 20 + payload];
        body[12] = 0x50;
        body
    }

    fn gso(kind: u8, size: u16) -> Option<Extra> {
        Some(Extra { kind: extra::GSO, size, gso: kind, ..Extra::default() })
    }

    #[test]
    fn what_the_domain_leaves_undone_is_found_in_its_headers() {
        let of = |mut frame: Vec<u8>, flags, cut| of_domain(&mut frame, flags, cut);
        let partial = |start, offset| Checksum::Partial { start, offset };
        let plain = |checksum| Some(Meta { checksum, segmentation: None });
        assert_eq!(of(vec![0; 14], tx::DATA_VALIDATED, None), Some(Meta::default()));
        assert_eq!(of(ipv4(6, &tcp(0)), tx::CSUM_BLANK, None), plain(partial(34, 16)));
        assert_eq!(of(ipv6(17, &[0; 8]), tx::CSUM_BLANK, None), plain(partial(54, 6)));
        assert_eq!(of(ipv4(1, &[0; 8]), tx::CSUM_BLANK, None), None);
        let segmentation =
            Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448, header_len: 54 });
        let large = Some(Meta { checksum: partial(34, 16), segmentation });
        assert_eq!(of(ipv4(6, &tcp(4000)), tx::CSUM_BLANK, gso(1, 1448)), large);
        for (frame, cut) in [
            (ipv4(6, &tcp(4000)), gso(1, 0)),
            (ipv4(6, &tcp(4000)), gso(2, 1448)),
            (ipv4(6, &tcp(4000)), gso(3, 1448)),
            (ipv6(6, &tcp(4000)), gso(1, 1448)),
            (ipv4(17, &tcp(4000)), gso(1, 1448)),
            // Its header is longer than the frame.
            (ipv4(6, &[0xf0; 24]), gso(1, 1448)),
        ] {
            assert_eq!(of(frame, tx::CSUM_BLANK, cut), None, "{cut:?}");
        }
    }

    #[test]
    fn a_frame_that_is_to_be_cut_has_the_sum_of_its_pseudo_header() {
        let mut frame = ipv4(6, &tcp(4000));
        frame[50] = 7;
        let meta = of_domain(&mut frame, 0, gso(1, 1448)).unwrap();
        assert_eq!(meta.checksum, Checksum::Partial { start: 34, offset: 16 });
        assert_eq!(checksum::get(&frame, 50), Some(0x1811 + 6 + 4020));
        // The domain's own is believed.
        frame[50] = 7;
        of_domain(&mut frame, tx::CSUM_BLANK, gso(1, 1448)).unwrap();
        assert_eq!(frame[50], 7);
    }

    #[test]
    fn what_the_domain_would_not_find_is_done_for_it() {
        let (four, six) = (ipv4(6, &tcp(10)), ipv6(6, &tcp(10)));
        let of = |frame: &[u8], start, offset, wants: &Wants| {
            let checksum = Checksum::Partial { start, offset };
            Todo::of(&Meta { checksum, segmentation: None }, &[frame], frame.len(), wants)
        };
        assert_eq!((of(&four, 34, 16, &ALL), of(&six, 54, 16, &ALL)), (BLANK, BLANK));
        let finish = |start, field| Todo::Finish { start, field };
        let older = Wants { checksum6: false, ..ALL };
        assert_eq!((of(&four, 34, 16, &older), of(&six, 54, 16, &older)), (BLANK, finish(54, 70)));
        assert_eq!(of(&four, 34, 6, &ALL), finish(34, 40));
        assert_eq!(of(&[0; 60], 34, 16, &ALL), finish(34, 50));
        let none = Wants { offloads: Offloads::default(), ..older };
        assert_eq!(of(&four, 34, 16, &none), finish(34, 50));
        let mut done = four.clone();
        checksum::set(&mut done, 50, Transport::find(&four).unwrap().pseudo(&four));
        assert!(super::finish(&mut done, 34, 50));
        let whole = Transport::find(&done).unwrap();
        assert_eq!(checksum::combine(&[whole.pseudo(&done), checksum::sum(&done[34..])]), 0xffff);
        assert!(!super::finish(&mut done, 34, 63) && !super::finish(&mut done, 70, 50));
        // A sum of zero.
        let mut zero = vec![0xff; 4];
        assert!(super::finish(&mut zero, 0, 2));
        assert_eq!(zero, [0xff; 4]);
    }

    #[test]
    fn what_the_domain_does_not_take_is_dropped() {
        let segmentation = Segmentation { kind: SegmentKind::Tcp4, size: 1448, header_len: 54 };
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        let meta = Meta { checksum, segmentation: Some(segmentation) };
        let frame = ipv4(6, &tcp(4000));
        let of = |meta, wants| Todo::of(&meta, &[&frame], frame.len(), &wants);
        assert_eq!(of(meta, ALL), BLANK);
        let offloads = Offloads { checksum: true, tso4: false, tso6: true };
        assert_eq!(of(meta, Wants { offloads, ..ALL }), Todo::Drop);
        assert_eq!(of(Meta { checksum: Checksum::Verified, ..meta }, ALL), Todo::Drop);
        let wrong = Checksum::Partial { start: 30, offset: 16 };
        assert_eq!(of(Meta { checksum: wrong, ..meta }, ALL), Todo::Drop);
        assert_eq!(Todo::of(&Meta::default(), &[], 13, &ALL), Todo::Drop);
        let long = vec![0; FRAME_MAX + 1];
        assert_eq!(Todo::of(&Meta::default(), &[&long], long.len(), &ALL), Todo::Drop);
    }
}
