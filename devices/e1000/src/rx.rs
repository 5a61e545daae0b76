//! Reception: which frames are for the guest (SDM, 3.2.1), and its descriptors (3.2.3).

use crate::{
    E1000,
    regs::{ADDRESS_VALID, ADDRESSES, Regs, cause, ctrl, reg},
    stats,
    tx::DESCRIPTOR,
};
use nic::{Checksum, FRAME_MAX, Meta, NoRoom, checksum};
use std::sync::atomic::Ordering::Relaxed;

/// Bits of RCTL.
mod rctl {
    pub const ENABLE: u32 = 1 << 1;
    pub const ALL_UNICAST: u32 = 1 << 3;
    pub const ALL_MULTICAST: u32 = 1 << 4;
    pub const LONG: u32 = 1 << 5;
    pub const BROADCAST: u32 = 1 << 15;
    pub const VLAN_FILTER: u32 = 1 << 18;
    /// Buffers are sixteen times as long.
    pub const EXTENDED: u32 = 1 << 25;
    /// The frame check sequence is left out.
    pub const STRIP: u32 = 1 << 26;
}

/// RXCSUM: the IP header's checksum is looked at; the transport's.
const CHECK_IP: u32 = 1 << 8;
const CHECK_TRANSPORT: u32 = 1 << 9;

/// Status of a descriptor.
mod status {
    pub const DONE: u8 = 1;
    pub const END: u8 = 1 << 1;
    pub const TAGGED: u8 = 1 << 3;
    pub const TRANSPORT_CHECKED: u8 = 1 << 5;
    pub const IP_CHECKED: u8 = 1 << 6;
    /// The address fits by its hash only.
    pub const INEXACT: u8 = 1 << 7;
}

const HEADER: usize = 14;
const TAG: usize = 4;
const CHECK: usize = 4;
/// Without the frame check sequence.
const SHORTEST: usize = 60;
const LONGEST: usize = 1518;
const LONGEST_EVER: usize = 16_384 - CHECK;
const IPV4: u16 = 0x0800;
const BROADCAST: [u8; 6] = [0xff; 6];

/// What is known of a frame when it goes to a buffer.
struct Arrival {
    status: u8,
    special: u16,
}

/// Where it goes.
struct Ring {
    base: u64,
    count: u32,
    head: u32,
    free: u32,
    buffer: usize,
}

impl Ring {
    fn of(regs: &Regs) -> Self {
        let count = regs.get(reg::RDLEN) / DESCRIPTOR as u32;
        let (head, tail) = (regs.get(reg::RDH), regs.get(reg::RDT));
        // From the head on up to the tail, which is the driver's.
        let free = if head < count && tail < count { (tail + count - head) % count } else { 0 };
        let rctl = regs.get(reg::RCTL);
        let length = 2048 >> (rctl >> 16 & 3);
        let buffer = if rctl & rctl::EXTENDED != 0 { length * 16 } else { length };
        Self { base: regs.wide(reg::RDBAL), count, head, free, buffer }
    }
}

/// How the address fits, if it does: a status.
fn filter(regs: &Regs, to: [u8; 6]) -> Option<u8> {
    let rctl = regs.get(reg::RCTL);
    let exact = (0..ADDRESSES).any(|n| {
        let at = reg::RA + 8 * n;
        let (low, high) = (regs.get(at), regs.get(at + 4));
        let [a, b, c, d] = low.to_le_bytes();
        let [e, f, ..] = high.to_le_bytes();
        high & ADDRESS_VALID != 0 && [a, b, c, d, e, f] == to
    });
    let group = to[0] & 1 != 0;
    let all = if group { rctl::ALL_MULTICAST } else { rctl::ALL_UNICAST };
    if exact || rctl & all != 0 || to == BROADCAST && rctl & rctl::BROADCAST != 0 {
        return Some(0);
    }
    // Which twelve bits of the address are looked up.
    let shift = [4, 3, 2, 0].get((rctl >> 12 & 3) as usize).copied().unwrap_or(0);
    let hash = u32::from(u16::from_le_bytes([to[4], to[5]])) >> shift & 0xfff;
    let word = regs.get(reg::MTA + 4 * (hash >> 5));
    (group && word >> (hash & 31) & 1 != 0).then_some(status::INEXACT)
}

/// The tag of a frame, if it has one of the type that the controller looks for.
fn tag(regs: &Regs, frame: &[u8]) -> Option<u16> {
    let kind = checksum::get(frame, 12)?;
    let tag = checksum::get(frame, 14)?;
    (u32::from(kind) == regs.get(reg::VET)).then_some(tag)
}

