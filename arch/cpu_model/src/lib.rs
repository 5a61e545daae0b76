//! CPU models as data: which CPUID leaves and MSRs a guest sees.

mod table;

pub use table::{CpuidEntry, CpuidTable};
