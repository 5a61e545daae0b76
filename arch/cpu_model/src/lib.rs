//! CPU models as data: which CPUID leaves and MSRs a guest sees.
//!
//! A [`CpuModel`] names features; an engine says what it supports as a [`CpuidTable`];
//! [`resolve`] makes the guest's table of both, or refuses and names what is missing. A
//! named model's required features are the same on every host; the rest follow the engine, so
//! a saved guest keeps its resolved table, and [`difference`] explains why another engine
//! cannot take it.

mod feature;
mod host;
mod model;
mod resolve;
mod table;
mod timing;
mod topology;
mod translate;

pub use feature::{Difference, Feature, Output, all as all_features, difference, intersect, mask};
pub use host::host_table;
pub use model::{CpuModel, HIDDEN, UnknownModel};
pub use resolve::{Options, Refusal, best_model, is_amd, resolve};
pub use table::{CpuidEntry, CpuidTable};
pub use timing::timing_leaves;
pub use translate::{TRANSLATE_ARCH_CAPABILITIES, TRANSLATE_FEATURE_MSRS, translate_features};
