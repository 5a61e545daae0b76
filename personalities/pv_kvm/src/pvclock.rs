//! The pages of KVM's clock, under its version protocol: odd while it is being written.

use engine::ClockSample;
use guest_mem::GuestMem;

/// `struct pvclock_vcpu_time_info`: a reader computes
/// `system_time + (((tsc - tsc_timestamp) << shift) * mul >> 32)` nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeInfo {
    pub version: u32,
    pub tsc_timestamp: u64,
    pub system_time: u64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    pub flags: u8,
}

impl TimeInfo {
    pub const LEN: usize = 32;
    /// All vCPUs' clocks are one, and monotonic across them.
    pub const TSC_STABLE: u8 = 1;
    /// The guest was stopped by the host since it last looked; it clears this.
    pub const GUEST_STOPPED: u8 = 2;

    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0..4].copy_from_slice(&self.version.to_le_bytes());
        out[8..16].copy_from_slice(&self.tsc_timestamp.to_le_bytes());
        out[16..24].copy_from_slice(&self.system_time.to_le_bytes());
        out[24..28].copy_from_slice(&self.tsc_to_system_mul.to_le_bytes());
        out[28] = self.tsc_shift.cast_unsigned();
        out[29] = self.flags;
        out
    }
}

/// `struct pvclock_wall_clock`: the time of day when guest time was zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    pub version: u32,
    pub sec: u32,
    pub nsec: u32,
}

/// Multiplier and shift that turn ticks of a TSC of this frequency into nanoseconds, with all
/// 32 bits of the multiplier in use.
pub fn time_scale(tsc_khz: u32) -> (u32, i8) {
    // ns = ticks * 10^6 / khz; mul = 2^32 * 10^6 / (khz * 2^shift), between 2^31 and 2^32.
    let khz = u128::from(tsc_khz.max(1));
    let mut shift = 0i8;
    let scaled = |shift: i8| {
        let (up, down) = if shift < 0 { ((-shift) as u32, 0) } else { (0, shift as u32) };
        (1_000_000u128 << (32 + up)) / (khz << down)
    };
    while scaled(shift) > u128::from(u32::MAX) {
        shift += 1;
    }
    while scaled(shift) < 1 << 31 {
        shift -= 1;
    }
    (scaled(shift) as u32, shift)
}

/// The version that is there, made even.
fn current_version(memory: &GuestMem, gpa: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory.read(gpa, &mut bytes).ok()?;
    Some(u32::from_le_bytes(bytes).wrapping_add(1) & !1)
}

/// Writes `bytes` whose first four are the version: odd, the rest, even. The three stores are
/// string operations, which do not pass each other (SDM volume 3, 9.2.4). Nothing happens
/// where the range is not memory.
pub(crate) fn publish(memory: &GuestMem, gpa: u64, version_at: usize, bytes: &mut [u8]) {
    let version_gpa = gpa.wrapping_add(version_at as u64);
    let Some(version) = current_version(memory, version_gpa) else { return };
    let odd = version.wrapping_add(1).to_le_bytes();
    let even = version.wrapping_add(2).to_le_bytes();
    bytes[version_at..version_at + 4].copy_from_slice(&odd);
    let written = memory
        .write(version_gpa, &odd)
        .and_then(|()| memory.write(gpa, bytes))
        .and_then(|()| memory.write(version_gpa, &even));
    // Where the guest named what is not memory there is nobody to tell.
    drop(written);
}

/// `address` 0 is a guest's way to ask for nothing.
pub(crate) fn write_wall_clock(memory: &GuestMem, address: u64, now: &ClockSample) {
    if address == 0 {
        return;
    }
    let boot = now.realtime_ns.saturating_sub(now.guest_ns);
    let sec = (boot / 1_000_000_000) as u32;
    let nsec = (boot % 1_000_000_000) as u32;
    let mut bytes = [0; 12];
    bytes[4..8].copy_from_slice(&sec.to_le_bytes());
    bytes[8..12].copy_from_slice(&nsec.to_le_bytes());
    publish(memory, address, 0, &mut bytes);
}
