//! Transmission: the guest's descriptors (SDM, 3.3), taken as the network asks for frames.
//!
//! A frame that is to be cut into segments goes to the network as one, with the lengths and the
//! checksums that the controller would have put into each segment put in for the whole.

use crate::{
    E1000,
    regs::{Regs, cause, ctrl, reg},
};
use guest_mem::GuestMem;
use nic::{Checksum, FRAME_MAX, Meta, SegmentKind, Segmentation, Taken, checksum};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::Relaxed;

pub(crate) const DESCRIPTOR: u64 = 16;
/// Of a frame.
const HEADER: usize = 14;
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// TCTL: the transmitter is on.
const ENABLE: u32 = 1 << 1;

/// Bits of a descriptor's command; where one has two meanings, that of legacy ones first.
mod command {
    pub const END: u8 = 1;
    pub const INSERT_CHECKSUM: u8 = 1 << 2;
    pub const SEGMENT: u8 = 1 << 2;
    pub const REPORT: u8 = 3 << 3;
    pub const EXTENDED: u8 = 1 << 5;
    pub const TAG: u8 = 1 << 6;
    /// Of a context: TCP rather than UDP; IPv4 rather than IPv6.
    pub const TCP: u8 = 1;
    pub const IPV4: u8 = 1 << 1;
}

/// Options of a data descriptor: the IP header's checksum, the transport's.
const OPTION_IP: u8 = 1;
const OPTION_TRANSPORT: u8 = 1 << 1;
/// Type of an extended descriptor.
const TYPE_DATA: u32 = 1;
/// Status: done.
const DONE: u8 = 1;

/// Which bytes a checksum is of, and where it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub start: u8,
    pub at: u8,
    /// The last byte; 0 is the frame's.
    pub last: u16,
}

impl Range {
    fn of(word: u32) -> Self {
        let [start, at, low, high] = word.to_le_bytes();
        Self { start, at, last: u16::from_le_bytes([low, high]) }
    }

    fn insert(&self, frame: &mut [u8]) -> bool {
        let end = if self.last == 0 { frame.len() } else { usize::from(self.last) + 1 };
        checksum::insert(frame, self.start.into(), end, self.at.into())
    }
}

/// How to cut a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    pub ip: Range,
    pub transport: Range,
    pub tcp: bool,
    pub ipv4: bool,
    pub header: u8,
    pub size: u16,
}

/// What context descriptors loaded, which is kept for frames to come (SDM, 3.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub ip: Range,
    pub transport: Range,
    pub cut: Cut,
}

impl Context {
    fn load(&mut self, descriptor: &Descriptor) {
        let [first, second, _, last] = descriptor.words;
        let (ip, transport) = (Range::of(first), Range::of(second));
        if descriptor.command() & command::SEGMENT == 0 {
            (self.ip, self.transport) = (ip, transport);
            return;
        }
        self.cut = Cut {
            ip,
            transport,
            tcp: descriptor.command() & command::TCP != 0,
            ipv4: descriptor.command() & command::IPV4 != 0,
            header: (last >> 8) as u8,
            size: (last >> 16) as u16,
        };
    }
}

/// One of the ring.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    words: [u32; 4],
}

impl Descriptor {
    fn new(bytes: &[u8; 16]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self { words }
    }

    fn command(&self) -> u8 {
        (self.words[2] >> 24) as u8
    }

    fn is_extended(&self) -> bool {
        self.command() & command::EXTENDED != 0
    }

    fn is_context(&self) -> bool {
        self.is_extended() && self.words[2] >> 20 & 0xf != TYPE_DATA
    }

    fn address(&self) -> u64 {
        u64::from(self.words[1]) << 32 | u64::from(self.words[0])
    }

    fn len(&self) -> usize {
        let bits = if self.is_extended() { 0xf_ffff } else { 0xffff };
        (self.words[2] & bits) as usize
    }

    fn status(&self) -> u8 {
        self.words[3] as u8
    }
}

/// The ring as it was when a frame was asked for.
struct Ring {
    base: u64,
    count: u32,
    head: u32,
    tail: u32,
    context: Context,
    /// The type of tags, if they are inserted.
    tag: Option<u16>,
}

