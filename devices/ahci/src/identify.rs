//! What drives say of themselves (ACS, 7.12.7 and 7.13.7): 256 words.

use crate::ata::{TRIM_BLOCKS, sectors};
use disk::Shape;

const MODEL: &str = "SARANG HARDDISK";
const CD_MODEL: &str = "SARANG CD-ROM";
const REVISION: &str = "1.0";
/// Sectors that a command with 28 bits of address reaches.
const SECTORS_28: u64 = 0x0fff_ffff;

struct Words([u16; 256]);

impl Words {
    fn set(&mut self, at: usize, value: u16) {
        if let Some(word) = self.0.get_mut(at) {
            *word = value;
        }
    }

    fn number(&mut self, at: usize, count: usize, value: u64) {
        (0..count).for_each(|i| self.set(at + i, (value >> (16 * i)) as u16));
    }

    /// Two characters in a word, the first in the upper byte; blanks fill it.
    fn text(&mut self, at: usize, words: usize, text: &str) {
        let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
        for i in 0..words {
            let mut next = || u16::from(bytes.next().unwrap_or(b' '));
            let upper = next() << 8;
            self.set(at + i, upper | next());
        }
    }

    /// What both kinds have.
    fn common(serial: &str, model: &str) -> Self {
        let mut words = Self([0; 256]);
        words.text(10, 10, serial);
        words.text(23, 4, REVISION);
        words.text(27, 20, model);
        // LBA, DMA, IORDY.
        words.set(49, 0x2f00);
        words.set(50, 0x4000);
        // Words 64 to 70 and 88 mean something.
        words.set(53, 0x0006);
        // Multiword DMA 0 to 2, PIO 3 and 4, cycle times in ns.
        words.set(63, 0x0007);
        words.set(64, 0x0003);
        (65..=68).for_each(|at| words.set(at, 120));
        // The first generation of Serial ATA.
        words.set(76, 0x0002);
        // ATA-4 to ATA-8.
        words.set(80, 0x01f0);
        (83..=84).for_each(|at| words.set(at, 0x4000));
        words.set(87, 0x4000);
        // Ultra DMA 0 to 5; the last is in use.
        words.set(88, 0x203f);
        words
    }

    /// With the sum of all bytes made zero.
    fn finish(mut self) -> Vec<u8> {
        self.set(255, 0x00a5);
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(last) = bytes.last_mut() {
            *last = sum.wrapping_neg();
        }
        bytes
    }
}

pub(crate) fn disk(shape: &Shape, serial: &str) -> Vec<u8> {
    let mut words = Words::common(serial, MODEL);
    let sectors = sectors(shape);
    words.set(0, 0x0040);
    // Cylinders, heads and sectors of old: nobody uses them.
    words.set(1, 16383);
    words.set(3, 16);
    words.set(6, 63);
    words.set(47, 0x8010);
    words.set(59, 0x0110);
    // A queue of 32, native command queuing.
    words.set(75, 31);
    words.set(76, 0x0102);
    words.number(60, 2, sectors.min(SECTORS_28));
    // Write cache and look-ahead; flush, and 48 bits of address. Then the same, switched on.
    words.set(82, 0x0060);
    words.set(83, 0x7400);
    words.set(85, 0x0060);
    words.set(86, 0x3400);
    // Logs.
    (84..=87).step_by(3).for_each(|at| words.set(at, 0x4020));
    words.number(100, 4, sectors);
    if shape.discard {
        words.set(105, TRIM_BLOCKS);
        words.set(169, 0x0001);
    }
    let ratio = (shape.physical_block / shape.logical_block.max(1)).max(1).ilog2() as u16;
    let large = shape.logical_block > 512;
    let several = if ratio > 0 { 0x2000 | ratio } else { 0 };
    words.set(106, 0x4000 | several | if large { 0x1000 } else { 0 });
    if large {
        words.number(117, 2, u64::from(shape.logical_block / 2));
    }
    // Nothing rotates.
    words.set(217, 0x0001);
    words.finish()
}

pub(crate) fn cd() -> Vec<u8> {
    let mut words = Words::common("", CD_MODEL);
    // ATAPI, a CD drive, removable, answers in 50 microseconds, packets of 12 bytes.
    words.set(0, 0x85c0);
    // PACKET, DEVICE RESET, NOP.
    words.set(82, 0x4210);
    words.set(85, 0x4210);
    words.finish()
}
