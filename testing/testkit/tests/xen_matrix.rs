//! Xen PV guests of several kernels, with one and four CPUs, with little and with much memory: each
//! computes what the host does, gives memory back and takes it again, and checks its own results under
//! `stress-ng`.
//!
//! `SARANG_LONG` runs all of them; without it, each kernel is one of the cases.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};
use testkit::{
    BOOT, COMMAND, Debian, Error, Folder, Guest, KERNEL_6_1_FULL, KERNEL_6_12, Options,
    build_gbench, debian, guest_files, left_out,
};

const KERNEL_6_1: &str = "linux-image-6.1.0-*-cloud-amd64";
const CPUS: [u32; 2] = [1, 4];
/// MiB.
const MEMORY: [u64; 3] = [128, 512, 4096];
/// Each member's timed loop as short as may be: what counts is what it computes.
const ARGUMENTS: [&str; 4] = ["-t", "1", "-r", "1"];
const MEMBERS: usize = 43;
/// Takes 64 MiB, which is all that a kernel leaves of 128, in a PC too.
const LARGE: &str = "pagefault";
/// Those which have most to do with memory.
const SOME: [&str; 5] = [LARGE, "mmap1", "fork", "forkexec", "sqlite"];

/// The benchmark's program, and what each of its members computes on this host.
struct Reference {
    program: PathBuf,
    sums: BTreeMap<String, String>,
}

fn reference() -> Option<&'static Reference> {
    static MADE: OnceLock<Option<Reference>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let built = build_gbench(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("gbench"));
        let program = built.map_err(|why| left_out(&why)).ok()?.program;
        let out = Command::new(&program).args(ARGUMENTS).output().unwrap();
        let sums = sums(&String::from_utf8_lossy(&out.stdout));
        assert_eq!(sums.len(), MEMBERS, "{}", String::from_utf8_lossy(&out.stdout));
        Some(Reference { program, sums })
    });
    made.as_ref()
}

/// Members with their checksums: `fib  11.02 ns/op  0000000000004f47`.
fn sums(text: &str) -> BTreeMap<String, String> {
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, _, "ns/op" | "MB/s", sum] = words[..] else { return None };
        Some((name.to_owned(), sum.to_owned()))
    };
    text.lines().filter_map(of).collect()
}

/// A disk with the program.
fn disk(folder: &Folder, program: &Path) -> String {
    let path = folder.path("disk.raw");
    let size = std::fs::copy(program, &path).unwrap().next_multiple_of(4096);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    format!("{},format=raw,readonly", path.display())
}

/// MiB that the kernel has given back, once it is this many.
fn is_given_back(guest: &mut Guest, mib: u64) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    let line = format!("given by the guest{mib:>14} MiB");
    loop {
        let info = guest.monitor("info balloon")?;
        if info.contains(&line) {
            return Ok(());
        }
        assert!(Instant::now() < limit, "{mib} MiB: {info}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Computes in several ways at once, on memory that others write; a wrong result is a failure.
fn stress(guest: &mut Guest, cpus: u32, mib: u64) -> Result<(), Error> {
    guest.says(
        "rm /tmp/gbench; mount -o remount,size=48M /; until [ -b /dev/xvdb ]; do sleep 0.1; done",
    )?;
    guest.says("tar -C / -xf /dev/xvdb")?;
    // The program itself takes a third of the smallest guest's memory.
    let (classes, at_once) = match mib {
        128 => (&["matrix", "vm", "pipe"][..], 1),
        _ => (&["cpu", "matrix", "vm", "cache", "atomic", "mmapfork", "fork", "pipe"][..], cpus),
    };
    let stressors: String = classes.iter().map(|class| format!(" --{class} {at_once}")).collect();
    let line =
        format!("stress-ng{stressors} --vm-bytes 4M --timeout 4 --temp-path /tmp --verify 2>&1");
    let (said, status) = guest.command(&line, BOOT)?;
    assert!(status == 0 && said.contains("successful run completed"), "{status}: {said}");
    Ok(())
}

fn lives(
    kernel: &str,
    cpus: u32,
    mib: u64,
    (host, debian): (&Reference, &Debian),
) -> Result<(), Error> {
    let folder = Folder::new(&format!("xen-matrix-{}-{cpus}-{mib}", kernel.len()));
    let options = Options::default()
        .arg("--guest", "xen-pv")
        .arg("--package", kernel)
        .arg("--disk", &disk(&folder, &host.program))
        .arg("--disk", &format!("{},format=raw,readonly", debian.stress.display()))
        .cpus(cpus)
        .memory(&format!("{mib}M"));
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    assert_eq!(guest.says("cat /sys/hypervisor/type; nproc")?, format!("xen\n{cpus}"));
    guest.says("modprobe xen_blkfront; until [ -b /dev/xvda ]; do sleep 0.1; done")?;
    guest.says("cat /dev/xvda > /tmp/gbench; chmod +x /tmp/gbench")?;
    let work = format!("/tmp/gbench {}", ARGUMENTS.join(" "));
    let computed = |guest: &mut Guest, members: &[&str]| {
        let (text, status) = guest.command(&format!("{work} {}", members.join(" ")), BOOT)?;
        assert_eq!(status, 0, "{text}");
        let sums = sums(&text);
        for (name, sum) in &sums {
            assert_eq!(Some(sum), host.sums.get(name), "{name}: {text}");
        }
        assert_eq!(sums.len(), members.len(), "{text}");
        Ok::<_, Error>(())
    };
    let fits = |member: &&str| mib > 128 || *member != LARGE;
    let all: Vec<&str> = host.sums.keys().map(String::as_str).filter(fits).collect();
    let some: Vec<&str> = SOME.into_iter().filter(fits).collect();
    computed(&mut guest, &all)?;

    // A fifth of its memory goes, and while it is away the rest is enough to work with.
    let smaller = mib - mib / 5;
    guest.monitor(&format!("balloon {smaller}M"))?;
    is_given_back(&mut guest, mib - smaller)?;
    computed(&mut guest, &some)?;
    guest.monitor(&format!("balloon {mib}M"))?;
    is_given_back(&mut guest, 0)?;
    computed(&mut guest, &some)?;
    stress(&mut guest, cpus, mib)?;
    let faults = "dmesg | grep -E 'BUG:|Oops|WARNING: CPU|Out of memory|unchecked MSR'; true";
    assert_eq!(guest.says(faults)?, "");
    guest.power_off()
}

/// All cases of a kernel, or only this one.
fn all_or(kernel: &str, one: (u32, u64)) -> Result<(), Error> {
    let there = (guest_files(kernel), reference(), debian());
    let (Some(_), Some(host), Some(debian)) = there else { return Ok(()) };
    let long = std::env::var_os("SARANG_LONG").is_some();
    for (cpus, mib) in CPUS.into_iter().flat_map(|cpus| MEMORY.map(|mib| (cpus, mib))) {
        if long || (cpus, mib) == one {
            eprintln!("{kernel}: {cpus} CPUs, {mib} MiB");
            lives(kernel, cpus, mib, (host, &debian))?;
        }
    }
    Ok(())
}

#[test]
fn debian_6_1_of_clouds() -> Result<(), Error> {
    all_or(KERNEL_6_1, (1, 4096))
}

#[test]
fn debian_6_1_of_all_pcs() -> Result<(), Error> {
    all_or(KERNEL_6_1_FULL, (4, 128))
}

#[test]
fn debian_6_12_of_clouds() -> Result<(), Error> {
    all_or(KERNEL_6_12, (4, 512))
}
