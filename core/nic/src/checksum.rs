//! The internet checksum, RFC 1071, of what cards and networks leave undone for each other.

/// The ones' complement sum of the bytes as 16-bit words, the last one padded with zero.
pub fn sum(bytes: &[u8]) -> u16 {
    // Summed in the host's byte order, which RFC 1071 section 2 (B) allows, in words of 32 bits:
    // their carries are folded in at the end.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    total += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(total))
}

/// The sum of the sums of parts, all but the last of even length; each of up to 32 bits.
pub fn combine<T: Copy + Into<u32>>(sums: &[T]) -> u16 {
    fold(sums.iter().map(|sum| u64::from((*sum).into())).sum())
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Sums the bytes from `start` to `end` and puts the complement at `at`; false if that is not
/// all in the frame. What the field held is part of the sum.
pub fn insert(frame: &mut [u8], start: usize, end: usize, at: usize) -> bool {
    let Some(covered) = frame.get(start..end) else { return false };
    let value = !sum(covered);
    set(frame, at, value)
}

/// Stores a field, big-endian; false if it is not all in the frame.
pub fn set(frame: &mut [u8], at: usize, value: u16) -> bool {
    let Some(end) = at.checked_add(2) else { return false };
    let Some(field) = frame.get_mut(at..end) else { return false };
    field.copy_from_slice(&value.to_be_bytes());
    true
}

/// A field, big-endian; `None` if it is not all in the frame.
pub fn get(frame: &[u8], at: usize) -> Option<u16> {
    let field = frame.get(at..at.checked_add(2)?)?;
    Some(field.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// By the definition, word by word.
        #[test]
        fn sums_are_those_of_the_definition(bytes: Vec<u8>) {
            let mut total: u32 = 0;
            for pair in bytes.chunks(2) {
                total += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
                total = (total & 0xffff) + (total >> 16);
            }
            prop_assert_eq!(u32::from(sum(&bytes)), total);
            let (a, b) = bytes.split_at(bytes.len() / 4 * 2);
            prop_assert_eq!(combine(&[sum(a), sum(b)]), sum(&bytes));
        }

        #[test]
        fn what_was_inserted_verifies(mut bytes in prop::collection::vec(any::<u8>(), 2..100)) {
            bytes[0..2].fill(0);
            let end = bytes.len();
            prop_assert!(insert(&mut bytes, 0, end, 0));
            prop_assert_eq!(sum(&bytes), 0xffff);
        }
    }

    #[test]
    fn the_longest_datagram_does_not_overflow() {
        assert_eq!(sum(&[0xff; 65_536]), 0xffff);
        assert_eq!(combine(&[u32::MAX; 4]), 0xffff);
    }

    #[test]
    fn what_is_outside_is_refused() {
        let mut frame = [1; 8];
        for (start, end, at) in [(9, 10, 0), (4, 3, 0), (0, 8, 7), (0, 8, usize::MAX), (0, 9, 0)] {
            assert!(!insert(&mut frame, start, end, at), "{start} {end} {at}");
        }
        assert_eq!(frame, [1; 8]);
        assert_eq!((get(&frame, 6), get(&frame, 7)), (Some(0x0101), None));
    }
}
