//! How much of a virtio request's time is the handling of its rings: what packed rings could spare.
//!
//! ```text
//!   whole    a request as the device's thread serves it     read 4 KiB; take and give 1500 bytes
//!   rings    chains of the same shape, taken and handed back, and nothing else
//!   split    of that, what a packed ring does otherwise: the available ring, the used ring and
//!            the event index, but no descriptors, which either kind has
//! ```
//!
//! Another thread is the driver, so that the rings come from another processor's cache. All three are
//! measured in turn, and shares are taken within a round.

mod bed;
mod net;

use crate::stats::median;
use bed::{Bed, Shape};
use disk_raw::RawDisk;
use std::{fmt::Write, io, path::Path, sync::Arc};
use virtio_blk::VirtioBlk;

/// Bytes of the disk, all of it in the host's cache.
const DISK: u64 = 64 << 20;
const ROUNDS: usize = 2000;
/// Requests that wait at once.
const DEPTHS: [u16; 2] = [1, 64];

/// Nanoseconds of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Round {
    whole: f64,
    rings: f64,
    split: f64,
}

/// What came of the rounds with one depth.
#[derive(Debug)]
struct Line {
    name: &'static str,
    depth: u16,
    rounds: Vec<Round>,
}

impl Line {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(&self.rounds.iter().map(of).collect::<Vec<_>>()).unwrap_or_default()
    }

    fn row(&self) -> String {
        let [whole, rings, split] =
            [self.median(|r| r.whole), self.median(|r| r.rings), self.median(|r| r.split)];
        let share = |of: fn(&Round) -> f64| 100.0 * self.median(|r| of(r) / r.whole);
        format!(
            "| {} | {} | {whole:.0} | {rings:.0} | {:.1}% | {split:.0} | {:.1}% |",
            self.name,
            self.depth,
            share(|r| r.rings),
            share(|r| r.split)
        )
    }
}

/// Measures, prints the table and writes it to `out`.
pub fn run(out: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("the rings: {e}");
    let mut lines = Vec::new();
    for depth in DEPTHS {
        lines.push(blocks(depth).map_err(failed)?);
        lines.push(packets(depth));
    }
    let mut text = String::from(
        "| request | in flight | whole, ns | rings, ns | of whole | split only, ns | of whole |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
    );
    for line in &lines {
        let _ = writeln!(text, "{}", line.row());
    }
    print!("{text}");
    std::fs::create_dir_all(out).map_err(failed)?;
    std::fs::write(out.join("rings.md"), text).map_err(failed)
}

/// 4 KiB from anywhere on a raw file that is cached.
fn blocks(depth: u16) -> io::Result<Line> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), vec![0x5a; DISK as usize])?;
    let disk = RawDisk::open(file.path(), false).map_err(io::Error::other)?;
    let config = virtio_blk::Config { queues: 1, ..virtio_blk::Config::default() };
    let mut whole = Bed::timed(VirtioBlk::new(&config, Arc::new(disk)));
    let mut rings = Bed::timed(Arc::new(bed::Empty));
    let mut split = bed::Split::new();
    let rounds = (0..ROUNDS).map(|_| Round {
        whole: whole.batch(0, Shape::Read { sectors: DISK / 512 }, depth),
        rings: rings.batch(0, Shape::Read { sectors: DISK / 512 }, depth),
        split: split.batch(Shape::Read { sectors: DISK / 512 }, depth),
    });
    Ok(Line { name: "virtio-blk, read 4 KiB", depth, rounds: rounds.collect() })
}

/// 1500 bytes that the guest sends and gets back.
fn packets(depth: u16) -> Line {
    let mut whole = net::Loop::new();
    let mut rings = Bed::timed(Arc::new(bed::Empty));
    let mut split = bed::Split::new();
    let rounds = (0..ROUNDS).map(|_| Round {
        whole: whole.batch(depth),
        // One ring for each direction.
        rings: rings.batch(0, Shape::Sent, depth) + rings.batch(0, Shape::Wanted, depth),
        split: split.batch(Shape::Sent, depth) + split.batch(Shape::Wanted, depth),
    });
    Line { name: "virtio-net, 1500 bytes there and back", depth, rounds: rounds.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_taken_within_a_round() {
        let round = |whole, rings, split| Round { whole, rings, split };
        let rounds =
            vec![round(100.0, 10.0, 5.0), round(200.0, 60.0, 40.0), round(1000.0, 50.0, 30.0)];
        let line = Line { name: "x", depth: 2, rounds };
        assert_eq!(line.row(), "| x | 2 | 200 | 50 | 10.0% | 30 | 5.0% |");
    }

    #[test]
    fn requests_are_served_and_frames_come_back() {
        let mut beds = [Bed::timed(Arc::new(bed::Empty)), Bed::timed(bed::block(DISK / 64))];
        for bed in &mut beds {
            // Past the end of the rings.
            for _ in 0..9 {
                assert!(bed.batch(0, Shape::Read { sectors: DISK / 64 / 512 }, 64) > 0.0);
            }
        }
        assert_eq!(beds[1].answers(64), vec![Some(0); 64], "the status of each");
        let mut net = net::Loop::new();
        for _ in 0..9 {
            assert!(net.batch(64) > 0.0);
        }
        assert!(net.came_back());
        assert!(bed::Split::new().batch(Shape::Sent, 64) > 0.0);
    }
}
