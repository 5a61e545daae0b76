//! Interrupts through one or several APICs, as SDM volume 3, chapter 11 describes them.

mod common;

use common::*;
use device::Device;
use local_apic::{GeneralProtection, Pending};
use x86_defs::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST, apic_base};

const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

#[test]
fn power_on_values() {
    let board = Board::fresh(2);
    let apic = board.apic(1);
    assert_eq!((get(apic, 0x20), get(apic, 0x30)), (1 << 24, 0x0005_0014));
    assert_eq!((get(apic, SVR), get(apic, DFR), get(apic, LINT0)), (0xff, !0, 1 << 16));
    assert_eq!(apic.save().apic, vcpu_state::ApicState::reset(1));
    assert_eq!(board.apic(0).save().apic, vcpu_state::ApicState::reset(0));
    board.msi(1, 0x40);
    assert_eq!(apic.pending(false), None, "disabled by software");
    assert_eq!(board.woken(), Vec::<u32>::new());
}

#[test]
fn priorities_nest() {
    let board = Board::new(1);
    let apic = board.apic(0);
    board.msi(0, 0x41);
    board.msi(0, 0x52);
    assert_eq!(board.woken(), [0, 0]);
    assert_eq!(take(apic), Some(0x52));
    assert_eq!(get(apic, PPR), 0x50);
    assert_eq!(take(apic), None);
    board.msi(0, 0x5f);
    assert_eq!(take(apic), None, "the same class");
    board.msi(0, 0x60);
    assert_eq!(take(apic), Some(0x60));
    put(apic, EOI, 0);
    assert_eq!(take(apic), None);
    put(apic, EOI, 0);
    assert_eq!(take(apic), Some(0x5f));
    put(apic, EOI, 0);
    assert_eq!(take(apic), Some(0x41));
    assert_eq!(get(apic, 0x100 + 0x20), 2, "ISR");
    put(apic, EOI, 0);
    put(apic, EOI, 0);
    assert_eq!((get(apic, PPR), take(apic)), (0, None));
}

#[test]
fn task_priority_and_cr8_are_one() {
    let board = Board::new(1);
    let apic = board.apic(0);
    apic.set_cr8(5);
    assert_eq!((get(apic, TPR), get(apic, PPR)), (0x50, 0x50));
    board.msi(0, 0x5f);
    assert_eq!(take(apic), None);
    put(apic, TPR, 0x47);
    assert_eq!((apic.cr8(), take(apic)), (4, Some(0x5f)));
}

#[test]
fn level_interrupts_are_ended_on_the_bus() {
    let board = Board::new(1);
    let apic = board.apic(0);
    board.msi(0, 0xc031);
    board.msi(0, 0x42);
    assert_eq!(get(apic, 0x180 + 0x10), 1 << 0x11, "TMR");
    take(apic);
    put(apic, EOI, 0);
    assert!(board.ended.lock().unwrap().is_empty(), "an edge");
    take(apic);
    put(apic, EOI, 0);
    assert_eq!(*board.ended.lock().unwrap(), [0x31]);
}

#[test]
fn the_pic_comes_through_lint0_or_past_a_disabled_apic() {
    let board = Board::fresh(1);
    let apic = board.apic(0);
    assert_eq!(apic.pending(true), None, "LINT0 is masked");
    apic.set_virtual_wire();
    assert_eq!(apic.pending(true), Some(Pending::Interrupt));
    apic.set_cr8(15);
    assert_eq!(apic.ack(Pending::Interrupt, || Some(0x20)), Some(0x20));
    assert_eq!(get(apic, 0x110), 0, "not in the ISR");
    assert_eq!(apic.ack(Pending::Interrupt, || None), None, "withdrawn");
    put(apic, LINT0, 0x1_0700);
    assert_eq!(apic.pending(true), None);
    apic.pulse_lint(1);
    assert_eq!(apic.pending(false), Some(Pending::Nmi));
    assert_eq!(apic.ack(Pending::Nmi, || None), Some(2));
    apic.wrmsr(IA32_APIC_BASE, apic_base::DEFAULT).unwrap();
    assert_eq!(apic.pending(true), Some(Pending::Interrupt));
    put(apic, LINT1, 0x400);
    assert_eq!(apic.mmio_offset(apic_base::DEFAULT), None);
}

