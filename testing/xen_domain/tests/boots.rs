//! Debian's stock kernels as Xen PV guests, with neither Xen nor VT-x.

use std::time::Duration;
use testkit::{KERNEL_6_12, guest_files};
use xen_domain::{Domain, Start};

/// Hosts are shared.
const LONG: Duration = Duration::from_secs(300);
const PROMPT: &str = "# ";
const POWEROFF: u32 = 0;

/// A guest at its shell; `None` where the kernel cannot be fetched.
fn boot(package: &str, vcpus: u32, memory: u64) -> Option<(Domain, usize)> {
    if cfg!(debug_assertions) {
        eprintln!("skipped: a debug build would take minutes for a kernel");
        return None;
    }
    let files = guest_files(package)?;
    let start = Start {
        kernel: std::fs::read(&files.kernel).unwrap(),
        initrd: std::fs::read(&files.initrd).unwrap(),
        command_line: "console=hvc0".into(),
        memory: memory << 20,
        vcpus,
        interpret: false,
    };
    let domain = Domain::boot(&start).unwrap();
    let at = domain.expect("built-in shell", 0, LONG).unwrap();
    let at = domain.expect(PROMPT, at, LONG).unwrap();
    Some((domain, at))
}

/// What a command prints.
fn says(domain: &Domain, at: &mut usize, line: &str) -> String {
    // The echo of what is typed has the quotes.
    domain.type_in(&format!("{line}; echo \"do\"ne $?\n"));
    let from = domain.expect("\n", *at, LONG).unwrap();
    *at = domain.expect("done 0", from, LONG).unwrap();
    let said = domain.said();
    said.get(from..*at).unwrap_or("").replace('\r', "")
}

fn is_a_xen_guest(package: &str, vcpus: u32, memory: u64) {
    let Some((domain, mut at)) = boot(package, vcpus, memory) else { return };
    let said = domain.said();
    assert!(said.contains("Booting kernel on Xen"), "{said}");
    let version = says(&domain, &mut at, "cat /sys/hypervisor/type /sys/hypervisor/version/major");
    assert!(version.contains("xen\n4"), "{version}");
    let cpus = says(&domain, &mut at, "nproc");
    assert!(cpus.contains(&format!("{vcpus}\n")), "{cpus}");
    // Processes, pipes, pages that are copied on write, and files as large as half of the memory.
    let work = "for i in $(seq 40); do echo $i | cat | (read n; test $n = $i) || break; done; \
                dd if=/dev/urandom of=/tmp/a bs=1M count=24 2>/dev/null && cp /tmp/a /tmp/b && \
                cmp /tmp/a /tmp/b && sleep 0.2 && echo the same";
    let worked = says(&domain, &mut at, work);
    assert!(worked.contains("the same"), "{worked}");
    let faults =
        says(&domain, &mut at, "dmesg | grep -cE 'BUG:|Oops|WARNING: CPU|unchecked MSR' || true");
    assert!(faults.contains("0\n"), "{}", domain.said());
    domain.type_in("poweroff\n");
    assert_eq!(domain.wait(LONG), Some(POWEROFF), "{}", domain.said());
}

#[test]
fn debian_6_1_with_one_vcpu() {
    is_a_xen_guest("linux-image-6.1.0-*-cloud-amd64", 1, 256);
}

#[test]
fn debian_6_12_with_two_vcpus() {
    is_a_xen_guest(KERNEL_6_12, 2, 512);
}
