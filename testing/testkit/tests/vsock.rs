//! Streams between programs of the guest, by a stock kernel's own driver, and of the host.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Folder, Guest, KERNEL_6_12, Options, guest_files};

const KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";
const SIZE: usize = 3 << 20;

/// Compiles the guest's program, which becomes its first disk.
fn program(folder: &Folder) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/vsock.c");
    let out = folder.path("program");
    let done = Command::new("cc").args(["-O1", "-static", "-o"]).arg(&out).arg(source).status();
    assert!(done.unwrap().success(), "it needs: apt-get install gcc libc6-dev");
    let size = fs::metadata(&out).unwrap().len().next_multiple_of(4096);
    fs::File::options().write(true).open(&out).unwrap().set_len(size).unwrap();
    out
}

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..SIZE).map(next).collect()
}

fn sha256(folder: &Folder, bytes: &[u8]) -> String {
    let file = folder.path("sum");
    fs::write(&file, bytes).unwrap();
    let out = Command::new("sha256sum").arg(&file).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap_or_default().to_owned()
}

/// A guest with the program, and the kernel's driver for the device.
fn boot(folder: &Folder, options: Options) -> Result<Guest, Error> {
    let socket = folder.path("vsock");
    let options = options
        .arg("--vsock", &format!("{},cid=77", socket.display()))
        .arg("--disk", &format!("{},format=raw,readonly", program(folder).display()));
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    guest.command("until [ -b /dev/vda ]; do sleep 1; done", BOOT)?;
    guest.says(
        "cat /dev/vda > /tmp/vsock; chmod +x /tmp/vsock; modprobe -a vmw_vsock_virtio_transport",
    )?;
    guest.command("until ls -d /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*; do sleep 1; done > /dev/null", BOOT)?;
    Ok(guest)
}

/// Asks for a port of the guest, once somebody there listens.
fn ask(folder: &Folder, port: u32) -> UnixStream {
    let limit = Instant::now() + COMMAND;
    loop {
        let mut stream = UnixStream::connect(folder.path("vsock")).unwrap();
        stream.set_read_timeout(Some(COMMAND)).unwrap();
        stream.set_write_timeout(Some(COMMAND)).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut line).unwrap();
        if line.starts_with("OK ") {
            return stream;
        }
        assert!(line.is_empty() && Instant::now() < limit, "{line}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Sends all of it and then no more; what came.
fn exchange(mut stream: UnixStream, bytes: Vec<u8>) -> Vec<u8> {
    stream.set_read_timeout(Some(COMMAND)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    got
}

/// Both directions at once, whoever begins.
fn both_ways(options: Options, name: &str) -> Result<(), Error> {
    let folder = Folder::new(name);
    let mut guest = boot(&folder, options)?;
    guest.says(&format!("head -c {SIZE} /dev/urandom > /tmp/given"))?;
    let given = guest.says("sha256sum < /tmp/given | cut -d ' ' -f 1")?;

    let (bytes, sum) = (noise(1), sha256(&folder, &noise(1)));
    guest.send("/tmp/vsock listen 52 < /tmp/given > /tmp/taken 2> /dev/null &")?;
    let got = exchange(ask(&folder, 52), bytes);
    assert_eq!(sha256(&folder, &got), given, "from a guest that listens");
    let line = "wait; sha256sum < /tmp/taken | cut -d ' ' -f 1";
    assert_eq!(guest.says(line)?.lines().last(), Some(&*sum), "to a guest that listens");

    let listener = UnixListener::bind(folder.path("vsock_1024")).unwrap();
    let server = thread::spawn(move || exchange(listener.accept().unwrap().0, noise(2)));
    guest.says("/tmp/vsock connect 1024 < /tmp/given > /tmp/taken")?;
    assert_eq!(sha256(&folder, &server.join().unwrap()), given, "from a guest that connects");
    let taken = guest.says("sha256sum < /tmp/taken | cut -d ' ' -f 1")?;
    assert_eq!(taken, sha256(&folder, &noise(2)), "to a guest that connects");

    // Nobody listens: on either side that is told at once.
    let (text, code) = guest.command("/tmp/vsock connect 1025 < /dev/null", COMMAND)?;
    assert!(code == 1 && text.contains("reset by peer"), "{text}");
    let mut refused = UnixStream::connect(folder.path("vsock")).unwrap();
    refused.set_read_timeout(Some(COMMAND)).unwrap();
    refused.write_all(b"CONNECT 53\n").unwrap();
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    guest.power_off()?;
    assert!(!folder.path("vsock").exists());
    Ok(())
}

#[test]
fn megabytes_go_both_ways() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    both_ways(Options::default().cpus(2), "vsock")
}

#[test]
fn megabytes_go_both_ways_with_a_newer_kernel() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    both_ways(Options::default().arg("--package", KERNEL_6_12), "vsock-new")
}

#[test]
fn many_connections_at_once() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let folder = Folder::new("vsock-many");
    let mut guest = boot(&folder, Options::default())?;
    let listener = UnixListener::bind(folder.path("vsock_9")).unwrap();
    let echo = thread::spawn(move || {
        let serve = |stream: UnixStream| {
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                let count = std::io::copy(&mut reader, &mut &stream).unwrap();
                stream.shutdown(Shutdown::Both).unwrap();
                count
            })
        };
        let all: Vec<_> = listener.incoming().take(20).map(|s| serve(s.unwrap())).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<u64>>()
    });
    let line = "for i in $(seq 20); do (head -c 200000 /dev/urandom > /tmp/a$i; \
                /tmp/vsock connect 9 < /tmp/a$i > /tmp/b$i; cmp /tmp/a$i /tmp/b$i && echo same) & done; wait";
    let text = guest.says(line)?;
    assert_eq!(text.matches("same").count(), 20, "{text}");
    assert_eq!(echo.join().unwrap(), [200_000; 20]);
    guest.power_off()
}
