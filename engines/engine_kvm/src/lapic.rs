//! The APIC section to and from the kernel's register page.

use engine::Error;
use kvm_bindings::kvm_lapic_state;
use vcpu_state::ApicState;

const VERSION: usize = 0x3;
const TPR: usize = 0x8;
const REQUESTS: usize = 0x20;
const LVT_TIMER: usize = 0x32;
const INITIAL_COUNT: usize = 0x38;
const CURRENT_COUNT: usize = 0x39;
const DIVIDE: usize = 0x3e;

/// The kernel offers directed EOI with a split irqchip of its own accord; no machine of ours
/// uses it, and it is not state.
const VERSION_DIRECTED_EOI: u32 = 1 << 24;
const LVT_MASKED: u32 = 1 << 16;
const LVT_MODE: u32 = 3 << 17;
const LVT_ONE_SHOT: u32 = 0;
const LVT_PERIODIC: u32 = 1 << 17;
const LVT_DEADLINE: u32 = 2 << 17;

/// Timer ticks are nanoseconds times this (SDM volume 3, figure 11-10).
fn divider(configuration: u32) -> u64 {
    let bits = configuration & 3 | configuration >> 1 & 4;
    1 << ((bits + 1) & 7)
}

/// The register, and the bit in it, by which the timer's interrupt waits.
pub(crate) fn timer_request(regs: &[u32]) -> Option<(usize, u32)> {
    let vector = regs.get(LVT_TIMER)? & 0xff;
    let index = REQUESTS + (vector / 32) as usize;
    (index < regs.len()).then_some((index, 1 << (vector % 32)))
}

pub(crate) fn from_kvm(page: &kvm_lapic_state, base: u64) -> ApicState {
    let mut regs: Vec<u32> = page
        .regs
        .chunks_exact(16)
        .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]].map(|b| b as u8)))
        .collect();
    regs[VERSION] &= !VERSION_DIRECTED_EOI;
    if regs[LVT_TIMER] & LVT_MODE == LVT_PERIODIC && regs[INITIAL_COUNT] != 0 {
        // The kernel says 0 where the end of a period has yet to be dealt with.
        regs[CURRENT_COUNT] = regs[CURRENT_COUNT].max(1);
    }
    let counts = regs[LVT_TIMER] & LVT_MODE != LVT_DEADLINE && regs[CURRENT_COUNT] != 0;
    let left = u64::from(regs[CURRENT_COUNT]) * divider(regs[DIVIDE]);
    regs[CURRENT_COUNT] = 0;
    ApicState { base, regs, timer_left_ns: counts.then_some(left) }
}

/// The kernel checks the ID against the vCPU's, and computes the version itself.
pub(crate) fn to_kvm(apic: &ApicState, cr8: u8) -> Result<kvm_lapic_state, Error> {
    if apic.regs.len() != ApicState::REGS {
        return Err(Error::State("the APIC has another number of registers".into()));
    }
    let mut regs = apic.regs.clone();
    if regs[TPR] >> 4 & 0xf != u32::from(cr8) {
        regs[TPR] = u32::from(cr8) << 4;
    }
    let divider = divider(regs[DIVIDE]);
    let left = apic.timer_left_ns.map_or(0, |ns| ns.div_ceil(divider).max(1));
    regs[CURRENT_COUNT] = u32::try_from(left).unwrap_or(u32::MAX);
    let timer = regs[LVT_TIMER];
    if left == 0 && timer & LVT_MODE == LVT_ONE_SHOT && timer & LVT_MASKED == 0 {
        // The kernel would start an expired one-shot timer anew, and fire at once.
        regs[INITIAL_COUNT] = 0;
    }
    let mut page = kvm_lapic_state { regs: [0; 1024] };
    for (to, from) in page.regs.chunks_exact_mut(16).zip(regs) {
        for (byte, value) in to.iter_mut().zip(from.to_le_bytes()) {
            *byte = value as std::os::raw::c_char;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_survives_the_way_there_and_back() {
        let mut apic = ApicState::reset(3);
        apic.regs[0x20] = 0x8000_0001;
        apic.regs[DIVIDE] = 0b1010; // by 128
        apic.regs[INITIAL_COUNT] = 1000;
        apic.timer_left_ns = Some(640 * 128);
        let page = to_kvm(&apic, 0).unwrap();
        assert_eq!(from_kvm(&page, apic.base), apic);
        apic.regs.pop();
        assert!(to_kvm(&apic, 0).is_err());
    }

    #[test]
    fn a_periodic_timer_that_is_due_goes_on() {
        let mut apic = ApicState::reset(0);
        apic.regs[DIVIDE] = 0b1011; // by 1
        apic.regs[LVT_TIMER] = 0x40 | LVT_PERIODIC;
        apic.regs[INITIAL_COUNT] = 1000;
        let left = |apic: &ApicState| from_kvm(&to_kvm(apic, 0).unwrap(), 0).timer_left_ns;
        assert_eq!(left(&apic), Some(1));
        apic.regs[LVT_TIMER] = 0x40;
        assert_eq!(left(&apic), None);
    }

    #[test]
    fn the_timers_request_is_that_of_its_vector() {
        let mut apic = ApicState::reset(0);
        apic.regs[LVT_TIMER] = 0xec;
        assert_eq!(timer_request(&apic.regs), Some((REQUESTS + 7, 1 << 12)));
        assert_eq!(timer_request(&[]), None);
    }

    #[test]
    fn divide_configurations() {
        let expected = [2u64, 4, 8, 16, 2, 4, 8, 16, 32, 64, 128, 1];
        for (configuration, divide) in expected.into_iter().enumerate() {
            assert_eq!(divider(configuration as u32), divide);
        }
    }

    #[test]
    fn cr8_is_the_task_priority() {
        let mut apic = ApicState::reset(0);
        apic.regs[TPR] = 0x23;
        let tpr = |cr8| from_kvm(&to_kvm(&apic, cr8).unwrap(), 0).regs[TPR];
        assert_eq!((tpr(2), tpr(5)), (0x23, 0x50));
    }
}
