//! INQUIRY, and a disk's own pages of vital product data (SBC-3, 6.6).

use super::{DiskUnit, KIND, PRODUCT, UNMAP_BYTES_MAX};
use crate::{
    CDB, Sense,
    inquiry::{self, page},
};

/// Ranges of one UNMAP.
pub(super) const RANGES_MAX: usize = 256;
const BLOCK_PAGES: &[u8] = &[page::BLOCK_LIMITS, page::CHARACTERISTICS, page::PROVISIONING];

impl DiskUnit {
    pub(super) fn inquiry(&self, cdb: &[u8; CDB]) -> Result<Vec<u8>, Sense> {
        let (vital, code) = (cdb[1] & 1 != 0, cdb[2]);
        if !vital {
            let standard = inquiry::standard(KIND, false, PRODUCT);
            return if code == 0 { Ok(standard) } else { Err(Sense::BAD_FIELD) };
        }
        let body = match code {
            page::BLOCK_LIMITS => self.limits(),
            page::CHARACTERISTICS => characteristics(),
            page::PROVISIONING => self.provisioning(),
            _ => {
                let page = self.identity.page(KIND, code, PRODUCT, BLOCK_PAGES);
                return page.ok_or(Sense::BAD_FIELD);
            }
        };
        Ok(inquiry::with_header(KIND, code, &body))
    }

    /// Block limits (SBC-3, 6.6.4).
    fn limits(&self) -> Vec<u8> {
        let most = UNMAP_BYTES_MAX / self.block();
        let grain = (u64::from(self.shape.physical_block) / self.block()).max(1);
        let mut body = vec![0; 60];
        let mut put = |at: usize, value: u64, len: usize| {
            let bytes = value.to_be_bytes();
            let from = bytes.len().saturating_sub(len);
            body.iter_mut().skip(at).zip(&bytes[from..]).for_each(|(to, from)| *to = *from);
        };
        // Offsets are those of the page, less the header's four bytes. WRITE SAME of no blocks does
        // not mean all.
        put(0, 1, 1);
        // The best transfers begin and end at physical blocks; no longest and no best length.
        put(2, grain, 2);
        if self.thin() {
            put(16, most, 4);
            put(20, RANGES_MAX as u64, 4);
            put(24, grain, 4);
            // The grain's alignment is 0, and valid.
            put(28, 1 << 31, 4);
        }
        put(32, most, 8);
        body
    }

    /// Logical block provisioning: UNMAP and WRITE SAME give blocks back; they need not read as
    /// zeroes after UNMAP (SBC-3, 6.6.6).
    fn provisioning(&self) -> Vec<u8> {
        if self.thin() { vec![0, 0xe0, 2, 0] } else { vec![0; 4] }
    }
}

/// Nothing rotates (SBC-3, 6.6.2).
fn characteristics() -> Vec<u8> {
    let mut body = vec![0, 1];
    body.resize(60, 0);
    body
}