#[test]
fn init_and_sipi() {
    let board = Board::new(2);
    let (bsp, ap) = (board.apic(0), board.apic(1));
    put(ap, TPR, 0x30);
    put(bsp, ICR_HIGH, 1 << 24);
    put(bsp, ICR, 0xc500);
    put(bsp, ICR, 0x8500);
    put(bsp, ICR, 0x069a);
    assert_eq!(ap.pending(false), Some(Pending::Init));
    assert_eq!(ap.ack(Pending::Init, || None), Some(0));
    assert_eq!((get(ap, TPR), get(ap, SVR), get(ap, 0x20)), (0, 0xff, 1 << 24));
    assert_eq!(ap.pending(false), Some(Pending::Sipi));
    assert_eq!(ap.ack(Pending::Sipi, || None), Some(0x9a));
    assert_eq!(ap.pending(false), None);
    assert_eq!(ap.ack(Pending::Sipi, || None), None);
    assert_eq!(get(bsp, ICR), 0x069a, "idle");
}

#[test]
fn shorthands_and_logical_destinations() {
    let board = Board::new(4);
    for (id, apic) in (0..).zip(board.bus.apics()) {
        put(apic, LDR, 1 << (24 + id));
    }
    let sender = board.apic(2);
    let got = || -> Vec<Option<u8>> { board.bus.apics().iter().map(|apic| take(apic)).collect() };
    let ended = || board.bus.apics().iter().for_each(|apic| put(apic, EOI, 0));
    put(sender, ICR, 0xc_0040);
    assert_eq!(got(), [Some(0x40), Some(0x40), None, Some(0x40)]);
    ended();
    put(sender, ICR, 0x4_0041);
    assert_eq!(got(), [None, None, Some(0x41), None]);
    ended();
    put(sender, ICR_HIGH, 0b1001 << 24);
    put(sender, ICR, 0x0842);
    assert_eq!(got(), [Some(0x42), None, None, Some(0x42)]);
    ended();
    // Lowest priority among 0 and 3.
    board.apic(0).set_cr8(2);
    for _ in 0..3 {
        put(sender, ICR, 0x0943);
        assert_eq!(got(), [None, None, None, Some(0x43)]);
        ended();
    }
    put(sender, ICR, 0x8_0400);
    assert!(board.bus.apics().iter().all(|apic| apic.pending(false) == Some(Pending::Nmi)));
}

#[test]
fn errors_are_latched_and_interrupt() {
    let board = Board::new(1);
    let apic = board.apic(0);
    put(apic, LVT_ERROR, 0xfe);
    put(apic, ICR, 0x4_0005);
    assert_eq!(take(apic), Some(0xfe));
    assert_eq!(get(apic, ESR), 0);
    board.msi(0, 0x0f);
    put(apic, ESR, 0);
    assert_eq!(get(apic, ESR), 0x60);
    put(apic, 0x3f0, 1);
    put(apic, ESR, 0);
    assert_eq!(get(apic, ESR), 0x80);
    put(apic, LVT_ERROR, 0x02);
    put(apic, ICR, 0x4_0005);
}

#[test]
fn a_disabled_apic_masks_its_table() {
    let board = Board::new(1);
    let apic = board.apic(0);
    put(apic, LVT_TIMER, 0x2_0040);
    put(apic, SVR, 0xff);
    assert_eq!(get(apic, LVT_TIMER), 0x3_0040);
    put(apic, LVT_TIMER, 0x40);
    assert_eq!(get(apic, LVT_TIMER), 0x1_0040);
}

