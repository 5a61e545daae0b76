//! What a translator counts: on its own side of the border, never in translated code.

use crate::{state::PLANES, table::Table};
use engine::Stats;
use iced_x86::Mnemonic;
use std::time::Instant;

/// Why translated code was left for the run loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An exit that is not linked.
    Unlinked,
    /// A jump whose target the table of jumps has not.
    Jump,
    /// The word of requests.
    Poll,
    /// A handler set RIP.
    Flow,
    /// A handler asked to leave: an event, a device, code that was written.
    Asked,
    /// The address space or the rights are others.
    Space,
    /// An exception.
    Fault,
    /// HLT and whatever ends a run.
    Stop,
    /// Counted instructions are used up.
    Budget,
}

impl Cause {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Unlinked, "exit not linked"),
        (Self::Jump, "jump not in the table"),
        (Self::Poll, "request pending"),
        (Self::Flow, "handler jumped"),
        (Self::Asked, "handler asked"),
        (Self::Space, "address space or rights changed"),
        (Self::Fault, "exception"),
        (Self::Stop, "halt or stop"),
        (Self::Budget, "budget of instructions"),
    ];
}

#[derive(Clone, Debug)]
pub struct Counters {
    pub blocks: u64,
    pub refused: u64,
    pub insns: u64,
    /// Instructions of translated blocks that are always callouts.
    pub untranslated: u64,
    pub guest_bytes: u64,
    pub host_bytes: u64,
    pub cold_bytes: u64,
    pub removed: u64,
    pub evictions: u64,
    pub evicted: u64,
    pub longest_eviction_ns: u64,
    pub entries: u64,
    pub links: u64,
    /// Misses of the table of jumps that were entered in it.
    pub jumps: u64,
    /// Callouts after which translated code went on elsewhere.
    pub stayed: u64,
    /// Raised and delivered there, by vector.
    pub exceptions: [u64; 32],
    /// Asked for by translated code.
    pub tsc_reads: u64,
    pub cpuids: u64,
    /// Accesses that missed the TLB, or crossed a page.
    pub tlb_misses: u64,
    /// Those of them that needed no handler.
    pub tlb_refills: u64,
    pub tlb_fills: [u64; PLANES],
    pub tlb_clears: u64,
    /// Entries of spaces that run again.
    pub tlb_kept: u64,
    exits: [u64; Cause::ALL.len()],
    /// By mnemonic; without those that missed the TLB.
    callouts: Vec<u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            blocks: 0,
            refused: 0,
            insns: 0,
            untranslated: 0,
            guest_bytes: 0,
            host_bytes: 0,
            cold_bytes: 0,
            removed: 0,
            evictions: 0,
            evicted: 0,
            longest_eviction_ns: 0,
            entries: 0,
            links: 0,
            jumps: 0,
            stayed: 0,
            exceptions: [0; 32],
            tsc_reads: 0,
            cpuids: 0,
            tlb_misses: 0,
            tlb_refills: 0,
            tlb_fills: [0; PLANES],
            tlb_clears: 0,
            tlb_kept: 0,
            exits: [0; Cause::ALL.len()],
            callouts: vec![0; Mnemonic::values().len()],
        }
    }
}

impl Counters {
    #[inline]
    pub fn exit(&mut self, cause: Cause) {
        self.exits[cause as usize % Cause::ALL.len()] += 1;
    }

    pub fn exception(&mut self, vector: u8) {
        self.exceptions[usize::from(vector) % 32] += 1;
    }

    #[inline]
    pub fn callout(&mut self, mnemonic: Mnemonic) {
        if let Some(count) = self.callouts.get_mut(mnemonic as usize) {
            *count += 1;
        }
    }

    /// So many blocks had to go, since this time.
    pub fn evicted(&mut self, blocks: usize, since: Instant) {
        self.evictions += u64::from(blocks != 0);
        self.evicted += blocks as u64;
        let ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.longest_eviction_ns = self.longest_eviction_ns.max(ns);
    }

    /// `room` is what code and `table` may take, in bytes, and `jumps` what tables of jumps do.
    pub fn report(&self, stats: &mut Stats, table: &Table, room: usize, jumps: usize) {
        stats
            .group("translation")
            .count("blocks translated", self.blocks)
            .count("instructions", self.insns)
            .count("of them left to handlers", self.untranslated)
            .count("blocks that would not pay", self.refused)
            .bytes("guest code", self.guest_bytes)
            .bytes("host code", self.host_bytes)
            .bytes("host code seldom run", self.cold_bytes)
            .ratio("expansion", self.host_bytes, self.guest_bytes);
        stats
            .group("code cache")
            .bytes("size", room as u64)
            .bytes("code in use", table.used() as u64)
            .bytes("kept of blocks", table.kept() as u64)
            .bytes("tables of jumps", jumps as u64)
            .count("blocks in use", table.alive() as u64)
            .count("blocks made stale", self.removed)
            .count("segments", table.segments() as u64)
            .count("segments evicted", self.evictions)
            .count("blocks evicted", self.evicted)
            .longest("longest eviction", self.longest_eviction_ns);
        stats
            .group("translated code")
            .count("entries", self.entries)
            .count("exits linked", self.links)
            .count("jumps entered in the table", self.jumps)
            .count("callouts", self.callouts.iter().sum())
            .count("callouts that jumped", self.stayed)
            .count("time stamps read", self.tsc_reads)
            .count("CPUIDs answered", self.cpuids)
            .count("TLB misses", self.tlb_misses)
            .count("of them without a handler", self.tlb_refills)
            .count("TLB entries filled", self.tlb_fills.iter().sum())
            .count("TLB entries of spaces that ran again", self.tlb_kept)
            .count("TLB cleared", self.tlb_clears);
        let exits = stats.group("exits by cause");
        for ((_, name), count) in Cause::ALL.iter().zip(self.exits) {
            exits.count(name, count);
        }
        let ranking = stats.ranking("callouts by instruction");
        for (mnemonic, count) in Mnemonic::values().zip(&self.callouts) {
            if *count != 0 {
                let name = format!("{mnemonic:?}").to_lowercase();
                ranking.add(name, engine::stats::Value::Count(*count));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::stats::Value;

    #[test]
    fn each_cause_has_its_own_line() {
        for (n, (cause, name)) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, n);
            let mut counters = Counters::default();
            counters.exit(cause);
            let mut stats = Stats::default();
            counters.report(&mut stats, &Table::new([0; 2], [0; 2], 0), 0, 0);
            let exits = stats.group("exits by cause");
            assert_eq!(exits.counters.iter().filter(|c| !c.value.is_zero()).count(), 1);
            assert_eq!(exits.get(name), Some(Value::Count(1)));
        }
    }

    #[test]
    fn callouts_have_their_instruction() {
        let mut counters = Counters::default();
        counters.callout(Mnemonic::Cpuid);
        counters.callout(Mnemonic::Cpuid);
        counters.callout(Mnemonic::Vzeroupper);
        let mut stats = Stats::default();
        counters.report(&mut stats, &Table::new([0; 2], [0; 2], 0), 0, 0);
        assert_eq!(stats.get("callouts by instruction", "cpuid"), Some(Value::Count(2)));
        assert_eq!(stats.get("callouts by instruction", "vzeroupper"), Some(Value::Count(1)));
        assert_eq!(stats.get("translated code", "callouts"), Some(Value::Count(3)));
    }
}
