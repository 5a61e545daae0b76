//! The virtio keyboard and tablet under a stock kernel's own drivers, by the machine's seat.

use assets::encode_command;
use byte_stream::Output;
use display::{Buttons, Key, PointerEvent};
use machine::{
    Ended, Machine, Parts, Start, Tracer,
    engines::{self, Kind},
};
use std::{
    fs::File,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, guest_files};
use vm_spec::VmSpec;

/// Prints the events of both devices, as they are, until a word has been typed.
const WORK: &str = "/etc/devices; modprobe virtio_input; modprobe evdev
until [ -c /dev/input/event2 ]; do sleep 1; done
for e in 0 1 2; do echo $e $(cat /sys/class/input/event$e/device/name); done
K=$(grep -l keyboard /sys/class/input/event*/device/name | sed 's,.*/\\(event[0-9]*\\)/.*,\\1,')
T=$(grep -l tablet /sys/class/input/event*/device/name | sed 's,.*/\\(event[0-9]*\\)/.*,\\1,')
(head -c 96 /dev/input/$K | od -An -v -tx1 -w24 | sed 's/^/key /'; echo keys-do''ne) &
(head -c 120 /dev/input/$T | od -An -v -tx1 -w24 | sed 's/^/place /'; echo places-do''ne) &
sleep 1; echo list''ening; wait";

#[derive(Default)]
struct Text(Mutex<Vec<u8>>);

impl Output for Text {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Text {
    fn all(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Type, code and value of the events that a line was printed for: behind the time's 16 bytes.
fn events(text: &str, name: &str) -> Vec<(u8, u16, u32)> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix(name));
    lines
        .map(|line| {
            let bytes: Vec<u8> =
                line.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
            let value = u32::from_le_bytes(bytes[20..24].try_into().unwrap());
            (bytes[16], u16::from_le_bytes([bytes[18], bytes[19]]), value)
        })
        .collect()
}

#[test]
fn keys_and_places_reach_the_guest() {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return };
    let spec = VmSpec { memory: 192 << 20, input: true, ..VmSpec::default() };
    let engine = engines::open_for(Kind::Translate, &spec).unwrap();
    let text = Arc::new(Text::default());
    let parts = Parts {
        start: Start::Kernel {
            kernel: File::open(&files.kernel).unwrap().into(),
            initrd: Some(File::open(&files.initrd).unwrap().into()),
            command_line: format!("console=ttyS0 quiet sarang.exec={}", encode_command(WORK)),
        },
        console: text.clone(),
        channels: Vec::new(),
        disks: Vec::new(),
        networks: Vec::new(),
        entropy: None,
        vga_rom: None,
        vsock: None,
        tracer: Tracer::none(),
    };
    let machine = Machine::build(&*engine, &spec, parts).unwrap();
    machine.handle().resume().unwrap();
    let limit = Instant::now() + BOOT;
    while !text.all().contains("listening") {
        assert!(Instant::now() < limit, "{}", text.all());
        thread::sleep(Duration::from_millis(20));
    }
    let handle = machine.handle();
    let seat = handle.seat();
    assert!(seat.is_absolute());
    let key = Key::from_code(30).unwrap();
    seat.key(key, true);
    seat.key(key, false);
    let buttons = Buttons { left: true, ..Buttons::default() };
    seat.point(PointerEvent { x: 0x1234, y: 0x7fff, wheel: 1, buttons, ..Default::default() });
    let ended = machine.wait(Some(Instant::now() + BOOT));
    let said = text.all();
    assert_eq!(ended, Some(Ended::PoweredOff), "{said}");
    assert_eq!(events(&said, "key "), [(1, 30, 1), (0, 0, 0), (1, 30, 0), (0, 0, 0)], "{said}");
    let places = [(3, 0, 0x1234), (3, 1, 0x7fff), (2, 8, 1), (1, 0x110, 1), (0, 0, 0)];
    assert_eq!(events(&said, "place "), places, "{said}");
}
