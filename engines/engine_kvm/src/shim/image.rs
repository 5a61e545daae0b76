//! What is in the shim's pages.
//!
//! | page | offset | what |
//! |---|---|---|
//! | 0 | 0 | 32 gates of 16 bytes |
//! | 0 | 0x400 | the gates' entries, 8 bytes each |
//! | 0 | 0x600 | forgets the TLB |
//! | 0 | 0x700 | where LSTAR leads: never executed |
//! | 1 and on, one a vCPU | 0 | its TSS |
//! | | 0x1000 | the top of its stack |

use engine::{Error, Intercepts, Ring0, VmConfig};
use guest_mem::{GuestMem, PAGE};
use vcpu_state::{Segment, Table};
use x86_defs::{
    exception::{BP, OF},
    segment::{ATTR_ACCESSED, ATTR_CODE, ATTR_G, ATTR_L, ATTR_P, ATTR_RW, ATTR_S, system_type},
};

/// Gates: those of exceptions. What is behind them raises #GP, as INT n has to.
const VECTORS: u8 = 32;
const ENTRIES: u64 = 0x400;
const ENTRY_LEN: u64 = 8;
const FORGET: u64 = 0x600;
const SYSTEM_CALL: u64 = 0x700;
/// Of a 64-bit TSS without a bitmap of ports (SDM volume 3, 8.7).
pub(super) const TASK_STATE_LIMIT: u32 = 0x67;
/// OUT imm8, AL changes nothing but RIP. Which port it names is of no account: ring 3 has none.
const LEAVE: [u8; 2] = [0xe6, 0xee];
/// MOV RAX, CR3; MOV CR3, RAX.
const RELOAD: [u8; 6] = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
const UD2: [u8; 2] = [0x0f, 0x0b];

/// All that a shim intercepts, and no less.
pub(crate) const INTERCEPTS: Intercepts =
    Intercepts { exceptions: !0, syscall: true, cpuid: false };

/// The pages of a VM that wants intercepts, whose configuration may be refused.
pub(crate) fn check(config: &VmConfig) -> Result<Option<Image>, Error> {
    if config.intercepts == Intercepts::default() {
        return Ok(None);
    }
    if config.intercepts != INTERCEPTS {
        return Err(Error::Unsupported("these intercepts without the others"));
    }
    if config.counted {
        return Err(Error::Unsupported("counting instructions of a guest without a ring 0"));
    }
    let Some(place) = config.ring0 else { return Err(Error::Unsupported("these intercepts")) };
    let len = place.pages.checked_mul(PAGE);
    let whole =
        |at: u64| at.is_multiple_of(PAGE) && len.is_some_and(|n| at.checked_add(n).is_some());
    if place.pages < 2 || !whole(place.gpa) || !whole(place.linear) {
        return Err(Error::Unsupported("code in ring 0 there"));
    }
    Ok(Some(Image(place)))
}

/// Where a shim is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image(Ring0);

/// What RIP says of a vCPU that has left by the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Exception(u8),
    Forgot,
    Unknown,
}

impl Image {
    pub(crate) fn vcpus(&self) -> u64 {
        self.0.pages - 1
    }

    pub(super) fn idtr(&self) -> Table {
        Table { base: self.0.linear, limit: u16::from(VECTORS) * 16 - 1 }
    }

    fn own(&self, vcpu: u32) -> u64 {
        (u64::from(vcpu) + 1) * PAGE
    }

    pub(super) fn task_state(&self, vcpu: u32) -> u64 {
        self.0.linear + self.own(vcpu)
    }

    /// The guest-physical address of an exception's frame: RIP, CS, RFLAGS, RSP, SS, and before
    /// them the error code if there is one (SDM volume 3, 6.14.2).
    pub(super) fn frame(&self, vcpu: u32) -> u64 {
        self.0.gpa + self.own(vcpu) + PAGE - 5 * 8
    }

    pub(super) fn system_call(&self) -> u64 {
        self.0.linear + SYSTEM_CALL
    }

    pub(super) fn forget(&self) -> u64 {
        self.0.linear + FORGET
    }

    /// Ring 0.
    pub(super) fn code(&self) -> Segment {
        let attr = ATTR_ACCESSED | ATTR_RW | ATTR_CODE | ATTR_S | ATTR_P | ATTR_L | ATTR_G;
        Segment { selector: self.0.code, base: 0, limit: u32::MAX, attr }
    }

    pub(super) fn left_at(&self, rip: u64) -> Left {
        let Some(offset) = rip.checked_sub(self.0.linear + LEAVE.len() as u64) else {
            return Left::Unknown;
        };
        if offset == FORGET + RELOAD.len() as u64 {
            return Left::Forgot;
        }
        match offset.checked_sub(ENTRIES) {
            Some(at) if at.is_multiple_of(ENTRY_LEN) && at < u64::from(VECTORS) * ENTRY_LEN => {
                Left::Exception((at / ENTRY_LEN) as u8)
            }
            _ => Left::Unknown,
        }
    }

