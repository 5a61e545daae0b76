//! What is in front of every packet (5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub const STREAM: u16 = 1;

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// Of no version that this knows.
    Unknown(u16),
}

impl Op {
    fn decode(value: u16) -> Self {
        match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }

    fn encode(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Unknown(value) => value,
        }
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes behind it.
    pub len: u32,
    pub kind: u16,
    pub op: Op,
    pub flags: u32,
    /// Room that the sender has for this connection, and how much it has taken out of it since the
    /// connection began, modulo 2^32.
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        let part = |at: usize, len: usize| {
            let bytes = bytes.iter().skip(at).take(len).rev();
            bytes.fold(0, |value: u64, byte| value << 8 | u64::from(*byte))
        };
        Self {
            src_cid: part(0, 8),
            dst_cid: part(8, 8),
            src_port: part(16, 4) as u32,
            dst_port: part(20, 4) as u32,
            len: part(24, 4) as u32,
            kind: part(28, 2) as u16,
            op: Op::decode(part(30, 2) as u16),
            flags: part(32, 4) as u32,
            buf_alloc: part(36, 4) as u32,
            fwd_cnt: part(40, 4) as u32,
        }
    }

    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.encode().to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// Answers a packet that belongs to no connection (5.10.6.6).
    pub fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op: Op::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fields_are_where_the_specification_has_them() {
        let mut bytes = [0; HEADER];
        bytes.iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        let header = Header::decode(&bytes);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!((header.src_port, header.dst_port), (0x1413_1211, 0x1817_1615));
        assert_eq!((header.len, header.kind), (0x1c1b_1a19, 0x1e1d));
        assert_eq!(header.op, Op::Unknown(0x201f));
        assert_eq!(header.fwd_cnt, 0x2c2b_2a29);
    }

    proptest! {
        #[test]
        fn headers_go_both_ways(bytes: [u8; 32], rest: [u8; 12], op in 0..9u16) {
            let mut all = [0; HEADER];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&rest);
            all[30..32].copy_from_slice(&op.to_le_bytes());
            prop_assert_eq!(Header::decode(&all).encode(), all);
        }
    }
}
