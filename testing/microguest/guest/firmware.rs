//! What the loader told: PVH's start info, or Linux's boot_params.

use crate::hardware::load;

#[derive(Clone, Copy)]
pub struct Firmware {
    pvh: bool,
    info: u64,
}

/// Usable or not, from and how much.
#[derive(Clone, Copy)]
pub struct Range {
    pub from: u64,
    pub length: u64,
    pub kind: u32,
}

const LOW: u64 = 1 << 32;

impl Firmware {
    pub fn read(pvh: bool, info: u64) -> Self {
        Self { pvh, info }
    }

    pub fn protocol(&self) -> &'static str {
        if self.pvh { "PVH" } else { "the 64-bit protocol" }
    }

    /// The memory map.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        let (table, count, stride) = if self.pvh {
            let has_map = load::<u32>(self.info + 4) >= 1;
            let count = if has_map { load::<u32>(self.info + 48) } else { 0 };
            (load::<u64>(self.info + 40), count, 24)
        } else {
            (self.info + 0x2d0, load::<u8>(self.info + 0x1e8).into(), 20)
        };
        let count = if table < LOW { count.min(128) } else { 0 };
        (0..u64::from(count)).map(move |i| {
            let at = table + i * stride;
            Range { from: load(at), length: load(at + 8), kind: load(at + 16) }
        })
    }

    /// Bytes of usable memory.
    pub fn memory(&self) -> u64 {
        self.ranges().filter(|r| r.kind == 1).map(|r| r.length).sum()
    }

    /// Copies the command line and returns its length.
    pub fn command_line(&self, out: &mut [u8]) -> usize {
        let at = if self.pvh {
            load::<u64>(self.info + 24)
        } else {
            u64::from(load::<u32>(self.info + 0x228))
        };
        if at == 0 || at >= LOW {
            return 0;
        }
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = load(at + i as u64);
            if *byte == 0 {
                return i;
            }
        }
        out.len()
    }
}
