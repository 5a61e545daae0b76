//! Where a case's memory lies: the same linear addresses natively and in the guest, below
//! 4 GiB so that compatibility mode reaches them too. Everything around is absent.

pub const PAGE: usize = 4096;

/// A run of pages, in the order in which [`crate::Background`] holds them.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    pub linear: u64,
    pub pages: usize,
    pub writable: bool,
}

impl Area {
    pub const fn len(&self) -> usize {
        self.pages * PAGE
    }

    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }

    pub const fn end(&self) -> u64 {
        self.linear + self.len() as u64
    }
}

/// Executable and readable; the page behind it is absent.
pub const CODE: Area = Area { linear: 0x1000_0000, pages: 2, writable: false };
pub const DATA: Area = Area { linear: 0x2000_0000, pages: 3, writable: true };
/// Directly behind [`DATA`], so that an operand may begin in a writable page and end here.
pub const READ_ONLY: Area = Area { linear: DATA.end(), pages: 1, writable: false };
pub const STACK: Area = Area { linear: 0x3000_0000, pages: 2, writable: true };

/// What a case may read or write, in order.
pub const AREAS: [Area; 3] = [DATA, READ_ONLY, STACK];
/// Bytes of [`AREAS`].
pub const MEMORY: usize = DATA.len() + READ_ONLY.len() + STACK.len();
/// 64-bit words of [`AREAS`].
pub const WORDS: usize = MEMORY / 8;

/// What the code area holds where there is no instruction: INT3, which ends a case.
pub const FILL: u8 = 0xcc;

/// The place of a linear address in [`AREAS`].
pub fn offset_of(linear: u64) -> Option<usize> {
    let mut before = 0;
    for area in AREAS {
        if (area.linear..area.end()).contains(&linear) {
            return Some(before + (linear - area.linear) as usize);
        }
        before += area.len();
    }
    None
}

/// The linear address of a place in [`AREAS`].
pub fn linear_of(offset: usize) -> Option<u64> {
    let mut before = 0;
    for area in AREAS {
        if offset < before + area.len() {
            return Some(area.linear + (offset - before) as u64);
        }
        before += area.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_addresses_agree() {
        for offset in (0..MEMORY).step_by(512) {
            assert_eq!(linear_of(offset).and_then(offset_of), Some(offset));
        }
        assert_eq!((linear_of(MEMORY), offset_of(STACK.end())), (None, None));
    }
}
