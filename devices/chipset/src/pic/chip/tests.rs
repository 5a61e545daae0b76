use super::*;

fn ready() -> Chip {
    let mut chip = Chip::default();
    chip.write_command(0x11);
    for icw in [0x20, 0x04, 0x01] {
        chip.write_data(icw);
    }
    chip
}

fn take(chip: &mut Chip) -> Option<u8> {
    let input = chip.request(true)?;
    chip.acknowledge(input);
    Some(input)
}

#[test]
fn priority_and_nesting() {
    let mut chip = ready();
    chip.set_input(5, true);
    assert_eq!(take(&mut chip), Some(5));
    assert_eq!(chip.vector(5), 0x25);
    chip.set_input(6, true);
    assert_eq!(chip.request(true), None, "lower than what is served");
    chip.set_input(1, true);
    assert_eq!(take(&mut chip), Some(1));
    chip.write_command(0x20);
    assert_eq!(chip.isr, 1 << 5, "non-specific EOI ends the highest");
    chip.write_command(0x65);
    assert_eq!(chip.isr, 0);
    assert_eq!(take(&mut chip), Some(6));
}

#[test]
fn edge_and_level() {
    let mut chip = ready();
    chip.set_input(3, true);
    take(&mut chip);
    chip.write_command(0x20);
    assert_eq!(chip.request(true), None, "still high is no new edge");
    chip.write_elcr(8);
    assert_eq!(chip.request(true), Some(3));
    take(&mut chip);
    chip.write_command(0x20);
    assert_eq!(chip.request(true), Some(3), "a level asks until it falls");
    chip.set_input(3, false);
    assert_eq!(chip.request(true), None);
}

#[test]
fn rotation() {
    let mut chip = ready();
    chip.write_command(0xc2); // input 2 is the lowest, 3 the highest
    chip.set_input(2, true);
    chip.set_input(3, true);
    assert_eq!(take(&mut chip), Some(3));
    chip.write_command(0xa0); // rotate on non-specific EOI
    assert_eq!(chip.first, 4);
    chip.write_command(0xe7);
    assert_eq!(chip.first, 0);
}

#[test]
fn auto_eoi_and_its_rotation() {
    let mut chip = Chip::default();
    chip.write_command(0x11);
    for icw in [0x20, 0x04, 0x03] {
        chip.write_data(icw);
    }
    chip.write_command(0x80);
    chip.set_input(4, true);
    assert_eq!(take(&mut chip), Some(4));
    assert_eq!((chip.isr, chip.first), (0, 5));
}

#[test]
fn special_mask_lets_lower_ones_through() {
    let mut chip = ready();
    chip.set_input(1, true);
    take(&mut chip);
    chip.set_input(4, true);
    assert_eq!(chip.request(true), None);
    chip.write_data(1 << 1);
    chip.write_command(0x68);
    assert_eq!(chip.request(true), Some(4));
    chip.write_command(0x20);
    assert_eq!(chip.isr, 2, "a masked service is not ended by a non-specific EOI");
    chip.write_command(0x48);
    assert_eq!(chip.request(true), None);
}

#[test]
fn initialization_words() {
    let mut chip = ready();
    chip.write_data(0xff);
    chip.set_input(0, true);
    assert_eq!((chip.imr, chip.irr, chip.request(true)), (0xff, 1, None));
    chip.write_command(0x12); // single, no ICW4
    assert_eq!((chip.imr, chip.irr), (0, 0), "edges are forgotten");
    chip.write_data(0x5f);
    assert_eq!((chip.base, chip.init), (0x58, Init::Done));
    chip.write_data(0xa5);
    assert_eq!(chip.imr, 0xa5);
}

#[test]
fn poll_is_an_acknowledgement() {
    let mut chip = ready();
    chip.set_input(6, true);
    chip.write_command(0x0c);
    assert!(chip.poll);
    assert_eq!(chip.take_poll(true), 0x86);
    assert_eq!((chip.isr, chip.take_poll(true)), (1 << 6, 0));
}

#[test]
fn special_fully_nested() {
    let mut chip = ready();
    chip.fully_nested = true;
    chip.set_input(CASCADE, true);
    take(&mut chip);
    chip.set_input(CASCADE, false);
    chip.set_input(CASCADE, true);
    assert_eq!(chip.request(true), Some(CASCADE));
    chip.fully_nested = false;
    assert_eq!(chip.request(true), None);
}