#[test]
fn one_shot_and_periodic_timer() {
    let board = Board::new(1);
    let apic = board.apic(0);
    put(apic, LVT_TIMER, 0x40);
    put(apic, DIVIDE, 0x3); // by 16
    put(apic, INITIAL, 1000);
    board.time.advance(8_000);
    assert_eq!((get(apic, CURRENT), take(apic)), (500, None));
    put(apic, DIVIDE, 0xb); // by 1
    assert_eq!(get(apic, CURRENT), 500);
    board.time.advance(500);
    assert_eq!((take(apic), get(apic, CURRENT)), (Some(0x40), 0));
    put(apic, EOI, 0);
    board.time.advance(1_000_000);
    assert_eq!(take(apic), None);
    put(apic, LVT_TIMER, 0x2_0041);
    put(apic, INITIAL, 100_000);
    for _ in 0..3 {
        board.time.advance(100_000);
        assert_eq!(take(apic), Some(0x41));
        put(apic, EOI, 0);
    }
    put(apic, LVT_TIMER, 0x3_0041);
    board.time.advance(100_000);
    assert_eq!(take(apic), None, "masked");
    put(apic, INITIAL, 0);
    assert_eq!((board.time.next(), apic.next_deadline_ns()), (None, None));
    // A period that no host can follow.
    put(apic, LVT_TIMER, 0x2_0041);
    put(apic, INITIAL, 1);
    board.time.advance(1_000_000);
    assert_eq!(take(apic), Some(0x41));
}

#[test]
fn tsc_deadline_timer() {
    let board = Board::new(1);
    let apic = board.apic(0);
    apic.wrmsr(IA32_TSC_DEADLINE, 99).unwrap();
    assert_eq!(apic.rdmsr(IA32_TSC_DEADLINE), Ok(0), "not in this mode");
    put(apic, LVT_TIMER, 0x4_0040);
    put(apic, INITIAL, 5);
    assert_eq!(get(apic, INITIAL), 0);
    apic.wrmsr(IA32_TSC_DEADLINE, 3_000).unwrap();
    assert_eq!(apic.next_deadline_ns(), Some(1_000));
    board.time.advance(999);
    assert_eq!((apic.rdmsr(IA32_TSC_DEADLINE), take(apic)), (Ok(3_000), None));
    board.time.advance(1);
    assert_eq!((apic.rdmsr(IA32_TSC_DEADLINE), take(apic)), (Ok(0), Some(0x40)));
    put(apic, EOI, 0);
    apic.wrmsr(IA32_TSC_DEADLINE, 1).unwrap();
    assert_eq!(take(apic), Some(0x40), "already past");
    apic.wrmsr(IA32_TSC_DEADLINE, u64::MAX).unwrap();
    put(apic, LVT_TIMER, 0x40);
    assert_eq!((apic.rdmsr(IA32_TSC_DEADLINE), apic.next_deadline_ns()), (Ok(0), None));
}

#[test]
fn base_transitions() {
    const X2: u64 = apic_base::ENABLE | apic_base::X2APIC;
    let board = Board::new(2);
    let apic = board.apic(1);
    let base = |mode: u64| apic.wrmsr(IA32_APIC_BASE, apic_base::DEFAULT | mode);
    assert_eq!(base(apic_base::X2APIC), Err(GeneralProtection));
    assert_eq!(apic.wrmsr(IA32_APIC_BASE, 1), Err(GeneralProtection));
    assert_eq!(apic.wrmsr(IA32_APIC_BASE, 1 << 52), Err(GeneralProtection));
    assert_eq!(base(X2), Ok(()));
    assert_eq!(apic.rdmsr(X2APIC_FIRST + 0xd), Ok(2), "logical ID");
    assert_eq!(base(apic_base::ENABLE), Err(GeneralProtection));
    assert_eq!(base(0), Ok(()));
    assert_eq!(base(X2), Err(GeneralProtection));
    assert_eq!(base(apic_base::ENABLE), Ok(()));
    assert_eq!(get(apic, SVR), 0xff, "as after power-on");
    let moved = 0x1234_5000 | apic_base::ENABLE;
    apic.wrmsr(IA32_APIC_BASE, moved).unwrap();
    assert_eq!(apic.mmio_offset(0x1234_5320), Some(0x320));
    assert_eq!(apic.mmio_offset(0xfee0_0320), None);
}

