//! Counts anew what an image's tables refer to, after a user that did not close it.
//!
//! The tables that lead to data (L1, L2) are always sound, as data are written before them; only
//! how often each cluster is referred to may not have been written. QEMU does the same with an
//! image that is marked so (docs/interop/qcow2.rst, "incompatible features", bit 0).

use crate::header::{self, Header};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Where an entry of L1 or L2 leads to: bits 9 to 55.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The entry alone leads there.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ENTRY: usize = 8;
/// Clusters of an image that is counted here.
const CLUSTERS_MAX: usize = 1 << 28;
/// So far behind the file's end data may be: a host that crashed may have written the tables, and
/// not yet the data.
const BEYOND_MAX: usize = 1 << 20;
const REFCOUNT_TABLE_MAX: usize = 8 << 20;

fn bad(what: &str) -> io::Error {
    io::Error::other(format!("{what}; try qemu-img check -r all"))
}

/// Writes new reference counts, and says which entries lead to clusters of their own. The mark
/// that they may be wrong stays.
///
/// # Errors
/// If the image cannot be read or written, or its tables lead where nothing can be.
pub(crate) fn repair(file: &File, header: &Header) -> io::Result<()> {
    if header.extras {
        return Err(bad("it has snapshots or bitmaps"));
    }
    let mut counts = Counts::new(file, header)?;
    let l1 = read_table(file, header.l1.0, header.l1.1)?;
    counts.add(0, 1)?;
    counts.add(header.l1.0, (header.l1.1 * ENTRY) as u64)?;
    for at in l1.iter().map(|entry| entry & OFFSET).filter(|at| *at != 0) {
        counts.add_table(at)?;
        for entry in read_table(file, at, counts.table())? {
            counts.add_data(entry)?;
        }
    }
    counts.write(file, header)?;
    file.sync_data()?;

    let own =
        |entry: u64| if counts.of(entry & OFFSET) == 1 { entry | COPIED } else { entry & !COPIED };
    write_changes(
        file,
        header.l1.0,
        &l1,
        |entry| if entry & OFFSET == 0 { entry } else { own(entry) },
    )?;
    for at in l1.iter().map(|entry| entry & OFFSET).filter(|at| *at != 0) {
        let l2 = read_table(file, at, counts.table())?;
        write_changes(file, at, &l2, |entry| match entry {
            entry if entry & COMPRESSED != 0 => entry & !COPIED,
            entry if entry & OFFSET == 0 => entry,
            entry => own(entry),
        })?;
    }
    file.sync_data()
}

/// What is beyond the file's end is zero.
fn read_table(file: &File, at: u64, entries: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; entries * ENTRY];
    header::read_at(file, &mut bytes, at)?;
    let (entries, _) = bytes.as_chunks::<ENTRY>();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

fn write_changes(
    file: &File,
    at: u64,
    table: &[u64],
    becomes: impl Fn(u64) -> u64,
) -> io::Result<()> {
    for (index, entry) in table.iter().enumerate() {
        let new = becomes(*entry);
        if new != *entry {
            file.write_all_at(&new.to_be_bytes(), at + (index * ENTRY) as u64)?;
        }
    }
    Ok(())
}

/// How often each cluster of the file is referred to.
struct Counts {
    bits: u32,
    /// Clusters that are in the file.
    inside: usize,
    counts: Vec<u32>,
}

impl Counts {
    fn new(file: &File, header: &Header) -> io::Result<Self> {
        let bits = header.cluster_bits;
        let clusters = file.metadata()?.len().div_ceil(1 << bits);
        match usize::try_from(clusters) {
            Ok(clusters @ ..=CLUSTERS_MAX) => Ok(Self::of_clusters(bits, clusters)),
            _ => Err(bad("it is too large to be counted here")),
        }
    }

    fn of_clusters(bits: u32, inside: usize) -> Self {
        Self { bits, inside, counts: vec![0; inside] }
    }

    fn cluster(&self) -> usize {
        1 << self.bits
    }

    /// Entries of an L2 table.
    fn table(&self) -> usize {
        self.cluster() / ENTRY
    }

    fn index(&self, at: u64) -> usize {
        usize::try_from(at >> self.bits).unwrap_or(usize::MAX)
    }

    fn of(&self, at: u64) -> u32 {
        self.counts.get(self.index(at)).copied().unwrap_or(0)
    }

    /// One more refers to these bytes.
    fn add(&mut self, at: u64, len: u64) -> io::Result<()> {
        let last = at.checked_add(len.saturating_sub(1)).map(|last| self.index(last));
        let end = CLUSTERS_MAX.min(self.inside + BEYOND_MAX);
        let Some(last) = last.filter(|last| *last < end) else {
            return Err(bad("its tables lead outside of it"));
        };
        if last >= self.counts.len() {
            self.counts.resize(last + 1, 0);
        }
        let first = self.index(at);
        self.counts[first..=last].iter_mut().for_each(|count| *count = count.saturating_add(1));
        Ok(())
    }

    /// A table that an entry of the L1 table refers to: each has one of its own in the file, or
    /// else reading them all would have no end.
    fn add_table(&mut self, at: u64) -> io::Result<()> {
        let inside = self.index(at) < self.inside;
        if !at.is_multiple_of(self.cluster() as u64) || !inside || self.of(at) != 0 {
            return Err(bad("its L1 table makes no sense"));
        }
        self.add(at, 1)
    }

