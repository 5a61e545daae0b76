//! Guest memory by linear address, as a debugger reads it: nothing faults, nothing is marked
//! accessed.

use guest_mem::{Error, GuestMem};
use soft_mmu::Features;
use vcpu_state::VcpuState;

/// The guest-physical address of a linear one, by the vCPU's paging.
pub fn translate(state: &VcpuState, memory: &GuestMem, linear: u64) -> Option<u64> {
    soft_mmu::inspect(memory, &soft_mmu::Paging::of(state, Features::default()), linear)
}

fn each(
    state: &VcpuState,
    memory: &GuestMem,
    linear: u64,
    len: usize,
    mut with: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut done = 0;
    while done < len {
        let at = linear.wrapping_add(done as u64);
        let here = (len - done).min((guest_mem::PAGE - at % guest_mem::PAGE) as usize);
        let gpa = translate(state, memory, at).ok_or(Error::NotMemory(at))?;
        with(gpa, done..done + here)?;
        done += here;
    }
    Ok(())
}

pub fn read(
    state: &VcpuState,
    memory: &GuestMem,
    linear: u64,
    out: &mut [u8],
) -> Result<(), Error> {
    each(state, memory, linear, out.len(), |gpa, range| memory.read(gpa, &mut out[range]))
}

pub fn write(state: &VcpuState, memory: &GuestMem, linear: u64, data: &[u8]) -> Result<(), Error> {
    each(state, memory, linear, data.len(), |gpa, range| memory.write(gpa, &data[range]))
}