    fn shared_page(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            if let Some(there) = page.get_mut(at as usize..at as usize + bytes.len()) {
                there.copy_from_slice(bytes);
            }
        };
        for vector in 0..VECTORS {
            let at = ENTRIES + u64::from(vector) * ENTRY_LEN;
            put(at, &[LEAVE, UD2].concat());
            put(u64::from(vector) * 16, &self.gate(vector, self.0.linear + at));
        }
        put(FORGET, &[&RELOAD[..], &LEAVE, &UD2].concat());
        put(SYSTEM_CALL, &UD2);
        page
    }

    /// INT3 and INTO are instructions of any ring, and INT n is not (SDM volume 3, 6.12.1.1).
    fn gate(&self, vector: u8, to: u64) -> [u8; 16] {
        let dpl = if matches!(vector, BP | OF) { 3 } else { 0 };
        let attr = u64::from(ATTR_P | system_type::INTERRUPT_GATE) | dpl << 5;
        let low =
            to & 0xffff | u64::from(self.0.code) << 16 | attr << 40 | (to >> 16 & 0xffff) << 48;
        (u128::from(to >> 32) << 64 | u128::from(low)).to_le_bytes()
    }

    fn task(&self, vcpu: u32) -> Vec<u8> {
        let top = self.task_state(vcpu) + PAGE;
        let mut bytes = vec![0; TASK_STATE_LIMIT as usize + 1];
        bytes[4..12].copy_from_slice(&top.to_le_bytes());
        // The bitmap of ports would begin behind the end.
        bytes[102..].copy_from_slice(&(TASK_STATE_LIMIT as u16 + 1).to_le_bytes());
        bytes
    }

    /// Puts what a vCPU needs where it has to be, if it is not there.
    pub(super) fn install(&self, memory: &GuestMem, vcpu: u32) -> Result<(), Error> {
        for (at, bytes) in [(0, self.shared_page()), (self.own(vcpu), self.task(vcpu))] {
            let mut there = vec![0; bytes.len()];
            memory.read(self.0.gpa + at, &mut there)?;
            if there != bytes {
                memory.write(self.0.gpa + at, &bytes)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Ring0 =
        Ring0 { gpa: 0x10_0000, linear: 0xffff_8080_0040_0000, pages: 3, code: 0xe008 };

    #[test]
    fn gates_lead_to_entries_that_tell_their_vector() {
        let image = Image(PLACE);
        let page = image.shared_page();
        for vector in 0..VECTORS {
            let gate: [u8; 16] = page[usize::from(vector) * 16..][..16].try_into().unwrap();
            let gate = u128::from_le_bytes(gate);
            let to = (gate & 0xffff | gate >> 48 << 16) as u64 & 0xffff_ffff
                | ((gate >> 64) as u64) << 32;
            assert_eq!(gate >> 16 & 0xffff, 0xe008);
            let dpl = if vector == 3 || vector == 4 { 3 } else { 0 };
            assert_eq!(gate >> 40 & 0xff, 0x8e | dpl << 5, "{vector}");
            let at = (to - PLACE.linear) as usize;
            assert_eq!(page[at..at + 2], LEAVE);
            assert_eq!(image.left_at(to + 2), Left::Exception(vector));
            assert_eq!(image.left_at(to), Left::Unknown);
        }
        assert_eq!(image.left_at(image.forget() + 8), Left::Forgot);
        assert_eq!(image.left_at(image.system_call() + 2), Left::Unknown);
        assert_eq!(image.left_at(0), Left::Unknown);
    }

    #[test]
    fn only_what_a_shim_can_do_is_begun() {
        let config = VmConfig { intercepts: INTERCEPTS, ring0: Some(PLACE), ..VmConfig::default() };
        assert_eq!(check(&config).unwrap().unwrap().vcpus(), 2);
        assert!(check(&VmConfig { ring0: Some(PLACE), ..VmConfig::default() }).unwrap().is_none());
        let refused = [
            VmConfig { ring0: None, ..config.clone() },
            VmConfig { counted: true, ..config.clone() },
            VmConfig { intercepts: Intercepts { syscall: false, ..INTERCEPTS }, ..config.clone() },
            VmConfig { intercepts: Intercepts { cpuid: true, ..INTERCEPTS }, ..config.clone() },
            VmConfig { ring0: Some(Ring0 { pages: 1, ..PLACE }), ..config.clone() },
            VmConfig { ring0: Some(Ring0 { gpa: 8, ..PLACE }), ..config.clone() },
            VmConfig { ring0: Some(Ring0 { linear: !0xfff, ..PLACE }), ..config.clone() },
        ];
        for config in refused {
            assert!(matches!(check(&config), Err(Error::Unsupported(_))), "{config:?}");
        }
    }
}
