//! Checksums of IP's transports.

use std::net::IpAddr;

pub(crate) use nic::checksum::{combine, sum};
use smoltcp::wire::IpProtocol;

/// The sum of the pseudo-header: RFC 9293 section 3.1, RFC 8200 section 8.1.
pub(crate) fn pseudo(src: IpAddr, dst: IpAddr, protocol: IpProtocol, len: usize) -> u16 {
    let addr = |addr: IpAddr| match addr {
        IpAddr::V4(a) => sum(&a.octets()),
        IpAddr::V6(a) => sum(&a.octets()),
    };
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    combine(&[addr(src), addr(dst), u8::from(protocol).into(), sum(&len.to_be_bytes())])
}