#[test]
fn x2apic_registers() {
    let board = Board::new(3);
    for apic in board.bus.apics() {
        assert_eq!(apic.rdmsr(0x802), Err(GeneralProtection));
        let base = apic.rdmsr(IA32_APIC_BASE).unwrap();
        apic.wrmsr(IA32_APIC_BASE, base | apic_base::X2APIC).unwrap();
    }
    let apic = board.apic(2);
    assert_eq!((apic.rdmsr(0x802), apic.rdmsr(0x803)), (Ok(2), Ok(0x0005_0014)));
    for index in [0x800, 0x80b, 0x80e, 0x831, 0x83f, 0x8ff] {
        assert_eq!(apic.rdmsr(index), Err(GeneralProtection), "{index:#x}");
    }
    let refused = [(0x802, 0), (0x808, 0x100), (0x80b, 1), (0x80d, 1), (0x80f, 1 << 10)]
        .into_iter()
        .chain([(0x828, 1), (0x830, 1 << 20), (0x835, 1 << 17), (0x838, 1 << 32), (0x839, 0)]);
    for (index, value) in refused {
        assert_eq!(apic.wrmsr(index, value), Err(GeneralProtection), "{index:#x}");
    }
    assert_eq!(apic.mmio_offset(apic_base::DEFAULT), None);
    apic.wrmsr(0x830, 1 << 32 | 0x44).unwrap();
    assert_eq!((take(board.apic(1)), take(board.apic(0))), (Some(0x44), None));
    assert_eq!(apic.rdmsr(0x830), Ok(1 << 32 | 0x44));
    apic.wrmsr(0x830, 0x5_0000_0000 | 0x0845).unwrap(); // cluster 0, members 0 and 2
    assert_eq!((take(board.apic(0)), take(apic)), (Some(0x45), Some(0x45)));
    apic.wrmsr(0x83f, 0x66).unwrap();
    assert_eq!(take(apic), Some(0x66));
    apic.wrmsr(0x80b, 0).unwrap();
    apic.wrmsr(0x830, 0xffff_ffff_0000_0047).unwrap();
    assert_eq!(apic.rdmsr(0x822), Ok(1 << 7));
}

#[test]
fn a_running_timer_is_saved() {
    let board = Board::new(1);
    let apic = board.apic(0);
    put(apic, LVT_TIMER, 0x2_0040);
    put(apic, DIVIDE, 0xb);
    put(apic, INITIAL, 1_000_000);
    board.time.advance(400_000);
    apic.nmi();
    let saved = apic.save();
    assert_eq!((saved.apic.timer_left_ns, saved.nmi), (Some(600_000), true));
    let other = Board::fresh(1);
    other.time.advance(5);
    other.apic(0).restore(&saved).unwrap();
    assert_eq!(other.apic(0).ack(Pending::Nmi, || None), Some(2));
    other.time.advance(599_999);
    assert_eq!(take(other.apic(0)), None);
    other.time.advance(1);
    assert_eq!(take(other.apic(0)), Some(0x40));
    other.bus.reset();
    assert_eq!(other.time.next(), None);
}

#[test]
fn impossible_states_are_refused() {
    let board = Board::new(2);
    let good = board.apic(1).save();
    let refuse = |change: fn(&mut local_apic::Saved)| {
        let mut bad = good.clone();
        change(&mut bad);
        let before = board.apic(1).save();
        assert!(board.apic(1).restore(&bad).is_err());
        assert_eq!(board.apic(1).save(), before, "nothing changed");
    };
    refuse(|s| s.apic.regs.truncate(63));
    refuse(|s| s.apic.base = apic_base::X2APIC);
    refuse(|s| s.apic.regs[2] = 0);
    refuse(|s| s.apic.regs[0x20] = 1);
    board.apic(1).restore(&good).unwrap();
}

#[test]
fn accesses_of_odd_sizes() {
    let board = Board::new(1);
    let apic = board.apic(0);
    apic.mmio_write(TPR, &[0x50]);
    apic.mmio_write(TPR + 1, &[0x50, 0, 0, 0]);
    apic.mmio_write(TPR, &[0x50; 8]);
    assert_eq!(get(apic, TPR), 0);
    let mut data = [0xff; 8];
    apic.mmio_read(0x30, &mut data);
    assert_eq!(data, [0x14, 0, 5, 0, 0, 0, 0, 0]);
    apic.mmio_read(0x32, &mut data[..2]);
    assert_eq!(data[..2], [5, 0]);
    apic.mmio_read(0x3c, &mut data);
    assert_eq!(data, [0; 8]);
}
