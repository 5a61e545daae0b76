//! What is known of a frame besides its bytes.

/// How far a frame's transport checksum and its segmentation have been done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub checksum: Checksum,
    pub segmentation: Option<Segmentation>,
}

/// The state of the transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is in the frame, and nobody has looked whether it is right.
    #[default]
    Unknown,
    /// The field holds the sum of the pseudo-header only. Whoever needs the rest sums the bytes
    /// from `start` to the end of the frame and stores the result at `start + offset`.
    Partial { start: u16, offset: u16 },
    /// It has been found right, or the bytes never left this host.
    Verified,
}

/// The frame stands for several: its payload is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    pub kind: SegmentKind,
    /// Payload bytes of each segment but the last.
    pub size: u16,
    /// Bytes of all headers, repeated before each segment. From a guest this is a hint.
    pub header_len: u16,
}

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    Tcp4,
    Tcp6,
}

/// What the receiver of frames does itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Takes [`Checksum::Partial`] and [`Checksum::Verified`].
    pub checksum: bool,
    /// Takes [`SegmentKind::Tcp4`]; needs `checksum`.
    pub tso4: bool,
    /// Takes [`SegmentKind::Tcp6`]; needs `checksum`.
    pub tso6: bool,
}
