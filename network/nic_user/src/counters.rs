//! What is counted, for whoever wonders where packets went.

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub frames_from_guest: u64,
    pub frames_to_guest: u64,
    pub bytes_from_guest: u64,
    pub bytes_to_guest: u64,
    /// Frames of the guest that were no packet for this network, or malformed.
    pub ignored: u64,
    /// Packets to where the guest may not go.
    pub refused: u64,
    /// Packets that were lost because the guest had no room.
    pub no_room: u64,
    /// Flows that were not opened because there were too many.
    pub too_many: u64,
    pub tcp_flows: u64,
    pub udp_flows: u64,
    pub dns_queries: u64,
    pub retransmissions: u64,
}