    /// What an entry of an L2 table refers to.
    fn add_data(&mut self, entry: u64) -> io::Result<()> {
        if entry & COMPRESSED != 0 {
            // The offset has fewer bits the more sectors there may be: "Compressed Clusters
            // Descriptor".
            let shift = 62 - (self.bits - 8);
            let at = entry & ((1 << shift) - 1);
            let more = (entry & (COMPRESSED - 1)) >> shift;
            // The first sector is the one with the offset in it.
            let end = (at & !511) + (more + 1) * 512;
            return self.add(at, end - at);
        }
        match entry & OFFSET {
            0 => Ok(()),
            at if at.is_multiple_of(self.cluster() as u64) => self.add(at, 1),
            _ => Err(bad("its tables lead into the middle of clusters")),
        }
    }

    /// Writes them behind all that is there, and says so in the header.
    fn write(&mut self, file: &File, header: &Header) -> io::Result<()> {
        let width = 1_usize << header.refcount_order;
        let (per_block, old) = (self.cluster() * 8 / width, self.counts.len());
        let (mut blocks, mut tables) = (0, 0);
        // They count themselves, too.
        while blocks * per_block < old + blocks + tables {
            blocks = (old + blocks + tables).div_ceil(per_block);
            tables = (blocks * ENTRY).div_ceil(self.cluster());
        }
        if blocks * ENTRY > REFCOUNT_TABLE_MAX {
            return Err(bad("its table of reference counts would be too large"));
        }
        self.counts.resize(old + blocks + tables, 1);
        let start = (old as u64) << self.bits;
        let mut table = vec![0; tables * self.cluster()];
        for (index, counts) in self.counts.chunks(per_block).enumerate() {
            let at = start + ((index as u64) << self.bits);
            file.write_all_at(&pack(counts, width, self.cluster())?, at)?;
            table[index * ENTRY..][..ENTRY].copy_from_slice(&at.to_be_bytes());
        }
        let at = start + ((blocks as u64) << self.bits);
        file.write_all_at(&table, at)?;
        file.sync_data()?;
        let tables = u32::try_from(tables).map_err(io::Error::other)?;
        header::set_counts(file, at, tables)
    }
}

/// A block of reference counts of this many bits each.
fn pack(counts: &[u32], width: usize, cluster: usize) -> io::Result<Vec<u8>> {
    let mut block = vec![0; cluster];
    for (index, count) in counts.iter().enumerate() {
        if width < 32 && u64::from(*count) >> width != 0 {
            return Err(bad("its clusters are shared more often than can be counted"));
        }
        match width {
            ..8 => block[index * width / 8] |= (*count as u8) << (index * width % 8),
            _ => {
                let bytes = u64::from(*count).to_be_bytes();
                let wide = width / 8;
                block[index * wide..][..wide].copy_from_slice(&bytes[ENTRY - wide..]);
            }
        }
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_widths() {
        let block =
            |counts: &[u32], width| pack(counts, width, 16).map(|block| block[..4].to_vec());
        assert_eq!(block(&[1, 0, 1, 1, 0, 0, 0, 0, 1], 1).unwrap(), [0b1101, 1, 0, 0]);
        assert_eq!(block(&[1, 2, 3], 2).unwrap(), [0b11_1001, 0, 0, 0]);
        assert_eq!(block(&[1, 2, 15], 4).unwrap(), [0x21, 0x0f, 0, 0]);
        assert_eq!(block(&[1, 255], 8).unwrap(), [1, 255, 0, 0]);
        assert_eq!(block(&[1, 0x1234], 16).unwrap(), [0, 1, 0x12, 0x34]);
        assert_eq!(block(&[0x1234_5678], 32).unwrap(), [0x12, 0x34, 0x56, 0x78]);
        assert_eq!(pack(&[7], 64, 16).unwrap()[..8], [0, 0, 0, 0, 0, 0, 0, 7]);
        assert!(block(&[2], 1).is_err() && block(&[256], 8).is_err());
    }

    /// Of what an image's maker chose, nothing makes this large or long.
    #[test]
    fn what_lies_far_behind_the_end_is_not_counted() {
        const CLUSTER: u64 = 1 << 16;
        let counts = || Counts::of_clusters(16, 4);
        let mut near = counts();
        near.add_data(COPIED | ((4 + BEYOND_MAX as u64 - 1) * CLUSTER)).unwrap();
        assert!(near.add_data(COPIED | ((4 + BEYOND_MAX as u64) * CLUSTER)).is_err());
        assert_eq!(near.counts.len(), 4 + BEYOND_MAX);
        near.add_table(3 * CLUSTER).unwrap();
        assert!(near.add_table(4 * CLUSTER).is_err(), "a table is there, or there is none");
        assert!(counts().add(0, (CLUSTERS_MAX as u64) * CLUSTER).is_err());
    }

    #[test]
    fn compressed_clusters_are_bytes() {
        let mut counts = Counts::of_clusters(16, 4);
        // From 0x1fff0, two more sectors: up to 0x205ff.
        counts.add_data(COMPRESSED | (2 << 54) | 0x1_fff0).unwrap();
        assert_eq!(counts.counts, [0, 1, 1, 0]);
        counts.add_data(COPIED | 0x3_0000).unwrap();
        counts.add_data(1).unwrap();
        assert_eq!(counts.counts, [0, 1, 1, 1]);
        assert!(counts.add_data(COPIED | 0x3_0200).is_err());
        assert!(counts.add_data(COPIED | OFFSET & !0xffff).is_err());
    }
}
