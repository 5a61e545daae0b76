use super::*;
use device::fake::{FakeTime, Recorder, wiring};

fn board() -> (Arc<IoApic>, Arc<Recorder>) {
    let sink = Arc::new(Recorder::default());
    let mut wiring = wiring(&FakeTime::default(), &sink);
    (IoApic::build(&mut wiring), sink)
}

fn put(ioapic: &IoApic, index: u8, value: u32) {
    ioapic.write(0, &[index, 0, 0, 0]);
    ioapic.write(0x10, &value.to_le_bytes());
}

fn get(ioapic: &IoApic, index: u8) -> u32 {
    ioapic.write(0, &[index]);
    let mut data = [0; 4];
    ioapic.read(0x10, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn identity_and_unused_registers() {
    let (ioapic, _) = board();
    assert_eq!(get(&ioapic, 1), 0x0017_0020);
    put(&ioapic, 0, 0x0500_0000);
    assert_eq!(get(&ioapic, 0), 0x0500_0000);
    assert_eq!(get(&ioapic, 0x10), 1 << 16);
    for index in [3, 0xf, 0x40, 0xff] {
        put(&ioapic, index, !0);
        assert_eq!(get(&ioapic, index), 0);
    }
}

#[test]
fn edges() {
    let (ioapic, sink) = board();
    let pin = ioapic.pin(4);
    pin.pulse();
    put(&ioapic, 0x19, 0x0300_0000);
    put(&ioapic, 0x18, 0x0000_0931);
    assert_eq!(sink.take_messages(), [], "an edge at a masked pin is lost");
    pin.set(true);
    pin.set(true);
    let expected = Msi { address: 0xfee0_3004, data: 0x0131 };
    assert_eq!(sink.take_messages(), [expected]);
    pin.set(false);
    pin.set(true);
    assert_eq!(sink.take_messages(), [expected]);
    assert_eq!(ioapic.routes()[4], Some(expected));
}

#[test]
fn levels_wait_for_their_eoi() {
    let (ioapic, sink) = board();
    let pin = ioapic.pin(9);
    pin.set(true);
    put(&ioapic, 0x10 + 18, 0x8055);
    assert_eq!(sink.take_messages().len(), 1, "unmasking a high level sends");
    assert_eq!(get(&ioapic, 0x10 + 18), 0xc055);
    pin.set(false);
    pin.set(true);
    assert_eq!(sink.take_messages(), []);
    assert_eq!(ioapic.not_ended(), [0x55]);
    ioapic.eoi(0x54);
    assert_eq!(sink.take_messages(), []);
    ioapic.eoi(0x55);
    assert_eq!(sink.take_messages().len(), 1, "still high");
    pin.set(false);
    ioapic.write(0x40, &0x55u32.to_le_bytes());
    assert_eq!(sink.take_messages(), []);
    assert_eq!(ioapic.not_ended(), []);
    assert_eq!(get(&ioapic, 0x10 + 18), 0x8055);
}

#[test]
fn switching_to_edge_ends_a_level() {
    let (ioapic, _) = board();
    put(&ioapic, 0x10, 0x8055);
    ioapic.pin(0).set(true);
    put(&ioapic, 0x10, 0x1_0055);
    put(&ioapic, 0x10, 0x1_8055);
    assert_eq!(get(&ioapic, 0x10), 0x1_8055);
}

#[test]
fn routes_are_told() {
    let (ioapic, _) = board();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let to = seen.clone();
    ioapic.on_routes(Box::new(move |routes| to.lock().unwrap().push(routes[1])));
    put(&ioapic, 0x12, 0x8061);
    put(&ioapic, 0x12, 0x8061);
    ioapic.reset();
    let msi = Msi { address: 0xfee0_0000, data: 0xc061 };
    assert_eq!(*seen.lock().unwrap(), [Some(msi), None]);
}
