//! Statistics (SDM, 13.7): counters that stick at their end, and are cleared when they are read.

/// Where they are.
pub(crate) const FIRST: u32 = 0x4000;
pub(crate) const LAST: u32 = 0x40fc;
const COUNT: usize = ((LAST - FIRST) / 4 + 1) as usize;

/// Offsets of those that are counted here; what a wire can do to frames does not happen.
pub(crate) mod of {
    pub const RECEIVED_64: u32 = 0x405c;
    pub const RECEIVED: u32 = 0x4074;
    pub const RECEIVED_BROADCAST: u32 = 0x4078;
    pub const RECEIVED_MULTICAST: u32 = 0x407c;
    pub const SENT: u32 = 0x4080;
    pub const RECEIVED_OCTETS: u32 = 0x4088;
    pub const SENT_OCTETS: u32 = 0x4090;
    pub const NO_BUFFER: u32 = 0x40a0;
    pub const OVERSIZE: u32 = 0x40ac;
    pub const ALL_RECEIVED_OCTETS: u32 = 0x40c0;
    pub const ALL_SENT_OCTETS: u32 = 0x40c8;
    pub const ALL_RECEIVED: u32 = 0x40d0;
    pub const ALL_SENT: u32 = 0x40d4;
    pub const SENT_64: u32 = 0x40d8;
    pub const SENT_MULTICAST: u32 = 0x40f0;
    pub const SENT_BROADCAST: u32 = 0x40f4;
    pub const SEGMENTATIONS: u32 = 0x40f8;
}

/// Bytes of the frame check sequence, which count.
const CHECK: usize = 4;
const SHORTEST: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stats([u32; COUNT]);

impl Default for Stats {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

/// Which counter of frames by their length: 64, to 127, to 255, to 511, to 1023, more.
fn class(length: usize) -> u32 {
    let last = [64, 127, 255, 511, 1023].iter().position(|last| length <= *last);
    4 * last.unwrap_or(5) as u32
}

impl Stats {
    fn place(&mut self, offset: u32) -> Option<&mut u32> {
        self.0.get_mut((offset.checked_sub(FIRST)? / 4) as usize)
    }

    pub(crate) fn read(&mut self, offset: u32) -> u32 {
        self.place(offset).map_or(0, std::mem::take)
    }

    pub(crate) fn count(&mut self, offset: u32) {
        if let Some(place) = self.place(offset) {
            *place = place.saturating_add(1);
        }
    }

    /// One of 64 bits, in two registers.
    fn add(&mut self, offset: u32, by: usize) {
        let index = (offset.saturating_sub(FIRST) / 4) as usize;
        if let Some([low, high]) = self.0.get_mut(index..).and_then(|rest| rest.first_chunk_mut()) {
            let sum = (u64::from(*high) << 32 | u64::from(*low)).saturating_add(by as u64);
            (*low, *high) = (sum as u32, (sum >> 32) as u32);
        }
    }

    pub(crate) fn received(&mut self, frame: &[u8]) {
        let length = frame.len().max(SHORTEST - CHECK) + CHECK;
        for offset in [of::RECEIVED, of::ALL_RECEIVED, of::RECEIVED_64 + class(length)] {
            self.count(offset);
        }
        self.group(frame, of::RECEIVED_BROADCAST, of::RECEIVED_MULTICAST);
        self.add(of::RECEIVED_OCTETS, length);
        self.add(of::ALL_RECEIVED_OCTETS, length);
    }

    pub(crate) fn sent(&mut self, frame: &[u8]) {
        let length = frame.len().max(SHORTEST - CHECK) + CHECK;
        for offset in [of::SENT, of::ALL_SENT, of::SENT_64 + class(length)] {
            self.count(offset);
        }
        self.group(frame, of::SENT_BROADCAST, of::SENT_MULTICAST);
        self.add(of::SENT_OCTETS, length);
        self.add(of::ALL_SENT_OCTETS, length);
    }

    fn group(&mut self, frame: &[u8], broadcast: u32, multicast: u32) {
        match frame.first_chunk() {
            Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => self.count(broadcast),
            Some([first, ..]) if first & 1 != 0 => self.count(multicast),
            _ => {}
        }
    }

    pub(crate) fn save(&self) -> Vec<u32> {
        self.0.to_vec()
    }

    pub(crate) fn restore(saved: &[u32]) -> Option<Self> {
        saved.try_into().ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_by_length_and_kind() {
        let mut stats = Stats::default();
        stats.received(&[0xff; 42]);
        stats.received(&[1; 61]);
        stats.received(&[2; 1514]);
        stats.sent(&[2; 100]);
        assert_eq!((stats.read(0x4074), stats.read(0x4074)), (3, 0), "cleared by reading");
        assert_eq!((stats.read(0x405c), stats.read(0x4060), stats.read(0x4070)), (1, 1, 1));
        assert_eq!((stats.read(0x4078), stats.read(0x407c)), (1, 1));
        assert_eq!((stats.read(0x4088), stats.read(0x408c)), (64 + 65 + 1518, 0));
        assert_eq!((stats.read(0x4080), stats.read(0x40dc), stats.read(0x4090)), (1, 1, 104));
    }

    #[test]
    fn counters_stick_and_carry() {
        let mut stats = Stats([u32::MAX - 1; COUNT]);
        stats.sent(&[2; 100]);
        stats.sent(&[2; 100]);
        assert_eq!(stats.read(of::SENT), u32::MAX);
        assert_eq!((stats.read(0x4090), stats.read(0x4094)), (206, u32::MAX));
        stats.add(LAST, 1);
    }
}
