//! Descriptor chains: what a driver put into a queue as one request.

use guest_mem::{GuestMem, RingMemory};
use std::{collections::VecDeque, fmt, sync::Arc};
use virtio_queue::DescriptorChain;

/// The driver broke a rule; the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestError(pub &'static str);

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for GuestError {}

/// Guest memory in the order of a chain's descriptors, taken from the front. All of it was
/// memory when the chain was taken.
#[derive(Clone)]
pub struct Span {
    memory: Arc<GuestMem>,
    /// Guest-physical address and length of each piece; none is empty.
    pieces: VecDeque<(u64, u32)>,
    len: u64,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl Span {
    fn new(memory: &Arc<GuestMem>) -> Self {
        Self { memory: memory.clone(), pieces: VecDeque::new(), len: 0 }
    }

    /// Appends what must be memory of one slot.
    fn push(&mut self, gpa: u64, len: u32) -> Result<(), GuestError> {
        if len == 0 {
            return Ok(());
        }
        let layout = self.memory.layout();
        let inside = layout.find(gpa).is_some_and(|(region, offset)| {
            u64::from(len) <= region.slot.len - offset && region.slot.writable
        });
        if !inside {
            return Err(GuestError("a descriptor names what is not memory"));
        }
        self.pieces.push_back((gpa, len));
        self.len += u64::from(len);
        Ok(())
    }

    /// Bytes that are left.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address and length of each piece, for a device to which the place says something.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.pieces.iter().copied()
    }

    /// Takes a piece of at most `max` bytes from the front.
    fn take(&mut self, max: usize) -> Option<(u64, usize)> {
        let (gpa, len) = *self.pieces.front().filter(|_| max > 0)?;
        let here = usize::try_from(len).unwrap_or(usize::MAX).min(max);
        self.pieces.pop_front();
        let rest = len - here as u32;
        if rest > 0 {
            self.pieces.push_front((gpa + here as u64, rest));
        }
        self.len -= here as u64;
        Some((gpa, here))
    }

    /// Copies from guest memory; returns how much there was.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some((gpa, len)) = self.take(out.len() - done) {
            let to = &mut out[done..done + len];
            // What is no longer memory reads as zeroes.
            if self.memory.read(gpa, to).is_err() {
                to.fill(0);
            }
            done += len;
        }
        done
    }

    /// Copies to guest memory, and tells of it; returns how much there was room for.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while let Some((gpa, len)) = self.take(data.len() - done) {
            if let Some(mut buffer) = self.memory.dma(gpa, len) {
                buffer.write(&data[done..done + len]);
            }
            done += len;
        }
        done
    }

    /// The first `len` bytes, or all there are, which are no longer part of this.
    pub fn split_front(&mut self, len: u64) -> Self {
        let mut front = Self::new(&self.memory);
        let mut wanted = usize::try_from(len).unwrap_or(usize::MAX);
        while let Some((gpa, here)) = self.take(wanted) {
            front.pieces.push_back((gpa, here as u32));
            front.len += here as u64;
            wanted -= here;
        }
        front
    }
}

/// One request of the driver.
#[derive(Clone, Debug)]
pub struct Chain {
    pub(crate) head: u16,
    /// What the driver gives.
    pub readable: Span,
    /// What it wants filled.
    pub writable: Span,
}

impl Chain {
    /// Follows the descriptors. The crate that walks them ends a chain silently where it is
    /// malformed; what tells is that the last one it gave names a next one.
    pub(crate) fn collect(
        chain: DescriptorChain<&RingMemory>,
        memory: &Arc<GuestMem>,
    ) -> Result<Self, GuestError> {
        let head = chain.head_index();
        let mut this = Self { head, readable: Span::new(memory), writable: Span::new(memory) };
        let mut complete = false;
        for descriptor in chain {
            let (gpa, len) = (descriptor.addr().0, descriptor.len());
            if descriptor.is_write_only() {
                this.writable.push(gpa, len)?;
            } else if this.writable.is_empty() {
                this.readable.push(gpa, len)?;
            } else {
                // 2.7.4.2
                return Err(GuestError("a chain has a readable descriptor after a writable one"));
            }
            complete = !descriptor.has_next();
        }
        if complete { Ok(this) } else { Err(GuestError("a chain has no end")) }
    }
}