/// Whether the frame is for the guest; takes off its tag where that is asked for.
fn admit(regs: &mut Regs, frame: &mut Vec<u8>, checked: bool) -> Option<Arrival> {
    let to: [u8; 6] = *frame.first_chunk()?;
    let mut status = filter(regs, to)?;
    let rctl = regs.get(reg::RCTL);
    let tag = tag(regs, frame);
    let longest = match tag {
        _ if rctl & rctl::LONG != 0 => LONGEST_EVER,
        Some(_) => LONGEST - CHECK + TAG,
        None => LONGEST - CHECK,
    };
    if frame.len() > longest {
        regs.stats.count(stats::of::OVERSIZE);
        return None;
    }
    let mut special = 0;
    if let Some(tag) = tag {
        let id = u32::from(tag) & 0xfff;
        let known = regs.get(reg::VFTA + 4 * (id >> 5)) >> (id & 31) & 1 != 0;
        if rctl & rctl::VLAN_FILTER != 0 && !known {
            return None;
        }
        if regs.get(reg::CTRL) & ctrl::VLAN != 0 {
            (special, status) = (tag, status | status::TAGGED);
            frame.drain(12..12 + TAG);
        }
    }
    let looks = regs.get(reg::RXCSUM);
    if checked && looks & CHECK_TRANSPORT != 0 {
        status |= status::TRANSPORT_CHECKED;
    }
    if checked && looks & CHECK_IP != 0 && checksum::get(frame, 12) == Some(IPV4) {
        status |= status::IP_CHECKED;
    }
    Some(Arrival { status, special })
}

impl E1000 {
    /// A frame for the guest. One that the guest does not want is gone.
    pub(crate) fn arrive(
        &self,
        frame: &mut Vec<u8>,
        meta: &Meta,
        parts: &[&[u8]],
    ) -> Result<(), NoRoom> {
        frame.clear();
        let len = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
        if meta.segmentation.is_some() || !(HEADER..=FRAME_MAX).contains(&len) {
            self.dropped.fetch_add(1, Relaxed);
            return Ok(());
        }
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        let checked = match meta.checksum {
            Checksum::Unknown => false,
            Checksum::Verified => true,
            Checksum::Partial { start, offset } => {
                let start = usize::from(start);
                checksum::insert(frame, start, len, start + usize::from(offset))
            }
        };
        let mut regs = self.regs();
        if regs.get(reg::RCTL) & rctl::ENABLE == 0 || !regs.link {
            return self.refuse(&mut regs);
        }
        let Some(arrival) = admit(&mut regs, frame, checked) else {
            self.filtered.fetch_add(1, Relaxed);
            return Ok(());
        };
        // On the wire no frame is shorter.
        frame.resize(frame.len().max(SHORTEST), 0);
        let from = (regs.get(reg::RXCSUM) & 0xff) as usize;
        let sum = checksum::sum(frame.get(from..).unwrap_or_default());
        let length = frame.len();
        if regs.get(reg::RCTL) & rctl::STRIP == 0 {
            frame.extend(crc32fast::hash(frame).to_le_bytes());
        }
        let ring = Ring::of(&regs);
        let needed = frame.len().div_ceil(ring.buffer) as u32;
        if ring.free < needed {
            regs.stats.count(stats::of::NO_BUFFER);
            return self.refuse(&mut regs);
        }
        drop(regs);
        self.fill(&ring, frame, &arrival, sum);

        let mut regs = self.regs();
        regs.set(reg::RDH, (ring.head + needed) % ring.count);
        regs.owed |= cause::RX_TIMER;
        // A half, a quarter, an eighth of all.
        let few = ring.count >> (1 + (regs.get(reg::RCTL) >> 8 & 3)).min(3);
        if ring.free > few && ring.free - needed <= few {
            regs.owed |= cause::RX_FEW;
        }
        regs.stats.received(frame.get(..length).unwrap_or_default());
        self.received.fetch_add(1, Relaxed);
        Ok(())
    }

    fn refuse(&self, regs: &mut Regs) -> Result<(), NoRoom> {
        regs.starved = true;
        self.refused.fetch_add(1, Relaxed);
        Err(NoRoom)
    }

    /// Puts the frame into buffers, of which there are enough. What is no memory swallows it.
    fn fill(&self, ring: &Ring, frame: &[u8], arrival: &Arrival, sum: u16) {
        let pieces = frame.chunks(ring.buffer);
        let last = pieces.len().saturating_sub(1);
        let mut index = ring.head;
        for (n, piece) in pieces.enumerate() {
            let at = ring.base.wrapping_add(u64::from(index) * DESCRIPTOR);
            let mut address = [0; 8];
            let known = self.memory.read(at, &mut address).is_ok();
            let written = self.memory.write(u64::from_le_bytes(address), piece);
            if !known || written.is_err() {
                self.lost.fetch_add(1, Relaxed);
            }
            let status =
                if n == last { arrival.status | status::DONE | status::END } else { status::DONE };
            let [l0, l1] = (piece.len() as u16).to_le_bytes();
            let [s0, s1] = sum.to_le_bytes();
            let [t0, t1] = arrival.special.to_le_bytes();
            drop(self.memory.write(at.wrapping_add(8), &[l0, l1, s0, s1, status, 0, t0, t1]));
            index = (index + 1) % ring.count;
        }
    }
}
