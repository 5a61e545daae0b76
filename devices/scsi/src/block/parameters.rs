//! UNMAP and WRITE SAME (SBC-3, 5.28 and 5.43).

use super::{DiskUnit, UNMAP_BYTES_MAX, blocks, op, unprotected, vital::RANGES_MAX};
use crate::{CDB, Change, Outcome, Sense, number};

/// WRITE SAME's second byte.
const UNMAP: u8 = 8;
const ANCHOR: u8 = 0x10;
/// There are no data, which stands for zeroes; of the long command only.
const NO_DATA: u8 = 1;
/// Bytes of which WRITE SAME's pattern is repeated into one piece of work.
const PATTERN: usize = 64 << 10;
/// Bytes of a header and of each range of UNMAP.
const HEADER: usize = 8;
const RANGE: usize = 16;

impl DiskUnit {
    /// The ranges of UNMAP's list.
    pub(super) fn unmap(&self, data: &[u8], sync: bool) -> Result<Outcome, Sense> {
        // What is cut short ends early (SBC-3, 5.28.2).
        let ranges = data.get(HEADER..).ok_or(Sense::PARAMETER_LENGTH)?;
        let ranges =
            ranges.get(..ranges.len().min(number(data, 2, 2) as usize)).unwrap_or_default();
        if ranges.len() / RANGE > RANGES_MAX {
            return Err(Sense::BAD_PARAMETER);
        }
        let (mut changes, mut sum) = (Vec::new(), 0u64);
        for range in ranges.chunks_exact(RANGE) {
            let (at, len) = self.range(number(range, 0, 8), number(range, 8, 4))?;
            sum = sum.saturating_add(len);
            if len > 0 {
                changes.push(Change::Discard { at, len });
            }
        }
        if sum > UNMAP_BYTES_MAX {
            return Err(Sense::BAD_PARAMETER);
        }
        Ok(Outcome::Change { changes, sync })
    }

    /// What WRITE SAME is to fill, and whether it may give storage back.
    fn extent(&self, cdb: &[u8; CDB]) -> Result<(u64, u64), Sense> {
        unprotected(cdb)?;
        self.writable()?;
        if cdb[1] & ANCHOR != 0 || cdb[1] & UNMAP != 0 && !self.shape.discard {
            return Err(Sense::BAD_FIELD);
        }
        let (first, count) = blocks(cdb);
        let (at, len) = self.range(first, count)?;
        // No blocks are none, as the block limits say.
        if len == 0 || len > UNMAP_BYTES_MAX { Err(Sense::BAD_FIELD) } else { Ok((at, len)) }
    }

    pub(super) fn write_same(&self, cdb: &[u8; CDB], sync: bool) -> Result<Outcome, Sense> {
        let (at, len) = self.extent(cdb)?;
        if cdb[1] & NO_DATA == 0 {
            return Ok(Outcome::Parameters(self.shape.logical_block as usize));
        }
        if cdb[0] != op::WRITE_SAME_16 {
            return Err(Sense::BAD_FIELD);
        }
        let unmap = cdb[1] & UNMAP != 0;
        Ok(Outcome::Change { changes: vec![Change::Zero { at, len, unmap }], sync })
    }

    /// The same with the block that is to be written.
    pub(super) fn same(&self, cdb: &[u8; CDB], data: &[u8], sync: bool) -> Result<Outcome, Sense> {
        let (at, len) = self.extent(cdb)?;
        let block = data.get(..self.shape.logical_block as usize);
        let block = block.filter(|block| !block.is_empty()).ok_or(Sense::PARAMETER_LENGTH)?;
        let change = if block.iter().all(|byte| *byte == 0) {
            Change::Zero { at, len, unmap: cdb[1] & UNMAP != 0 }
        } else {
            let most = usize::try_from(len).unwrap_or(usize::MAX).min(PATTERN).max(block.len());
            Change::Fill { at, len, pattern: block.repeat(most / block.len()) }
        };
        Ok(Outcome::Change { changes: vec![change], sync })
    }
}