impl Ring {
    /// None if there is nothing to do.
    fn of(regs: &Regs) -> Option<Self> {
        let count = regs.get(reg::TDLEN) / DESCRIPTOR as u32;
        let (head, tail) = (regs.get(reg::TDH), regs.get(reg::TDT));
        let on = regs.get(reg::TCTL) & ENABLE != 0 && regs.link;
        let tags = regs.get(reg::CTRL) & ctrl::VLAN != 0;
        (on && head < count && tail < count && head != tail).then(|| Self {
            base: regs.wide(reg::TDBAL),
            count,
            head,
            tail,
            context: regs.context,
            tag: tags.then(|| regs.get(reg::VET) as u16),
        })
    }

    fn at(&self, index: u32) -> u64 {
        self.base.wrapping_add(u64::from(index) * DESCRIPTOR)
    }
}

/// A frame under construction at the front of the network's buffer.
struct Frame<'a> {
    buffer: &'a mut [u8],
    len: usize,
    /// The first and the last descriptor of the data, which say what is to be done.
    ends: Option<(Descriptor, Descriptor)>,
    /// It cannot be sent.
    spoiled: bool,
}

impl Frame<'_> {
    fn add(&mut self, descriptor: &Descriptor, memory: &GuestMem) {
        self.ends = Some((self.ends.map_or(*descriptor, |(first, _)| first), *descriptor));
        let end = self.len.saturating_add(descriptor.len());
        let room = self.buffer.len().min(FRAME_MAX).saturating_sub(TAG);
        let place = self.buffer.get_mut(self.len..end).filter(|_| end <= room);
        let read = place.is_some_and(|place| memory.read(descriptor.address(), place).is_ok());
        if read {
            self.len = end;
        } else {
            self.spoiled = true;
        }
    }

    /// What the network gets; none if it is no frame.
    fn finish(&mut self, context: &Context, tag: Option<u16>) -> Option<Taken> {
        let (first, last) = self.ends?;
        if self.spoiled || self.len < HEADER {
            return None;
        }
        let frame = self.buffer.get_mut(..self.len)?;
        let meta = if first.is_extended() {
            extended(frame, &first, context)?
        } else {
            // Where the sum starts is the first one's to say, the rest the last one's (SDM, 3.3.3).
            if last.command() & command::INSERT_CHECKSUM != 0 {
                let (start, at) = ((first.words[3] >> 8) as u8, (last.words[2] >> 16) as u8);
                Range { start, at, last: 0 }.insert(frame);
            }
            Meta::default()
        };
        // The tag is the last one's, but for what is to be cut (SDM, 3.3.3.1 and 3.3.7.1).
        let cut = first.is_extended() && first.command() & command::SEGMENT != 0;
        let tagging = if cut { first } else { last };
        let tag = tag.filter(|_| tagging.command() & command::TAG != 0);
        let meta = match tag {
            Some(kind) => self.insert_tag(kind, (tagging.words[3] >> 16) as u16, meta),
            None => meta,
        };
        Some(Taken { len: self.len, meta })
    }

    fn insert_tag(&mut self, kind: u16, tag: u16, mut meta: Meta) -> Meta {
        // There is room: frames end before that.
        self.buffer.copy_within(ADDRESSES..self.len, ADDRESSES + TAG);
        checksum::set(self.buffer, ADDRESSES, kind);
        checksum::set(self.buffer, ADDRESSES + 2, tag);
        self.len += TAG;
        if let Checksum::Partial { start, .. } = &mut meta.checksum {
            *start = start.saturating_add(TAG as u16);
        }
        if let Some(segmentation) = &mut meta.segmentation {
            segmentation.header_len = segmentation.header_len.saturating_add(TAG as u16);
        }
        meta
    }
}

/// Does what a data descriptor asks for.
fn extended(frame: &mut [u8], first: &Descriptor, context: &Context) -> Option<Meta> {
    if first.command() & command::SEGMENT != 0 {
        return whole(frame, &context.cut);
    }
    let options = (first.words[3] >> 8) as u8;
    if options & OPTION_IP != 0 {
        context.ip.insert(frame);
    }
    let mut meta = Meta::default();
    if options & OPTION_TRANSPORT != 0 {
        let Range { start, at, last } = context.transport;
        let field = usize::from(at) + 2;
        if last == 0 && at >= start && field <= frame.len() {
            let (start, offset) = (start.into(), u16::from(at - start));
            meta.checksum = Checksum::Partial { start, offset };
        } else {
            context.transport.insert(frame);
        }
    }
    Some(meta)
}

