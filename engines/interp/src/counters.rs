//! What the run loop counts, where it does something rare.

use engine::{Stats, stats::Value};

#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Rounds of the run loop: events, requests, and what asked to be looked at.
    pub boundaries: u64,
    /// Blocks that were looked for by their physical address.
    pub searches: u64,
    pub decoded: u64,
    /// Requests to forget code.
    pub stale: u64,
    /// By vector.
    pub exceptions: [u64; 32],
    pub interrupts: u64,
    pub nmis: u64,
    pub translation_ns: u64,
}

/// Mnemonics of exceptions (SDM volume 3, table 6-1).
const EXCEPTIONS: [&str; 22] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP",
    "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
];

impl Counters {
    pub fn exception(&mut self, vector: u8) {
        self.exceptions[usize::from(vector) % 32] += 1;
    }

    /// `inside` are exceptions of translated code that never got here.
    pub fn report(&self, stats: &mut Stats, walks: u64, inside: &[u64; 32]) {
        stats.group("translation").time("time", self.translation_ns);
        stats
            .group("run loop")
            .count("rounds", self.boundaries)
            .count("blocks decoded", self.decoded)
            .count("blocks searched", self.searches)
            .count("writes to code", self.stale)
            .count("page walks", walks);
        let events = stats.group("events");
        events.count("interrupts", self.interrupts).count("NMIs", self.nmis);
        for (vector, count) in self.exceptions.iter().enumerate() {
            let count = &(count + inside[vector]);
            if *count != 0 || vector == 14 {
                let name = EXCEPTIONS.get(vector).copied().unwrap_or("other exceptions");
                events.add(name, Value::Count(*count));
            }
        }
    }
}
