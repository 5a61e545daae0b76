//! The chipset on a board: interrupts from a device to the processor, and the ways to end.

mod common;

use common::Board;
use device::{Msi, PowerEvent};

/// Both PICs as Linux sets them up: vectors 0x30 and 0x38, all unmasked.
fn start_pics(board: &Board) {
    for (port, base, cascade) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
        board.out(port, 0x11);
        for icw in [base, cascade, 1, 0] {
            board.out(port + 1, icw);
        }
    }
}

#[test]
fn an_isa_irq_reaches_pic_and_ioapic() {
    let board = Board::new();
    start_pics(&board);
    board.route(4, 0x44);
    board.wiring.irqs[4].set(true);
    assert!(board.chipset.pic.pending());
    assert_eq!(board.chipset.pic.ack(), Some(0x34));
    assert!(!board.chipset.pic.pending());
    assert_eq!(board.chipset.pic.ack(), None);
    assert_eq!(board.sink.take_messages(), [Msi { address: 0xfee0_0000, data: 0x44 }]);
}

#[test]
fn irq_0_is_pin_2_and_gsi_16_has_no_pic() {
    let board = Board::new();
    start_pics(&board);
    board.route(2, 0x42);
    board.route(16, 0x46);
    board.wiring.irqs[2].set(true);
    assert!(!board.chipset.pic.pending(), "the cascade is nobody's");
    board.wiring.irqs[0].pulse();
    assert_eq!(board.chipset.pic.ack(), Some(0x30));
    board.out(0x20, 0x20);
    board.wiring.irqs[16].pulse();
    assert!(!board.chipset.pic.pending());
    let vectors: Vec<u32> = board.sink.take_messages().iter().map(|msi| msi.data).collect();
    assert_eq!(vectors, [0x42, 0x46]);
}

#[test]
fn the_slave_cascades() {
    let board = Board::new();
    start_pics(&board);
    board.wiring.irqs[12].set(true);
    board.wiring.irqs[10].set(true);
    assert_eq!(board.chipset.pic.ack(), Some(0x3a));
    assert_eq!(board.chipset.pic.ack(), None, "12 is below 10");
    board.out(0xa0, 0x0b);
    assert_eq!(board.input(0xa0), 1 << 2, "its ISR");
    board.out(0x20, 0x0b);
    assert_eq!(board.input(0x20), 1 << 2);
    board.out(0xa0, 0x20);
    board.out(0x20, 0x20);
    assert_eq!(board.chipset.pic.ack(), Some(0x3c));
}

#[test]
fn a_request_that_the_slave_withdraws_is_gone() {
    let board = Board::new();
    start_pics(&board);
    board.wiring.irqs[11].set(true);
    board.out(0xa1, 0xff);
    assert_eq!(board.chipset.pic.ack(), None);
    board.out(0xa1, 0);
    assert_eq!(board.chipset.pic.ack(), Some(0x3b), "the edge was latched");
}

#[test]
fn a_level_triggered_line_asks_again() {
    let board = Board::new();
    start_pics(&board);
    board.out(0x4d1, 0xff);
    assert_eq!(board.input(0x4d1), 0xde, "some are edges always");
    let other = board.wiring.irq(9);
    board.wiring.irqs[9].set(true);
    other.set(true);
    for _ in 0..2 {
        assert_eq!(board.chipset.pic.ack(), Some(0x39));
        board.out(0xa0, 0x20);
        board.out(0x20, 0x20);
        board.wiring.irqs[9].set(false);
    }
    other.set(false);
    assert!(!board.chipset.pic.pending());
}

#[test]
fn the_pm_timer_is_one_read() {
    let board = Board::new();
    board.time.advance(1_000_000_000);
    let mut data = [0; 4];
    board.wiring.pio.read(0x608, &mut data);
    assert_eq!(u32::from_le_bytes(data), 3_579_545);
    assert_eq!(board.input(0x608), data[0]);
    assert_eq!(board.input(0x60a), data[2]);
}

#[test]
fn every_way_to_reset() {
    let board = Board::new();
    let resets = || board.sink.take_power();
    board.out(0xcf9, 0x02);
    assert_eq!(resets(), []);
    board.out(0xcf9, 0x06);
    assert_eq!(resets(), [PowerEvent::Reset]);
    board.out(0x92, 3);
    board.out(0x92, 3);
    assert_eq!(resets(), [PowerEvent::Reset], "its edge");
    board.wiring.pio.write(0xcf8, &[0, 6, 0, 0x80]);
    assert_eq!(resets(), [], "PCI's address");
    let mut data = [0; 4];
    board.wiring.pio.read(0xcf8, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn what_a_guest_can_tell_its_host() {
    let board = Board::new();
    assert_eq!(board.input(0x505), 3);
    board.out(0x505, 1);
    board.out(0x505, 2);
    board.wiring.pio.write(0xf4, &[1, 2, 0, 0]);
    board.out(0x80, 0x55);
    board.wiring.pio.write(0xe9, b"!");
    let events =
        [PowerEvent::GuestPanicked, PowerEvent::GuestCrashLoaded, PowerEvent::DebugExit(0x201)];
    assert_eq!(board.sink.take_power(), events);
    assert_eq!((board.text(), board.input(0xe9)), (b"!".to_vec(), 0xe9));
}

#[test]
fn sources_on_several_threads_leave_a_line_as_they_are() {
    let board = Board::new();
    start_pics(&board);
    board.out(0x4d0, 0x20);
    board.ioapic(0x10 + 10, 0x8050);
    let sources: Vec<_> = (0..4).map(|_| board.wiring.irq(5)).collect();
    std::thread::scope(|scope| {
        for source in &sources {
            scope.spawn(move || (0..2001).for_each(|i| source.set(i % 2 == 0)));
        }
        for _ in 0..2000 {
            board.chipset.ioapic.eoi(0x50);
            board.chipset.pic.ack();
            board.out(0x20, 0x20);
        }
    });
    assert!(board.chipset.pic.pending(), "all are high");
    sources.iter().for_each(|source| source.set(false));
    assert!(!board.chipset.pic.pending());
    board.chipset.ioapic.eoi(0x50);
    board.sink.take_messages();
    board.chipset.ioapic.eoi(0x50);
    assert_eq!(board.sink.take_messages(), [], "all are low");
}
