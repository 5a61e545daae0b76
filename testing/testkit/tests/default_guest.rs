//! The default guest: from `sarang run` to a shell, and what a user does there.

use testkit::{BOOT, COMMAND, Error, Guest, Options, guest_files, status};

/// Whether the default guest can be had; without packages or network there is nothing to boot.
fn here() -> bool {
    guest_files("linux-image-6.1.0-*-cloud-amd64").is_some()
}

#[test]
fn a_shell_and_its_commands() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default())?;
    guest.shell()?;

    let (text, code) = guest.command("uname -a", COMMAND)?;
    assert!(text.contains("Linux") && text.contains("-cloud-amd64") && text.contains("x86_64"));
    assert_eq!(code, 0);

    let (text, _) = guest.command("cat /proc/cpuinfo", COMMAND)?;
    for word in ["processor\t: 0", "model name", "flags", " lm ", " sse2 ", " nx "] {
        assert!(text.contains(word), "{word} in {text}");
    }
    assert!(!text.contains("processor\t: 1"));

    let (text, _) = guest.command("dmesg", COMMAND)?;
    assert!(text.contains("Linux version") && text.contains("Command line:"), "{text}");
    for trouble in ["general protection", "invalid opcode", "BUG:", "Call Trace", "soft lockup"] {
        assert!(!text.contains(trouble), "{trouble} in {text}");
    }

    let (text, _) =
        guest.command("seq 1 1000 | grep 7 | sort -rn | head -n 3 | tr '\\n' ' '", COMMAND)?;
    assert_eq!(text.trim(), "997 987 979");

    let (text, _) = guest.command("yes | head -c 300000 | sha256sum", COMMAND)?;
    let want = "4cc9b21867b28f74c0d6f3dd4ff19d91821a5171d4f5a15cc947ffdd56df2a40";
    assert_eq!(text.split_whitespace().next(), Some(want));

    let (_, code) = guest.command("test -d /no-such-folder", COMMAND)?;
    assert_eq!(code, 1);
    guest.power_off()
}

#[test]
fn an_interrupt_ends_a_command() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default())?;
    guest.shell()?;
    // Not a list of the shell's own: an interrupt between its two commands would hit neither.
    guest.send("sh -c \"echo be''gun; exec sleep 10000\"")?;
    guest.expect("begun", COMMAND)?;
    guest.send_bytes(b"\x03")?;
    guest.expect("# ", COMMAND)?;
    let (text, code) = guest.command("echo still $((6 * 7))", COMMAND)?;
    assert_eq!((text.trim(), code), ("still 42", 0));
    guest.power_off()
}

fn counts_cpus(cpus: u32) -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default().cpus(cpus))?;
    guest.shell()?;
    let (text, _) = guest.command("grep -c ^processor /proc/cpuinfo", COMMAND)?;
    assert_eq!(text.trim(), cpus.to_string());
    // Each of them does work of its own, and they share memory.
    let line = "for c in $(seq 0 7); do (seq 1 200 | sort -n | tail -n 1 > /tmp/$c) & done; wait; \
                cat /tmp/[0-7] | tr '\\n' ' '";
    let (text, _) = guest.command(line, COMMAND)?;
    assert_eq!(text.trim(), "200 200 200 200 200 200 200 200");
    guest.power_off()
}

#[test]
fn two_cpus() -> Result<(), Error> {
    counts_cpus(2)
}

#[test]
fn four_cpus() -> Result<(), Error> {
    counts_cpus(4)
}

#[test]
fn the_6_12_kernel() -> Result<(), Error> {
    let Some(files) = guest_files(testkit::KERNEL_6_12) else { return Ok(()) };
    let options = Options::default().kernel(&files.kernel).initrd(&files.initrd);
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    let (text, _) = guest.command("uname -r", COMMAND)?;
    assert!(text.trim().starts_with("6.12."), "{text}");
    guest.power_off()
}

#[test]
fn a_command_on_the_kernels_command_line() -> Result<(), Error> {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return Ok(()) };
    let append = format!(
        "console=ttyS0 quiet sarang.exec={}",
        assets::encode_command("echo \"sum $((20 + 22))\"; exit 5")
    );
    let options = Options::default().kernel(&files.kernel).initrd(&files.initrd).append(&append);
    let guest = Guest::boot(&options)?;
    let end = guest.finish(BOOT)?;
    assert_eq!(end.status, Some(status::POWERED_OFF), "{}", end.stderr);
    assert!(
        end.console.contains("sum 42") && end.console.contains("SARANG-EXIT 5"),
        "{}",
        end.console
    );
    Ok(())
}
