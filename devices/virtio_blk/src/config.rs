//! The device's configuration structure (5.2.4).

use disk::{SECTOR, Shape};

pub(crate) const WRITEBACK: u64 = 32;
const SIZE: usize = 60;
/// Sectors that one segment of a discard or of a write of zeroes may have: 1 GiB. Longer ones
/// would keep a reset waiting.
pub(crate) const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Segments of such a request.
pub(crate) const RANGES_MAX: u32 = 16;

/// All of it but the cache mode.
#[derive(Debug)]
pub(crate) struct Layout([u8; SIZE]);

impl Layout {
    pub(crate) fn new(shape: &Shape, queues: u16, queue_size: u16) -> Self {
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, value: u64, len: usize| {
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        let blocks = shape.physical_block / shape.logical_block.max(1);
        put(0, shape.bytes / SECTOR, 8);
        // A header and a status go with the data.
        put(12, u64::from(queue_size) - 2, 4);
        put(20, shape.logical_block.into(), 4);
        // Topology: physical blocks as a power of two of logical ones, no offset, the least I/O in
        // logical blocks, and no best one.
        put(24, blocks.max(1).ilog2().into(), 1);
        put(26, blocks.into(), 2);
        put(34, queues.into(), 2);
        // Discard: sectors, segments, alignment. Zeroes: sectors, segments, may unmap.
        put(36, RANGE_SECTORS_MAX.into(), 4);
        put(40, RANGES_MAX.into(), 4);
        put(44, u64::from(shape.physical_block) / SECTOR, 4);
        put(48, RANGE_SECTORS_MAX.into(), 4);
        put(52, RANGES_MAX.into(), 4);
        put(56, shape.discard.into(), 1);
        Self(bytes)
    }

    pub(crate) fn read(&self, writeback: bool, offset: u64, data: &mut [u8]) {
        virtio::read_config_bytes(&self.0, offset, data);
        let cache_mode = (offset..).zip(data).find(|(at, _)| *at == WRITEBACK);
        if let Some((_, byte)) = cache_mode {
            *byte = writeback.into();
        }
    }
}
