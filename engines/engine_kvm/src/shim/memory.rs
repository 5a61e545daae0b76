//! The guest's memory by linear address, as its page tables say.
//!
//! Who calls is inside of the VM's gate, as a vCPU in KVM_RUN is: a frame that was found here is still
//! what it was found as when it is written, since who makes another thing of it waits at the gate
//! for all that are inside.

use super::Registers;
use guest_mem::{GuestMem, PAGE};
use soft_mmu::{Access, Features, PageFault, Paging, Phys, Privilege, walk};
use vcpu_state::Exception;
use x86_defs::{exception, is_canonical_48};

/// Pieces of a range: guest-physical addresses and lengths. The fault that an access would raise,
/// or #GP(0) if some of it is not RAM.
fn places(
    memory: &GuestMem,
    registers: &Registers,
    gva: u64,
    len: usize,
    access: Access,
) -> Result<Vec<(u64, usize)>, Exception> {
    let refused = Exception { vector: exception::GP, error: Some(0), payload: 0 };
    let special = &registers.special;
    let control = [special.cr0, special.cr3, special.cr4, special.efer];
    let paging = Paging::new(control, [0; 4], Features::default());
    let layout = memory.layout();
    let phys = Phys::new(&layout, memory.arena());
    let mut places = Vec::new();
    let mut done = 0;
    while done < len {
        let at = gva.wrapping_add(done as u64);
        let here = (len - done).min((PAGE - at % PAGE) as usize);
        if !is_canonical_48(at) {
            return Err(refused);
        }
        let found = walk(phys, &paging, at, access, Privilege::Supervisor);
        let found = found.map_err(|PageFault(code)| Exception {
            vector: exception::PF,
            error: Some(code),
            payload: at,
        })?;
        let Some((region, ..)) = phys.page(found.gpa) else { return Err(refused) };
        if access == Access::Write && !region.slot.writable {
            return Err(refused);
        }
        places.push((found.gpa, here));
        done += here;
    }
    Ok(places)
}

pub(super) fn read(
    memory: &GuestMem,
    registers: &Registers,
    gva: u64,
    out: &mut [u8],
) -> Result<(), Exception> {
    let mut rest = out;
    for (gpa, here) in places(memory, registers, gva, rest.len(), Access::Read)? {
        let (now, later) = rest.split_at_mut(here);
        // It was there just now; a layout that changed meanwhile leaves what is lost as it was.
        let _ = memory.read(gpa, now);
        rest = later;
    }
    Ok(())
}

pub(super) fn write(
    memory: &GuestMem,
    registers: &Registers,
    gva: u64,
    data: &[u8],
) -> Result<(), Exception> {
    let mut rest = data;
    for (gpa, here) in places(memory, registers, gva, data.len(), Access::Write)? {
        let (now, later) = rest.split_at(here);
        let _ = memory.write(gpa, now);
        rest = later;
    }
    Ok(())
}
