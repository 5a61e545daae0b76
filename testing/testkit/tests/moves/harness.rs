//! Machines one after the other, which share a console, a disk and a network.

use crate::peer::Peer;
use assets::{Guest, encode_command};
use byte_stream::Output;
use disk_raw::RawDisk;
use machine::{
    DiskPart, Ended, Machine, NetworkPart, Parts, Plug, Start, Tracer,
    engines::{self, Kind},
};
use saved_state::Part;
use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use testkit::BOOT;
use vm_spec::{DiskBus, GuestKind, NetModel, VmSpec};

pub const MEMORY: u64 = 192 << 20;

/// The console of all machines, one after the other.
#[derive(Default)]
pub struct Text(Mutex<Vec<u8>>);

impl Output for Text {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Text {
    pub fn all(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    pub fn has(&self, text: &str) -> bool {
        self.all().contains(text)
    }

    pub fn until(&self, text: &str, machine: &Machine, longest: Duration) {
        let limit = Instant::now() + longest;
        while !self.has(text) {
            let ended = machine.wait(Some(Instant::now() + Duration::from_millis(20)));
            let said = self.all();
            assert!(ended.is_none() || said.contains(text), "{ended:?} before {text}:\n{said}");
            assert!(Instant::now() < limit, "no {text}:\n{said}");
        }
    }
}

/// What a guest's code is executed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Translator,
    Interpreter,
    Kvm,
}

/// A file of this test's own, removed at its end.
pub struct Image(pub PathBuf);

impl Image {
    pub fn new(name: &str, size: u64) -> Self {
        let path = std::env::temp_dir().join(format!("sarang-{name}-{}.img", std::process::id()));
        File::create(&path).and_then(|file| file.set_len(size)).unwrap();
        Self(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What stays where the guest moves.
pub struct World {
    pub files: Guest,
    pub disks: Vec<(Image, DiskBus)>,
    pub peer: Option<Arc<Peer>>,
    pub model: NetModel,
    pub text: Arc<Text>,
    pub balloon: bool,
    pub guest: GuestKind,
    /// What comes behind ports before the first move, and is behind those of the others.
    pub plugs: Box<dyn Fn() -> Vec<Plug>>,
    /// For the kernel's command line.
    pub options: &'static str,
    /// What the guest does; then it powers off.
    pub work: String,
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// What executes it at first.
    pub first: By,
    /// The same for all, where it is not theirs to choose.
    pub tsc_khz: Option<u32>,
    /// Before the guest moves for the so-manieth time.
    pub before: fn(usize, &Machine),
    /// When it goes on.
    pub after: fn(&Machine),
}

impl World {
    /// A guest with one virtio disk.
    pub fn new(files: Guest, disk: Image, work: impl Into<String>) -> Self {
        Self {
            files,
            disks: vec![(disk, DiskBus::Virtio)],
            peer: None,
            model: NetModel::Virtio,
            text: Arc::default(),
            balloon: false,
            guest: GuestKind::Pc,
            plugs: Box::new(Vec::new),
            options: "",
            work: work.into(),
            cpus: 2,
            memory: MEMORY,
            first: By::Translator,
            tsc_khz: None,
            before: |_, _| {},
            after: |_| {},
        }
    }

    fn disk((image, bus): &(Image, DiskBus)) -> DiskPart {
        let disk = Arc::new(RawDisk::open(&image.0, false).unwrap());
        DiskPart { disk, serial: String::new(), bus: *bus }
    }

    fn build(&self, by: By) -> Machine {
        let (balloon, guest) = (self.balloon, self.guest);
        let ports = if (self.plugs)().is_empty() { 0 } else { 4 };
        let spec = VmSpec {
            memory: self.memory,
            cpus: self.cpus,
            balloon,
            guest,
            ports,
            ..VmSpec::default()
        };
        let code_cache = if by == By::Interpreter { 0 } else { spec.code_cache };
        let kind = if by == By::Kvm { Kind::Kvm } else { Kind::Translate };
        // A software KVM may offer less than the portable models.
        let cpu_model = (by == By::Kvm).then(|| "host".into());
        let spec = VmSpec { code_cache, cpu_model, ..spec };
        let engine = engines::open_for(kind, &spec).unwrap();
        let network = |peer: &Arc<Peer>| NetworkPart {
            network: peer.clone(),
            device: peer.clone(),
            model: self.model,
            mac: "52:54:00:00:00:02".parse().unwrap(),
            mtu: 1500,
        };
        let work = encode_command(&self.work);
        let console = if guest == GuestKind::XenPv { "hvc0" } else { "ttyS0" };
        let parts = Parts {
            start: Start::Kernel {
                kernel: File::open(&self.files.kernel).unwrap().into(),
                initrd: Some(File::open(&self.files.initrd).unwrap().into()),
                command_line: format!(
                    "console={console} quiet {} sarang.exec={work}",
                    self.options
                ),
            },
            console: self.text.clone(),
            disks: self.disks.iter().map(Self::disk).collect(),
            networks: self.peer.iter().map(network).collect(),
            entropy: None,
            vga_rom: None,
            vsock: None,
            channels: Vec::new(),
            tracer: Tracer::none(),
        };
        match self.tsc_khz {
            Some(khz) => Machine::build_at(&*engine, &spec, parts, khz).unwrap(),
            None => Machine::build(&*engine, &spec, parts).unwrap(),
        }
    }

    /// Bytes of memory from address 0 on, with what a hypervisor has behind the guest's.
    fn size(&self) -> u64 {
        match self.guest {
            GuestKind::XenPv => xen_pv::Layout::new(self.memory).end(),
            _ => self.memory,
        }
    }

    fn plug(&self, machine: &Machine) {
        for plug in (self.plugs)() {
            machine.handle().plug(plug, String::new()).unwrap().unwrap();
        }
    }

    /// Boots, moves after each of these words, and somewhere inside what follows it; returns
    /// when the guest has powered off.
    pub fn run(&self, hops: &[(&str, By)]) {
        let mut machine = self.build(self.first);
        machine.handle().resume().unwrap();
        for (count, (word, by)) in hops.iter().enumerate() {
            self.text.until(word, &machine, BOOT);
            if count == 0 {
                self.plug(&machine);
            }
            (self.before)(count, &machine);
            std::thread::sleep(Duration::from_millis(7 * count as u64));
            let (parts, memory) = take(machine, self.size());
            machine = self.build(*by);
            self.plug(&machine);
            machine.handle().memory().write(0, &memory).unwrap();
            machine.handle().restore(parts).unwrap().unwrap();
            machine.handle().resume().unwrap();
            (self.after)(&machine);
        }
        let ended = machine.wait(Some(Instant::now() + BOOT));
        let said = self.text.all();
        assert_eq!(ended, Some(Ended::PoweredOff), "{said}");
        for trouble in ["I/O error", "Call Trace", "soft lockup", "hung"] {
            assert!(!said.contains(trouble), "{said}");
        }
    }
}

/// Ends the machine; what another needs to go on.
pub fn take(machine: Machine, size: u64) -> (Vec<Part>, Vec<u8>) {
    let handle = machine.handle();
    handle.pause().unwrap();
    let parts = handle.save().unwrap().unwrap();
    let mut memory = vec![0; size as usize];
    handle.memory().read(0, &mut memory).unwrap();
    // What is saved is what is: nothing moves while the machine is paused.
    std::thread::sleep(Duration::from_millis(50));
    let mut again = vec![0; size as usize];
    handle.memory().read(0, &mut again).unwrap();
    assert!(memory == again, "memory of a paused machine changes");
    for (before, after) in parts.iter().zip(handle.save().unwrap().unwrap()) {
        assert_eq!(*before, after, "{} {} of a paused machine", before.kind, before.instance);
    }
    (parts, memory)
}
