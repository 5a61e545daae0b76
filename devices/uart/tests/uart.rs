//! The port on a board: what is common to all devices, and its carrier.

use byte_stream::{Input, Output};
use device::fake::{FakeTime, Recorder, wiring};
use device::{Device, Wiring};
use proptest::prelude::*;
use saved_state::{Part, Reader, Writer};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use uart::{Config, Uart};

#[derive(Default)]
struct Sink(Mutex<Vec<u8>>);

impl Output for Sink {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

fn board() -> (Wiring, Arc<Uart>, Arc<Recorder>, Arc<Sink>) {
    let (line, sink) = (Arc::new(Recorder::default()), Arc::new(Sink::default()));
    let mut wiring = wiring(&FakeTime::default(), &line);
    wiring.irqs = vec![line.clone(); 16];
    let uart = uart::build(&Config::COM1, sink.clone(), &mut wiring);
    (wiring, uart, line, sink)
}

fn saved(device: &dyn Device) -> Vec<Part> {
    let mut writer = Writer::default();
    device.save(&mut writer);
    writer.finish()
}

#[test]
fn bytes_out_and_in_with_flow_control() {
    let (wiring, uart, line, sink) = board();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    uart.on_room(Box::new(move || {
        count.fetch_add(1, SeqCst);
    }));
    for byte in b"hello" {
        wiring.pio.write(0x3f8, &[*byte]);
    }
    assert_eq!(*sink.0.lock().unwrap(), b"hello");
    wiring.pio.write(0x3fa, &[1]);
    wiring.pio.write(0x3fc, &[0xb]);
    wiring.pio.write(0x3f9, &[1]);
    let text: Vec<u8> = (0..100).collect();
    let (mut given, mut got) = (0, Vec::new());
    while got.len() < text.len() {
        given += uart.receive(&text[given..]);
        assert!(line.level());
        let mut data = [0];
        wiring.pio.read(0x3fd, &mut data);
        assert_eq!(data[0] & 1, 1);
        wiring.pio.read(0x3f8, &mut data);
        got.push(data[0]);
    }
    assert_eq!(got, text);
    assert!(!line.level());
    assert_ne!(calls.load(SeqCst), 0);
}

#[test]
fn state_that_the_chip_cannot_be_in_is_refused() {
    let (_, uart, ..) = board();
    let mut writer = Writer::default();
    let mut state: uart::UartState = Reader::new(saved(&*uart)).unwrap().take(0).unwrap();
    state.received = vec![(0, 0); 2];
    writer.put(0, &state);
    let error = uart.restore(&mut Reader::new(writer.finish()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("FIFO holds"), "{error}");
}

proptest! {
    /// Saved state that somebody tampered with is refused, or is sound.
    #[test]
    fn any_payload(at in any::<prop::sample::Index>(), byte: u8) {
        let (wiring, uart, ..) = board();
        let mut parts = saved(&*uart);
        let offset = at.index(parts[0].payload.len());
        parts[0].payload[offset] = byte;
        if uart.restore(&mut Reader::new(parts).unwrap()).is_ok() {
            for port in 0x3f8..0x400 {
                wiring.pio.read(port, &mut [0]);
                wiring.pio.write(port, &[byte]);
            }
            saved(&*uart);
        }
    }

    #[test]
    fn any_access_leaves_a_port_that_saves_and_resets(
        accesses in prop::collection::vec((any::<bool>(), 0u16..8, any::<[u8; 4]>(), 0usize..3), 0..200),
        input in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let (wiring, uart, line, _) = board();
        let fresh = saved(&*uart);
        for (write, port, mut data, size) in accesses {
            let data = &mut data[..1 << size];
            if write {
                wiring.pio.write(0x3f8 + port, data);
            } else {
                wiring.pio.read(0x3f8 + port, data);
            }
            uart.receive(&input);
            if data[0] == 0 {
                uart.send_break();
            }
        }
        let parts = saved(&*uart);
        let (other_wiring, other, other_line, _) = board();
        let mut reader = Reader::new(parts.clone()).unwrap();
        other.restore(&mut reader).unwrap();
        reader.finish().unwrap();
        prop_assert_eq!(saved(&*other), parts);
        prop_assert_eq!(other_line.level(), line.level());
        // From here on both answer the same.
        for port in (0x3f8..0x400).chain(0x3f8..0x400) {
            let (mut a, mut b) = ([0], [0]);
            wiring.pio.read(port, &mut a);
            other_wiring.pio.read(port, &mut b);
            prop_assert_eq!(a, b);
            prop_assert_eq!(other_line.level(), line.level());
        }
        uart.reset();
        prop_assert_eq!(saved(&*uart), fresh);
        prop_assert!(!line.level());
    }
}
