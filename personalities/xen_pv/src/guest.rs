//! Copies to and from the domain: only what is its own to read and write.

use engine::CpuView;
use x86_defs::is_canonical_48;
use xen_abi::{errno::Errno, xen::HYPERVISOR_VIRT};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Whether a range is outside of the hypervisor's addresses, and in none that a walk would take for
/// these by their lower bits.
pub fn is_the_domains(at: u64, len: usize) -> bool {
    let Some(end) = at.checked_add(len as u64) else { return false };
    let last = end.saturating_sub(1).max(at);
    let outside = end <= HYPERVISOR_VIRT.start || at >= HYPERVISOR_VIRT.end;
    outside && is_canonical_48(at) && is_canonical_48(last)
}

pub fn read_bytes(cpu: &mut dyn CpuView, at: u64, out: &mut [u8]) -> Result<(), Errno> {
    if !is_the_domains(at, out.len()) {
        return Err(Errno::Fault);
    }
    cpu.read_virt(at, out).map_err(|_| Errno::Fault)
}

pub fn write_bytes(cpu: &mut dyn CpuView, at: u64, data: &[u8]) -> Result<(), Errno> {
    if !is_the_domains(at, data.len()) {
        return Err(Errno::Fault);
    }
    cpu.write_virt(at, data).map_err(|_| Errno::Fault)
}

pub fn read<T: FromZeros + FromBytes + IntoBytes>(
    cpu: &mut dyn CpuView,
    at: u64,
) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    read_bytes(cpu, at, value.as_mut_bytes())?;
    Ok(value)
}

pub fn write<T: IntoBytes + Immutable>(
    cpu: &mut dyn CpuView,
    at: u64,
    value: &T,
) -> Result<(), Errno> {
    write_bytes(cpu, at, value.as_bytes())
}

/// The address of an element of an array of the domain's.
pub fn element<T>(array: u64, index: u64) -> Result<u64, Errno> {
    index
        .checked_mul(size_of::<T>() as u64)
        .and_then(|offset| array.checked_add(offset))
        .ok_or(Errno::Fault)
}
