//! `features.h`: bits of `XENVER_get_features`.

pub const WRITABLE_PAGE_TABLES: u32 = 0;
pub const AUTO_TRANSLATED_PHYSMAP: u32 = 2;
pub const SUPERVISOR_MODE_KERNEL: u32 = 3;
pub const MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
pub const HIGHMEM_ASSIST: u32 = 6;
pub const GNTTAB_MAP_AVAIL_BITS: u32 = 7;
pub const DIRECT_MAPPED: u32 = 17;
