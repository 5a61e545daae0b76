//! What a driver tells of the guest's memory (5.5.6.3).

use std::fmt;
use virtio::Span;

/// More of them than there are tags say nothing new.
const ENTRIES: usize = 64;
/// `le16 tag; le64 val`, packed.
const ENTRY: usize = 10;

/// What a value is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    SwapIn,
    SwapOut,
    MajorFaults,
    MinorFaults,
    Free,
    Total,
    Available,
    Caches,
    HugePagesAllocated,
    HugePageFailures,
}

impl Tag {
    const ALL: [Self; 10] = [
        Self::SwapIn,
        Self::SwapOut,
        Self::MajorFaults,
        Self::MinorFaults,
        Self::Free,
        Self::Total,
        Self::Available,
        Self::Caches,
        Self::HugePagesAllocated,
        Self::HugePageFailures,
    ];

    /// Its words, and whether the value is in bytes.
    pub fn name(self) -> (&'static str, bool) {
        match self {
            Self::SwapIn => ("swapped in", true),
            Self::SwapOut => ("swapped out", true),
            Self::MajorFaults => ("major faults", false),
            Self::MinorFaults => ("minor faults", false),
            Self::Free => ("free", true),
            Self::Total => ("total", true),
            Self::Available => ("available", true),
            Self::Caches => ("caches", true),
            Self::HugePagesAllocated => ("huge pages allocated", false),
            Self::HugePageFailures => ("huge page failures", false),
        }
    }
}

/// What the driver said last; empty if it has said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub values: Vec<(Tag, u64)>,
    /// Counts buffers that were looked at.
    pub(crate) generation: u64,
}

impl Statistics {
    /// Reads a buffer; tags that are not known, and repeated ones, are passed over.
    pub(crate) fn take(&mut self, from: &mut Span) {
        self.values.clear();
        self.generation = self.generation.wrapping_add(1);
        let mut entry = [0; ENTRY];
        for _ in 0..ENTRIES {
            if from.read(&mut entry) < ENTRY {
                return;
            }
            let [t0, t1, value @ ..] = entry;
            let tag = Tag::ALL.get(usize::from(u16::from_le_bytes([t0, t1])));
            if let Some(tag) = tag
                && self.get(*tag).is_none()
            {
                self.values.push((*tag, u64::from_le_bytes(value)));
            }
        }
    }

    pub fn get(&self, tag: Tag) -> Option<u64> {
        self.values.iter().find(|(known, _)| *known == tag).map(|(_, value)| *value)
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (tag, value) in &self.values {
            let (name, bytes) = tag.name();
            if bytes {
                writeln!(f, "{name:<22}{:>10} KiB", value >> 10)?;
            } else {
                writeln!(f, "{name:<22}{value:>10}")?;
            }
        }
        Ok(())
    }
}