/// Makes the frame that the segments are cut from a frame of its own (SDM, 3.5).
fn whole(frame: &mut [u8], cut: &Cut) -> Option<Meta> {
    let header = usize::from(cut.header);
    let payload = frame.len().checked_sub(header)?;
    // UDP would be cut into fragments, which no driver asks for.
    if !cut.tcp || cut.size == 0 || header < HEADER {
        return None;
    }
    let ip = usize::from(cut.ip.start);
    let rest = frame.len().checked_sub(ip)?;
    if cut.ipv4 {
        // The length of the packet, and the header's checksum.
        let length = u16::try_from(rest).ok()?;
        let done = checksum::set(frame, ip + 2, length) && cut.ip.insert(frame);
        done.then_some(())?;
    } else {
        // The length of what follows the header.
        let length = u16::try_from(rest.checked_sub(40)?).ok()?;
        checksum::set(frame, ip + 4, length).then_some(())?;
    }
    let (start, at) = (usize::from(cut.transport.start), usize::from(cut.transport.at));
    // The driver's sum of the pseudo-header has no length, since each segment has another.
    let length = u32::try_from(frame.len().checked_sub(start)?).ok()?;
    let sum = checksum::combine(&[checksum::get(frame, at)?.into(), length]);
    checksum::set(frame, at, sum).then_some(())?;
    let offset = u16::try_from(at.checked_sub(start)?).ok()?;
    let kind = if cut.ipv4 { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
    let segmentation = Segmentation { kind, size: cut.size, header_len: cut.header.into() };
    Some(Meta {
        checksum: Checksum::Partial { start: cut.transport.start.into(), offset },
        segmentation: (payload > usize::from(cut.size)).then_some(segmentation),
    })
}

/// What became of the descriptors up to one.
struct Done {
    head: u32,
    context: Context,
    /// How many of them the driver wants to hear of.
    reports: usize,
    /// A frame ended: the frame, if it is one.
    taken: Option<Option<Taken>>,
}

impl E1000 {
    /// The next frame, at the front of the buffer. One that is none counts as empty, so that a
    /// driver that makes such without end does not keep the network here. Descriptors of a frame
    /// whose end is not in the ring stay there.
    pub(crate) fn next_frame(&self, buffer: &mut [u8]) -> Option<Taken> {
        let ring = Ring::of(&self.regs())?;
        let mut frame = Frame { buffer: &mut *buffer, len: 0, ends: None, spoiled: false };
        let (mut at, mut context) = (ring.head, ring.context);
        let (mut reports, mut done) = (Vec::new(), None);
        while at != ring.tail {
            let mut bytes = [0; DESCRIPTOR as usize];
            if self.memory.read(ring.at(at), &mut bytes).is_err() {
                break;
            }
            let descriptor = Descriptor::new(&bytes);
            if descriptor.command() & command::REPORT != 0 {
                reports.push((at, descriptor.status()));
            }
            at = (at + 1) % ring.count;
            if descriptor.is_context() {
                context.load(&descriptor);
            } else {
                frame.add(&descriptor, &self.memory);
            }
            let end = !descriptor.is_context() && descriptor.command() & command::END != 0;
            let taken = end.then(|| frame.finish(&context, ring.tag));
            // Contexts before a frame are done whether or not there is one.
            if end || frame.ends.is_none() {
                done = Some(Done { head: at, context, reports: reports.len(), taken });
            }
            if end {
                break;
            }
        }
        let done = done?;
        reports.truncate(done.reports);
        self.complete(&ring, &done, &reports, buffer);
        done.taken.map(|taken| taken.unwrap_or(Taken { len: 0, meta: Meta::default() }))
    }

    /// Tells the driver; at the end of the batch also by interrupts.
    fn complete(&self, ring: &Ring, done: &Done, reports: &[(u32, u8)], buffer: &[u8]) {
        for (index, status) in reports {
            // It was memory when it was read.
            drop(self.memory.write(ring.at(*index).wrapping_add(12), &[status | DONE]));
        }
        let mut regs = self.regs();
        regs.set(reg::TDH, done.head);
        regs.context = done.context;
        if !reports.is_empty() {
            regs.owed |= cause::TX_WRITTEN_BACK;
        }
        if done.head == regs.get(reg::TDT) {
            regs.owed |= cause::TX_EMPTY;
        }
        match done.taken {
            Some(Some(taken)) => {
                regs.stats.sent(buffer.get(..taken.len).unwrap_or_default());
                if taken.meta.segmentation.is_some() {
                    regs.stats.count(crate::stats::of::SEGMENTATIONS);
                }
                self.sent.fetch_add(1, Relaxed);
            }
            Some(None) => drop(self.dropped.fetch_add(1, Relaxed)),
            None => {}
        }
    }
}
