//! A guest that checks its own results.

use crate::common::says;
use testkit::{Error, Guest};

/// Computes with integers, floating point and vectors, by all of `stress-ng`'s methods in turn,
/// on memory that others write, and with each CPU several times over; a wrong result of one is
/// a failure of all. More of them, and for longer, are for a person to run: see `CONTRIBUTING.md`.
pub fn stress(guest: &mut Guest, cpus: u32) -> Result<(), Error> {
    let classes = ["cpu", "matrix", "vm", "cache", "atomic"];
    let stressors: String = classes.iter().map(|class| format!(" --{class} {cpus}")).collect();
    let line = format!("stress-ng{stressors} --vm-bytes 16M --timeout 8 --verify");
    let said = says(guest, &line)?;
    assert!(said.contains("successful run completed"), "{said}");
    Ok(())
}
