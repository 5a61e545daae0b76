//! What a CD drive answers with. Numbers have their most significant byte first.

use crate::inquiry::{self, Product};

/// MMC, 5.3.1: profiles.
const CD_ROM: u16 = 0x0008;

/// The peripheral device type (SPC-4, 6.4.2).
pub(super) const KIND: u8 = 0x05;
pub(super) const PRODUCT: &Product = b"CD-ROM          ";

pub(super) fn inquiry() -> Vec<u8> {
    inquiry::standard(KIND, true, PRODUCT)
}

/// The last block and the size of each (MMC, 6.25).
pub(super) fn capacity(blocks: u64) -> Vec<u8> {
    let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), (super::BLOCK as u32).to_be_bytes()].concat()
}

/// Blocks as minutes, seconds and frames.
fn address(block: u32, minutes: bool) -> [u8; 4] {
    if !minutes {
        return block.to_be_bytes();
    }
    let frames = u64::from(block) + 150;
    let part = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    [0, part(frames / 75 / 60), part(frames / 75 % 60), part(frames % 75)]
}

/// One data track and the lead-out, or one session (MMC, 6.26).
pub(super) fn toc(format: u8, minutes: bool, track: u8, blocks: u64) -> Option<Vec<u8>> {
    const DATA_TRACK: u8 = 0x14;
    const LEAD_OUT: u8 = 0xaa;
    let end = u32::try_from(blocks).unwrap_or(u32::MAX);
    let entry = |number: u8, block: u32| {
        let mut entry = vec![0, DATA_TRACK, number, 0];
        entry.extend(address(block, minutes));
        entry
    };
    let entries = match (format, track) {
        (0, 0..=1) => [entry(1, 0), entry(LEAD_OUT, end)].concat(),
        (0, LEAD_OUT) => entry(LEAD_OUT, end),
        (1, _) => entry(1, 0),
        _ => return None,
    };
    let mut toc = (entries.len() as u16 + 2).to_be_bytes().to_vec();
    toc.extend([1, 1]);
    toc.extend(entries);
    Some(toc)
}

/// Features from one on: all, those that are current, or the one (MMC, 6.5). `disc` makes the
/// profile and reading current.
pub(super) fn configuration(kind: u8, from: u16, disc: bool) -> Vec<u8> {
    let current = u8::from(disc);
    let [high, low] = CD_ROM.to_be_bytes();
    // Number, version and persistence, additional bytes (MMC, 5.3).
    let features: [(u16, bool, &[u8]); 6] = [
        (0x0000, true, &[high, low, current, 0]),
        // Core: ATAPI.
        (0x0001, true, &[0, 0, 0, 2, 1, 0, 0, 0]),
        // Morphing: events are asked for.
        (0x0002, true, &[2, 0, 0, 0]),
        // Removable: a tray that can be locked and opened.
        (0x0003, true, &[0x29, 0, 0, 0]),
        // Random readable: 2048 bytes a block.
        (0x0010, disc, &[0, 0, 8, 0, 0, 1, 0, 0]),
        // CD read.
        (0x001e, disc, &[0, 0, 0, 0]),
    ];
    let mut data = vec![0; 4];
    let profile = if disc { CD_ROM } else { 0 };
    data.extend([[0, 0], profile.to_be_bytes()].concat());
    for (number, is_current, body) in features {
        let wanted = match kind {
            0 => number >= from,
            1 => number >= from && is_current,
            _ => number == from,
        };
        if wanted {
            data.extend(number.to_be_bytes());
            data.extend([3 & 2 | u8::from(is_current), body.len() as u8]);
            data.extend(body);
        }
    }
    let length = (data.len() as u32 - 4).to_be_bytes();
    data.iter_mut().zip(length).for_each(|(to, from)| *to = from);
    data
}

/// No event, and whether there is a disc and an open tray; of the media class only (MMC, 6.6).
pub(super) fn event_status(classes: u8, disc: bool, ejected: bool) -> Vec<u8> {
    const MEDIA: u8 = 4;
    if classes & 1 << MEDIA == 0 {
        return vec![0, 2, 0x80, 1 << MEDIA];
    }
    vec![0, 6, MEDIA, 1 << MEDIA, 0, u8::from(disc) << 1 | u8::from(ejected), 0, 0]
}

/// Complete, one session, one track (MMC, 6.22).
pub(super) fn disc_information() -> Vec<u8> {
    let mut data = vec![0, 32, 0x0e, 1, 1, 1, 1, 0x20];
    data.resize(34, 0);
    data
}

/// Mode pages: error recovery, and what the drive can (MMC, 7.1, 7.11). `None` for others.
pub(super) fn mode(page: u8, locked: bool, long: bool) -> Option<Vec<u8>> {
    const ERROR_RECOVERY: u8 = 0x01;
    const CAPABILITIES: u8 = 0x2a;
    const ALL: u8 = 0x3f;
    const SAVED: u8 = 3;
    if page >> 6 == SAVED {
        return None;
    }
    let recovery = [ERROR_RECOVERY, 6, 0, 5, 0, 0, 0, 0];
    let mut can = [0; 20];
    // A tray; can be locked, is locked, opens by command; one speed.
    (can[0], can[1]) = (CAPABILITIES, 18);
    (can[4], can[6]) = (0x70, 0x29 | u8::from(locked) << 1);
    for at in [8, 14] {
        (can[at], can[at + 1]) = (0x1b, 0x90);
    }
    let mut body = Vec::new();
    let page = page & 0x3f;
    if page == ERROR_RECOVERY || page == ALL {
        body.extend(recovery);
    }
    if page == CAPABILITIES || page == ALL {
        body.extend(can);
    }
    if body.is_empty() {
        return None;
    }
    let mut data = if long {
        let length = (body.len() as u16 + 6).to_be_bytes();
        vec![length[0], length[1], 0, 0, 0, 0, 0, 0]
    } else {
        vec![body.len() as u8 + 3, 0, 0, 0]
    };
    data.extend(body);
    Some(data)
}

/// No changer, and whether the tray is open (MMC, 6.13).
pub(super) fn mechanism(ejected: bool) -> Vec<u8> {
    vec![0, u8::from(ejected) << 4, 0, 0, 0, 1, 0, 0]
}
