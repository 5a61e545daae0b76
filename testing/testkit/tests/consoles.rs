//! The virtio console as a stock kernel's own driver uses it: a terminal, and ports with names.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Guest, KERNEL_6_12, Options, guest_files};

fn here(kernel: &str) -> bool {
    guest_files(kernel).is_some()
}

const KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("sarang-{name}-{}.sock", std::process::id()))
}

fn connect(path: &PathBuf) -> UnixStream {
    let limit = Instant::now() + COMMAND;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(COMMAND)).unwrap();
                stream.set_write_timeout(Some(COMMAND)).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < limit, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A shell on hvc0.
fn terminal(options: Options) -> Result<(), Error> {
    let mut guest = Guest::boot(&options.console("virtio"))?;
    guest.shell()?;
    assert_eq!(guest.says("tail -n 1 /sys/class/tty/console/active")?, "hvc0");
    assert_eq!(guest.says("tty")?, "/dev/hvc0");
    // Far more than any buffer on the way, and all of it in order.
    let text = guest.says("seq 1 5000")?;
    let want: Vec<String> = (1..=5_000).map(|n| n.to_string()).collect();
    assert!(text.lines().map(str::trim).eq(want), "{} bytes", text.len());
    // What is typed in one go is read by the guest as it comes to it.
    let long = "x".repeat(700);
    assert_eq!(guest.says(&format!("echo {long} | wc -c"))?, "701");
    guest.says("echo kernel speaks > /dev/kmsg; dmesg | grep -q 'kernel speaks'")?;
    guest.power_off()
}

#[test]
fn a_shell_on_a_virtio_console() -> Result<(), Error> {
    if here(KERNEL) { terminal(Options::default().cpus(2)) } else { Ok(()) }
}

#[test]
fn a_shell_on_the_virtio_console_of_a_newer_kernel() -> Result<(), Error> {
    if !here(KERNEL_6_12) {
        return Ok(());
    }
    terminal(Options::default().arg("--package", KERNEL_6_12))
}

#[test]
fn a_shell_on_a_virtio_console_whose_registers_are_in_memory() -> Result<(), Error> {
    if here(KERNEL) { terminal(Options::default().arg("--virtio", "mmio")) } else { Ok(()) }
}

#[test]
fn channels_carry_bytes_to_sockets() -> Result<(), Error> {
    if !here(KERNEL) {
        return Ok(());
    }
    let (first, second) = (socket("agent"), socket("other"));
    let options = Options::default()
        .arg("--channel", &format!("org.example.agent=unix:{}", first.display()))
        .arg("--channel", &format!("other=unix:{}", second.display()));
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    guest.command(
        "until [ -c /dev/vport0p1 ] || ls /dev/vport*p1 > /dev/null 2>&1; do sleep 1; done",
        BOOT,
    )?;
    let names = "cat /sys/class/virtio-ports/*/name | tr '\\n' ' '";
    guest.command(&format!("until {names} | grep -q other; do sleep 1; done"), BOOT)?;
    assert_eq!(guest.says(names)?, "org.example.agent other");
    let port = |name: &str| {
        format!(
            "$(grep -lx {name} /sys/class/virtio-ports/*/name | sed 's,.*/\\(vport[^/]*\\)/name,/dev/\\1,')"
        )
    };

    // An agent that answers each line. To Linux a port without anybody at its other end is at its
    // end, so it begins when somebody is there.
    let agent = port("org.example.agent");
    let mut stream = connect(&first);
    let serve = "while read -r l; do echo \"got $l\"; done <&3 >&3";
    guest.says(&format!("P={agent}; (exec 3<>$P; {serve}) & sleep 1"))?;
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for word in ["one", "two", "three"] {
        writeln!(stream, "{word}").unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), format!("got {word}"));
    }

    // A client that reads slowly holds the guest back, and loses nothing.
    let mut slow = connect(&second);
    let other = port("other");
    // In one command, since a client that takes nothing for five seconds is given up.
    let send = format!("P={other}; (seq 1 200000 > $P; echo sent > /tmp/sent)");
    let look = "cat /tmp/sent 2> /dev/null || echo held back";
    assert!(guest.says(&format!("{send} & sleep 2; {look}"))?.contains("held back"));
    let want: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    let mut got = vec![0; want.len()];
    slow.read_exact(&mut got).unwrap();
    assert!(got == want.as_bytes());
    guest.command("until [ -e /tmp/sent ]; do sleep 1; done", COMMAND)?;

    // And into the guest, with nobody reading at first.
    let data = want.clone();
    let writer = thread::spawn(move || {
        slow.write_all(data.as_bytes()).unwrap();
        slow
    });
    let line = format!("P={other}; head -c {} < $P | sha256sum | cut -d ' ' -f 1", want.len());
    let sum = guest.says(&line)?;
    drop(writer.join().unwrap());
    let path = std::env::temp_dir().join(format!("sarang-channel-{}", std::process::id()));
    std::fs::write(&path, &want).unwrap();
    let out = std::process::Command::new("sha256sum").arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).starts_with(&sum), "{sum}");
    guest.power_off()?;
    assert!(!first.exists() && !second.exists(), "sockets are removed");
    Ok(())
}
