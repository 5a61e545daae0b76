//! A guest of our own that moves between engines while its disk and its network are at work: it
//! waits for interrupts alone, compares clocks all the time, and ends at the first thing that is
//! wrong. It makes so few instructions that a KVM which is software runs it, too.

use crate::harness::{Image, Text, take};
use disk_raw::RawDisk;
use machine::{
    DiskPart, Ended, Machine, NetworkPart, Parts, Start, Tracer,
    engines::{self, Kind},
};
use nic_user::{Config, UserNet};
use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};
use vm_spec::{DiskBus, NetModel, VmSpec};

const MEMORY: u64 = 16 << 20;
/// Sectors that the guest writes to, and how much the disk has besides.
const SECTORS: usize = 64;
const DISK: u64 = 1 << 20;
/// What the guest is asked for; it tells of each 50.
const REQUESTS: u32 = 400;
/// Far more than the guest takes: only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(180);
/// Longer than the guest's clocks may differ.
const STANDSTILL: Duration = Duration::from_millis(100);

struct Case<'a> {
    cpus: u32,
    command: &'a str,
    disk: Image,
    text: Arc<Text>,
    tsc_khz: u32,
}

impl Case<'_> {
    fn build(&self, kind: Kind) -> Machine {
        let engine = engines::open(kind).unwrap();
        // A software KVM may offer less than the portable models.
        let cpu_model = (kind == Kind::Kvm).then(|| "host".into());
        let spec = VmSpec { cpus: self.cpus, cpu_model, memory: MEMORY, ..VmSpec::default() };
        let network = UserNet::start(Config::default(), 0).unwrap();
        let parts = Parts {
            start: Start::Kernel {
                kernel: microguest::GUEST.to_vec().into(),
                initrd: None,
                command_line: format!("run={}", self.command),
            },
            console: self.text.clone(),
            disks: vec![DiskPart {
                disk: Arc::new(RawDisk::open(&self.disk.0, false).unwrap()),
                serial: String::new(),
                bus: DiskBus::Virtio,
            }],
            networks: vec![NetworkPart {
                network: network.clone(),
                device: network,
                model: NetModel::Virtio,
                mac: "52:54:00:00:00:02".parse().unwrap(),
                mtu: 1500,
            }],
            entropy: None,
            vga_rom: None,
            vsock: None,
            channels: Vec::new(),
            tracer: Tracer::none(),
        };
        Machine::build_at(&*engine, &spec, parts, self.tsc_khz).unwrap()
    }

    /// Starts under the first, and moves to each of the others in the middle of the traffic.
    fn run(&self, kinds: &[Kind]) {
        let mut machine = self.build(kinds[0]);
        machine.handle().resume().unwrap();
        for (count, kind) in (1..).zip(&kinds[1..]) {
            self.text.until(&format!("disk {},", count * 50), &machine, LIMIT);
            std::thread::sleep(Duration::from_millis(count * 3));
            // A pause alone is none for the guest, either.
            machine.handle().pause().unwrap();
            std::thread::sleep(STANDSTILL);
            machine.handle().resume().unwrap();
            std::thread::sleep(Duration::from_millis(count * 3));
            let (parts, memory) = take(machine, MEMORY);
            std::thread::sleep(STANDSTILL);
            machine = self.build(*kind);
            machine.handle().memory().write(0, &memory).unwrap();
            machine.handle().restore(parts).unwrap().unwrap();
            machine.handle().resume().unwrap();
        }
        let ended = machine.wait(Some(Instant::now() + LIMIT));
        let said = self.text.all();
        assert_eq!(ended, Some(Ended::PoweredOff), "{said}");
        drop(machine);
        assert!(said.contains("traffic done"), "{said}");
        let all = REQUESTS + SECTORS as u32;
        let (count, sum) = ([all, REQUESTS], self.sum());
        let last = format!("disk {}, network {}, sum {sum:016x}", count[0], count[1]);
        assert!(said.contains(&last), "not {last}:\n{said}");
    }

    /// Of the host's file, as the guest makes it of what must be there: FNV-1a over words.
    fn sum(&self) -> u64 {
        let bytes = fs::read(&self.disk.0).unwrap();
        assert!(bytes[SECTORS * 512..].iter().all(|byte| *byte == 0));
        let words = bytes[..SECTORS * 512].chunks_exact(8);
        words.fold(0, |sum, word| {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// Whether guests' TSCs stand while this host's KVM holds them: one whose guests read the host's TSC
/// cannot have it so.
fn tsc_stands(name: &str, tsc_khz: u32) -> bool {
    let case = Case {
        cpus: 1,
        command: "memory",
        disk: Image::new(&format!("crossing-{name}-probe"), DISK),
        text: Arc::default(),
        tsc_khz,
    };
    let machine = case.build(Kind::Kvm);
    let handle = machine.handle();
    let look = || {
        let tsc = handle.on_vcpu(0, |vcpu| vcpu.state().unwrap().tsc.value).unwrap();
        (tsc / u64::from(tsc_khz), handle.info().unwrap().uptime_ns / 1_000_000)
    };
    handle.resume().unwrap();
    handle.pause().unwrap();
    let before = look();
    std::thread::sleep(STANDSTILL);
    handle.resume().unwrap();
    handle.pause().unwrap();
    let after = look();
    let (tsc, others) = (after.0 - before.0, after.1 - before.1);
    tsc < others + STANDSTILL.as_millis() as u64 / 2
}

/// Back and forth, beginning with either; `translate` alone where there is no other.
fn cross(name: &str, cpus: u32, how: &str) {
    let others = match engines::open(Kind::Kvm) {
        Ok(engine) if engine.caps().max_vcpus >= cpus => Some(engine.caps().tsc_khz),
        Ok(engine) => {
            let most = engine.caps().max_vcpus;
            println!("skipped: moves from and to kvm, which has {most} vCPUs at most");
            None
        }
        Err(error) => {
            println!("skipped: moves from and to kvm: {error}");
            None
        }
    };
    let translate = engines::open(Kind::Translate).unwrap().caps().tsc_khz;
    use Kind::{Kvm, Translate};
    let orders = match others {
        Some(_) => vec![
            [Kvm, Translate, Kvm, Translate, Translate, Kvm],
            [Translate, Kvm, Kvm, Translate, Kvm, Translate],
        ],
        None => vec![[Translate; 6]],
    };
    let loose = others.is_some_and(|tsc_khz| !tsc_stands(name, tsc_khz));
    if loose {
        println!("skipped: that the TSC does not jump, which this host's KVM cannot hold");
    }
    for (number, order) in orders.iter().enumerate() {
        let case = Case {
            cpus,
            command: &format!("traffic {REQUESTS} {how} {}", if loose { "loose" } else { "" }),
            disk: Image::new(&format!("crossing-{name}-{number}"), DISK),
            text: Arc::default(),
            // Not every processor's TSC can run at another frequency; the translator's can.
            tsc_khz: others.unwrap_or(translate),
        };
        case.run(order);
    }
}

#[test]
fn traffic_goes_from_one_engine_to_another() {
    cross("messages", 1, "");
}

#[test]
fn traffic_with_interrupts_by_pins_goes_from_one_engine_to_another() {
    cross("pins", 1, "pin");
}

#[test]
fn traffic_of_two_processors_goes_from_one_engine_to_another() {
    cross("two", 2, "");
}

#[test]
fn traffic_of_two_processors_by_pins_goes_from_one_engine_to_another() {
    cross("two-pins", 2, "pin");
}
