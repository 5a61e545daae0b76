use super::*;

fn out(regs: &mut Regs, reg: u16, value: u8) -> Option<u8> {
    let mut after = After::default();
    regs.write(reg, value, &mut after);
    after.sent
}

#[test]
fn linux_tells_it_from_its_relatives() {
    let mut regs = Regs::default();
    // IER keeps four bits, the scratch register eight.
    out(&mut regs, 1, 0xff);
    assert_eq!(regs.read(1), 0x0f);
    out(&mut regs, 1, 0);
    out(&mut regs, 7, 0xa5);
    assert_eq!(regs.read(7), 0xa5);
    // The loopback test of 8250_port: 0x1a gives DCD and CTS.
    out(&mut regs, 4, 0x1a);
    assert_eq!(regs.read(6) & 0xf0, 0x90);
    out(&mut regs, 4, 0);
    // FIFOs present and working: a 16550A, without the 64-byte bit of a 16750.
    out(&mut regs, 2, 0x21);
    assert_eq!(regs.read(2) >> 5, 6);
    assert_eq!(regs.read(5), 0x60);
}

#[test]
fn thr_empty_interrupts_when_enabled_and_after_each_byte() {
    let mut regs = Regs::default();
    out(&mut regs, 4, mcr::OUT2);
    assert!(!regs.line());
    out(&mut regs, 1, ier::THR_EMPTY);
    assert!(regs.line());
    assert_eq!(regs.read(2), iir::THR_EMPTY);
    assert!(!regs.line(), "identifying it clears it");
    assert_eq!(regs.read(2), iir::NONE);
    assert_eq!(out(&mut regs, 0, b'x'), Some(b'x'));
    assert!(regs.line());
    out(&mut regs, 1, 0);
    assert!(!regs.line());
    regs.read(2);
    out(&mut regs, 1, ier::THR_EMPTY);
    assert!(regs.line(), "enabling again raises it again");
}

#[test]
fn trigger_level_and_timeout() {
    let mut regs = Regs::default();
    out(&mut regs, 2, 0x81);
    out(&mut regs, 1, ier::RECEIVED);
    assert_eq!(regs.receive(b"abc"), 3);
    assert_eq!(regs.read(2) & 0xf, iir::TIMEOUT);
    assert_eq!(regs.receive(b"defgh"), 5);
    assert_eq!(regs.read(2) & 0xf, iir::RECEIVED);
    let got: Vec<u8> = (0..8).map(|_| regs.read(0)).collect();
    assert_eq!(got, b"abcdefgh");
    assert_eq!(regs.read(2) & 0xf, iir::NONE);
    assert_eq!(regs.read(0), 0);
}

#[test]
fn a_sender_waits_for_room() {
    let mut regs = Regs::default();
    out(&mut regs, 2, 1);
    assert_eq!(regs.receive(&[7; 20]), 16);
    assert!(!regs.take_room());
    regs.read(0);
    assert!(regs.take_room());
    assert!(!regs.take_room(), "told once");
    assert_eq!(regs.read(5) & lsr::OVERRUN, 0);
}

#[test]
fn loopback_overruns_and_holds_the_line_off() {
    let mut regs = Regs::default();
    out(&mut regs, 4, mcr::LOOP | mcr::OUT2);
    out(&mut regs, 1, ier::ALL);
    assert_eq!(out(&mut regs, 0, 1), None, "nothing leaves the port");
    assert_eq!(out(&mut regs, 0, 2), None);
    assert!(!regs.line());
    assert_eq!(regs.read(2) & 0xf, iir::LINE_STATUS);
    assert_eq!(regs.read(5), 0x60 | lsr::DATA_READY | lsr::OVERRUN);
    assert_eq!(regs.read(5), 0x60 | lsr::DATA_READY);
    assert_eq!(regs.read(0), 2, "without a FIFO the newest byte stays");
    assert_eq!(regs.receive(b"x"), 0, "the input is not connected");
    out(&mut regs, 4, 0);
    assert!(regs.take_room());
}

#[test]
fn modem_status_tells_changes_once() {
    let mut regs = Regs::default();
    assert_eq!(regs.read(6), 0xb0);
    out(&mut regs, 4, mcr::LOOP | mcr::OUT1);
    assert_eq!(regs.read(6), 0x40 | 0b1011);
    assert_eq!(regs.read(6), 0x40);
    out(&mut regs, 4, mcr::LOOP);
    assert_eq!(regs.read(6), 0b0100, "the ring's trailing edge");
    out(&mut regs, 1, ier::MODEM_STATUS);
    out(&mut regs, 4, mcr::LOOP | mcr::RTS);
    assert_eq!(regs.read(2), iir::MODEM_STATUS);
}

#[test]
fn break_and_divisor() {
    let mut regs = Regs::default();
    regs.receive_break();
    assert_eq!(regs.read(5) & lsr::ERRORS, lsr::BREAK);
    assert_eq!(regs.read(5) & lsr::ERRORS, 0);
    out(&mut regs, 3, 0x83);
    out(&mut regs, 0, 1);
    out(&mut regs, 1, 0);
    assert_eq!((regs.read(0), regs.read(1)), (1, 0));
    assert_eq!(regs.divisor, 1);
    out(&mut regs, 3, 3);
    assert_eq!(regs.read(0), 0, "the received break");
}

#[test]
fn toggling_the_fifo_empties_it() {
    let mut regs = Regs::default();
    regs.receive(b"a");
    out(&mut regs, 2, 1);
    assert_eq!(regs.read(5) & lsr::DATA_READY, 0);
    regs.receive(b"abc");
    out(&mut regs, 2, 3);
    assert_eq!(regs.read(5) & lsr::DATA_READY, 0);
    regs.receive(b"abc");
    out(&mut regs, 2, 2);
    assert_eq!((regs.rx.len(), regs.fcr), (0, 0));
}
