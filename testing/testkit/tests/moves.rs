//! A stock kernel that is saved while it writes to its disk, and goes on in another machine.
//!
//! There is no command for it yet, so this test goes by the machine's own interface.

use assets::encode_command;
use byte_stream::Output;
use disk_raw::RawDisk;
use machine::{
    DiskPart, Ended, Machine, Parts, Start, Tracer,
    engines::{self, Kind},
};
use saved_state::Part;
use std::{
    fs::{self, File},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use testkit::{BOOT, guest_files};
use vm_spec::VmSpec;

const MEMORY: u64 = 192 << 20;
const DISK: u64 = 32 << 20;
/// What the guest does: writes noise to its disk, keeps a copy, and compares in the end.
const WORK: &str = "/etc/devices; until [ -b /dev/vda ]; do sleep 1; done; echo be''gun
for i in $(seq 0 59); do
    dd if=/dev/urandom of=/tmp/part bs=64k count=8 2> /dev/null
    cat /tmp/part >> /tmp/all
    dd if=/tmp/part of=/dev/vda bs=64k seek=$((i * 8)) conv=fsync 2> /dev/null
    echo done-$i
done
echo 3 > /proc/sys/vm/drop_caches
head -c 31457280 /dev/vda | cmp - /tmp/all && echo sa''me
sha256sum < /tmp/all";

/// The console of all machines, one after the other.
#[derive(Default)]
struct Text(Mutex<Vec<u8>>);

impl Output for Text {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Text {
    fn has(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap()).contains(text)
    }

    fn until(&self, text: &str, machine: &Machine) {
        let limit = Instant::now() + BOOT;
        while !self.has(text) {
            let ended = machine.wait(Some(Instant::now() + Duration::from_millis(20)));
            let said = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
            assert!(ended.is_none() || said.contains(text), "{ended:?} before {text}:\n{said}");
            assert!(Instant::now() < limit, "no {text}:\n{said}");
        }
    }
}

fn build(files: &assets::Guest, disk: &Path, text: &Arc<Text>) -> Machine {
    let spec = VmSpec { memory: MEMORY, cpus: 2, ..VmSpec::default() };
    let engine = engines::open_for(Kind::Translate, &spec).unwrap();
    let parts = Parts {
        start: Start::Kernel {
            kernel: File::open(&files.kernel).unwrap().into(),
            initrd: Some(File::open(&files.initrd).unwrap().into()),
            command_line: format!("console=ttyS0 quiet sarang.exec={}", encode_command(WORK)),
        },
        console: text.clone(),
        disks: vec![DiskPart {
            disk: Arc::new(RawDisk::open(disk, false).unwrap()),
            serial: String::new(),
        }],
        networks: Vec::new(),
        entropy: None,
        channels: Vec::new(),
        tracer: Tracer::none(),
    };
    Machine::build(&*engine, &spec, parts).unwrap()
}

/// Ends the machine; what another needs to go on.
fn take(machine: Machine) -> (Vec<Part>, Vec<u8>) {
    let handle = machine.handle();
    handle.pause().unwrap();
    let parts = handle.save().unwrap().unwrap();
    let mut memory = vec![0; MEMORY as usize];
    handle.memory().read(0, &mut memory).unwrap();
    // What is saved is what is: nothing moves while the machine is paused.
    std::thread::sleep(Duration::from_millis(50));
    let mut again = vec![0; MEMORY as usize];
    handle.memory().read(0, &mut again).unwrap();
    assert!(memory == again && parts == handle.save().unwrap().unwrap());
    (parts, memory)
}

#[test]
fn a_guest_that_writes_to_its_disk_moves() {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return };
    let disk = std::env::temp_dir().join(format!("sarang-moves-{}.img", std::process::id()));
    File::create(&disk).and_then(|file| file.set_len(DISK)).unwrap();
    let text = Arc::new(Text::default());
    let mut machine = build(&files, &disk, &text);
    machine.handle().resume().unwrap();
    text.until("begun", &machine);
    for (hop, after) in [3, 9, 11, 30, 31].into_iter().enumerate() {
        text.until(&format!("done-{after}"), &machine);
        // Somewhere inside the next round.
        std::thread::sleep(Duration::from_millis(7 * hop as u64));
        let (parts, memory) = take(machine);
        machine = build(&files, &disk, &text);
        machine.handle().memory().write(0, &memory).unwrap();
        machine.handle().restore(parts).unwrap().unwrap();
        machine.handle().resume().unwrap();
    }
    let ended = machine.wait(Some(Instant::now() + BOOT));
    let said = String::from_utf8_lossy(&text.0.lock().unwrap()).into_owned();
    assert_eq!(ended, Some(Ended::PoweredOff), "{said}");
    assert!(text.has("same") && text.has("done-59"), "{said}");
    drop(machine);
    let bytes = fs::read(&disk).unwrap();
    fs::remove_file(&disk).unwrap();
    let part = std::env::temp_dir().join(format!("sarang-moves-{}.part", std::process::id()));
    fs::write(&part, &bytes[..30 << 20]).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&part).output().unwrap();
    fs::remove_file(&part).unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
    assert!(text.has(sum.split_whitespace().next().unwrap()), "the host's file has other bytes");
    for trouble in ["I/O error", "Call Trace", "soft lockup", "hung"] {
        assert!(!text.has(trouble), "{said}");
    }
}
