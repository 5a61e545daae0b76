//! Guest memory as far as it is mapped.

use guest_mem::GuestMem;
use machine::virt;
use vcpu_state::VcpuState;

const PAGE: u64 = 4096;

/// Reads by linear address up to the first page that is not there; how many bytes.
pub(crate) fn read(state: &VcpuState, memory: &GuestMem, start: u64, out: &mut [u8]) -> usize {
    // The library adds up addresses, so a range that reaches the end of the space is refused.
    if start.checked_add(out.len() as u64).is_none() {
        return 0;
    }
    let mut done = 0;
    while done < out.len() {
        let at = start + done as u64;
        let here = (out.len() - done).min((PAGE - at % PAGE) as usize);
        let Some(chunk) = out.get_mut(done..done + here) else { break };
        if virt::read(state, memory, at, chunk).is_err() {
            break;
        }
        done += here;
    }
    done
}
