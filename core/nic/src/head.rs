//! The first bytes of a frame that lies in parts.

/// So many of them; behind the frame's end there are zeroes.
pub fn head<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut head = [0; N];
    let mut room = &mut head[..];
    for part in parts {
        let len = part.len().min(room.len());
        let (here, rest) = room.split_at_mut(len);
        here.copy_from_slice(part.get(..len).unwrap_or_default());
        room = rest;
        if room.is_empty() {
            break;
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::head;

    #[test]
    fn parts_are_put_together() {
        assert_eq!(head::<4>(&[]), [0; 4]);
        assert_eq!(head::<4>(&[&[1], &[], &[2, 3]]), [1, 2, 3, 0]);
        assert_eq!(head::<4>(&[&[1, 2], &[3, 4, 5], &[6]]), [1, 2, 3, 4]);
        assert_eq!(head::<2>(&[&[1, 2, 3]]), [1, 2]);
    }
}
