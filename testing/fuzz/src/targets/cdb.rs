//! SCSI commands that are right, or nearly.

use crate::input::Input;

/// Operation codes that some unit knows, with the length of their command.
const KNOWN: [(u8, usize); 36] = [
    (0x00, 6),
    (0x03, 6),
    (0x08, 6),
    (0x0a, 6),
    (0x12, 6),
    (0x15, 6),
    (0x1a, 6),
    (0x1b, 6),
    (0x1e, 6),
    (0x23, 10),
    (0x25, 10),
    (0x28, 10),
    (0x2a, 10),
    (0x2e, 10),
    (0x2f, 10),
    (0x35, 10),
    (0x41, 10),
    (0x42, 10),
    (0x43, 10),
    (0x46, 10),
    (0x4a, 10),
    (0x51, 10),
    (0x55, 10),
    (0x5a, 10),
    (0x88, 16),
    (0x8a, 16),
    (0x8f, 16),
    (0x91, 16),
    (0x93, 16),
    (0x9e, 16),
    (0xa0, 12),
    (0xa3, 12),
    (0xa8, 12),
    (0xaa, 12),
    (0xbd, 12),
    (0xbe, 12),
];

/// A command block.
pub(super) fn some(input: &mut Input<'_>) -> Vec<u8> {
    let (code, len) = input.pick(&KNOWN);
    let mut block = vec![code];
    block.extend(input.bytes(len - 1));
    block.resize(len, 0);
    match input.u8() {
        // A transfer: big-endian address and length, small ones.
        0..=0x7f if len >= 10 => {
            let address = input.number();
            let count = input.number();
            match len {
                10 => {
                    block[2..6].copy_from_slice(&(address as u32).to_be_bytes());
                    block[7..9].copy_from_slice(&(count as u16).to_be_bytes());
                }
                12 => {
                    block[2..6].copy_from_slice(&(address as u32).to_be_bytes());
                    block[6..10].copy_from_slice(&(count as u32).to_be_bytes());
                }
                _ => {
                    block[2..10].copy_from_slice(&address.to_be_bytes());
                    block[10..14].copy_from_slice(&(count as u32).to_be_bytes());
                }
            }
            block[1] &= 0x0b;
        }
        0xf8.. => block[0] = input.u8(),
        _ => {}
    }
    block
}

/// A command block and what goes with it.
pub(super) fn with_data(input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    if input.u8() < 0xd0 {
        return (some(input), data(input));
    }
    // UNMAP: a header, and ranges.
    let mut ranges = Vec::new();
    for _ in 0..input.below(4) {
        ranges.extend(input.number().to_be_bytes());
        ranges.extend((input.number() as u32).to_be_bytes());
        ranges.extend([0; 4]);
    }
    let len = ranges.len() as u16;
    let mut list = (len + 6).to_be_bytes().to_vec();
    list.extend(len.to_be_bytes());
    list.extend([0; 4]);
    list.extend(ranges);
    let [high, low] = (list.len() as u16).to_be_bytes();
    (vec![0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list)
}

/// What goes with it.
fn data(input: &mut Input<'_>) -> Vec<u8> {
    let mut data = input.some(64).to_vec();
    if input.u8() < 0x60 {
        data.resize(512 * input.below(5) as usize, 0x5a);
    }
    data
}
