//! Debian's stock kernels as Xen PV guests, with neither Xen nor VT-x.

mod common;

use common::Guest;
use testkit::KERNEL_6_12;

fn is_a_xen_guest(package: &str, vcpus: u32, memory: u64) {
    let Some(mut guest) = Guest::boot(package, vcpus, memory, &[]) else { return };
    let said = guest.domain.said();
    assert!(said.contains("Booting kernel on Xen"), "{said}");
    let version = guest.says("cat /sys/hypervisor/type /sys/hypervisor/version/major");
    assert!(version.contains("xen\n4"), "{version}");
    let cpus = guest.says("nproc");
    assert!(cpus.contains(&format!("{vcpus}\n")), "{cpus}");
    // Processes, pipes, pages that are copied on write, and files as large as half of the memory.
    let work = "for i in $(seq 40); do echo $i | cat | (read n; test $n = $i) || break; done; \
                dd if=/dev/urandom of=/tmp/a bs=1M count=24 2>/dev/null && cp /tmp/a /tmp/b && \
                cmp /tmp/a /tmp/b && sleep 0.2 && echo the same";
    let worked = guest.says(work);
    assert!(worked.contains("the same"), "{worked}");
    let faults = guest.says("dmesg | grep -cE 'BUG:|Oops|WARNING: CPU|unchecked MSR' || true");
    assert!(faults.contains("0\n"), "{}", guest.domain.said());
    guest.power_off();
}

#[test]
fn debian_6_1_with_one_vcpu() {
    is_a_xen_guest("linux-image-6.1.0-*-cloud-amd64", 1, 256);
}

#[test]
fn debian_6_12_with_two_vcpus() {
    is_a_xen_guest(KERNEL_6_12, 2, 512);
}
