//! Sequence numbers, RFC 9293 section 3.4.

/// A place in a stream, modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    pub(crate) fn plus(self, n: usize) -> Self {
        Self(self.0.wrapping_add(n as u32))
    }

    /// How far this is behind `other`: negative if it comes before.
    pub(crate) fn after(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    /// How many bytes lie between `other` and this; none if this comes before.
    pub(crate) fn since(self, other: Self) -> usize {
        usize::try_from(self.after(other)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap() {
        let end = Seq(u32::MAX);
        assert_eq!(end.plus(2), Seq(1));
        assert_eq!(Seq(1).after(end), 2);
        assert_eq!(end.after(Seq(1)), -2);
        assert_eq!((Seq(1).since(end), end.since(Seq(1))), (2, 0));
    }
}
