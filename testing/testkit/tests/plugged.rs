//! Devices that an operator deals with, which come and go while a stock kernel runs: the balloon,
//! a keyboard, a tablet, named channels.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Folder, Guest, Options, Screen, guest_files};

fn boot(options: Options) -> Result<Option<Guest>, Error> {
    if guest_files("linux-image-6.1.0-*-cloud-amd64").is_none() {
        return Ok(None);
    }
    let mut guest = Guest::boot(&options)?;
    start(&mut guest)?;
    Ok(Some(guest))
}

fn start(guest: &mut Guest) -> Result<(), Error> {
    guest.shell()?;
    guest.says("modprobe -a virtio_pci virtio_balloon virtio_input evdev virtio_console")?;
    Ok(())
}

/// Waits for a command of the guest's shell to succeed.
fn until(guest: &mut Guest, command: &str) -> Result<(), Error> {
    guest.command(&format!("until {command} > /dev/null 2>&1; do sleep 1; done"), BOOT)?;
    Ok(())
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    while !done()? {
        assert!(Instant::now() < limit, "{what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn add(guest: &mut Guest, what: &str, port: usize) -> Result<(), Error> {
    let answer = guest.monitor(&format!("device add {what}"))?;
    assert!(answer.contains(&format!("behind port {port}")), "{what}: {answer}");
    Ok(())
}

/// Removes what is behind a port, and waits until the guest has let go of it.
fn remove(guest: &mut Guest, port: usize) -> Result<(), Error> {
    assert!(guest.monitor(&format!("device remove {port}"))?.contains("asked"));
    let empty = format!("port {port}  empty");
    wait_for("the guest lets go", || Ok(guest.monitor("device list")?.contains(&empty)))
}

/// MiB that the guest has given up.
fn given(guest: &mut Guest) -> Result<u64, Error> {
    let info = guest.monitor("info balloon")?;
    let line = info.lines().find_map(|line| line.trim().strip_prefix("given by the guest"));
    let line = line.unwrap_or_else(|| panic!("{info}"));
    Ok(line.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
fn a_balloon_comes_and_goes() -> Result<(), Error> {
    let options = Options::default().memory("512M").arg("--ports", "2");
    let Some(mut guest) = boot(options)? else { return Ok(()) };
    for command in ["balloon 200", "info balloon"] {
        assert!(guest.monitor(command)?.contains("no balloon"));
    }
    let bound = "ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio*";
    for left in [200, 320] {
        add(&mut guest, "balloon", 0)?;
        let refused = guest.monitor("device add balloon")?;
        assert!(refused.contains("the machine has a balloon"), "{refused}");
        until(&mut guest, bound)?;
        assert_eq!(given(&mut guest)?, 0);
        assert!(guest.monitor(&format!("balloon {left}"))?.contains("asked"));
        wait_for("inflating", || Ok(given(&mut guest)? == 512 - left))?;
        let small = guest.held_memory();
        assert!(small < left << 10, "{small} KiB");
        // What it has given is its own again.
        remove(&mut guest, 0)?;
        assert!(guest.monitor("info balloon")?.contains("no balloon"));
        let free = guest.says("grep MemFree /proc/meminfo")?;
        let free: u64 = free.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(free > 350 << 10, "{free} KiB");
        guest.says(
            "head -c 250000000 /dev/urandom > /tmp/a; cp /tmp/a /tmp/b 2> /dev/null; rm /tmp/?",
        )?;
    }
    // One that came late is there after a reset, too.
    add(&mut guest, "balloon", 0)?;
    guest.monitor("balloon 400")?;
    wait_for("inflating", || Ok(given(&mut guest)? == 112))?;
    guest.monitor("reset")?;
    start(&mut guest)?;
    wait_for("inflating again", || Ok(given(&mut guest)? == 112))?;
    guest.power_off()
}

/// The file of a device's events, by what is in its name.
fn events(guest: &mut Guest, name: &str) -> Result<String, Error> {
    until(guest, &format!("grep -l {name} /sys/class/input/event*/device/name"))?;
    let find = format!("grep -l {name} /sys/class/input/event*/device/name | cut -d / -f 5");
    Ok(format!("/dev/input/{}", guest.says(&find)?.trim()))
}

/// Types, codes and values of so many events that `cause` makes come to a device of the guest.
fn hears(
    guest: &mut Guest,
    file: &str,
    count: usize,
    cause: impl FnOnce(&mut Guest) -> Result<(), Error>,
) -> Result<Vec<(u16, u16, i32)>, Error> {
    until(guest, &format!("[ -c {file} ]"))?;
    guest.says(&format!(
        "rm -f /tmp/done; (head -c {} {file} > /tmp/events; touch /tmp/done) & sleep 1",
        24 * count
    ))?;
    cause(guest)?;
    until(guest, "[ -e /tmp/done ]")?;
    let text = guest.says("od -An -v -tx1 -w24 /tmp/events")?;
    let event = |line: &str| {
        let bytes: Vec<u8> =
            line.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (half(16), half(18), i32::from_le_bytes(bytes[20..24].try_into().unwrap()))
    };
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(event).collect())
}

#[test]
fn a_keyboard_and_a_tablet_come_and_go() -> Result<(), Error> {
    let options = Options::default().arg("--ports", "2").arg("--display", "vnc=127.0.0.1:auto");
    let Some(mut guest) = boot(options)? else { return Ok(()) };
    let mut screen = Screen::of(&guest).unwrap();
    let old = events(&mut guest, "AT.Translated")?;
    // Of the old keyboard each key is three events: its scan code comes with it.
    let to_the_old = |guest: &mut Guest| {
        let heard = hears(guest, &old, 6, |guest| guest.monitor("sendkey a").map(drop))?;
        assert!(heard.contains(&(1, 30, 1)) && heard.contains(&(1, 30, 0)), "{heard:?}");
        Ok::<_, Error>(())
    };
    to_the_old(&mut guest)?;
    let key = |code| [(1, code, 1), (0, 0, 0), (1, code, 0), (0, 0, 0)];
    for _ in 1..=2 {
        add(&mut guest, "keyboard", 0)?;
        add(&mut guest, "tablet", 1)?;
        let file = events(&mut guest, "virtio.keyboard")?;
        let heard = hears(&mut guest, &file, 4, |guest| guest.monitor("sendkey b").map(drop))?;
        assert_eq!(heard, key(48));
        let heard = hears(&mut guest, &file, 4, |_| {
            screen.press('c'.into()).unwrap();
            Ok(())
        })?;
        assert_eq!(heard, key(46));
        let file = events(&mut guest, "virtio.tablet")?;
        // To the right end, at the top, with the left button.
        let heard = hears(&mut guest, &file, 3, |_| {
            screen.point(1, 5000, 0).unwrap();
            screen.point(0, 5000, 0).unwrap();
            Ok(())
        })?;
        assert_eq!(heard, [(3, 0, 0x7fff), (1, 0x110, 1), (0, 0, 0)]);
        remove(&mut guest, 0)?;
        remove(&mut guest, 1)?;
        guest.says("! grep virtio /sys/class/input/event*/device/name")?;
        to_the_old(&mut guest)?;
    }
    guest.power_off()
}

#[test]
fn without_a_screen_there_is_no_keyboard_but_one_that_comes() -> Result<(), Error> {
    let Some(mut guest) = boot(Options::default().arg("--ports", "1"))? else { return Ok(()) };
    let none = guest.monitor("sendkey a")?;
    assert!(none.contains("no keyboard") && none.contains("`device add keyboard`"), "{none}");
    add(&mut guest, "keyboard", 0)?;
    let file = events(&mut guest, "virtio.keyboard")?;
    let heard = hears(&mut guest, &file, 4, |guest| guest.monitor("sendkey a").map(drop))?;
    assert_eq!(heard, [(1, 30, 1), (0, 0, 0), (1, 30, 0), (0, 0, 0)]);
    remove(&mut guest, 0)?;
    assert!(guest.monitor("sendkey a")?.contains("no keyboard"));
    for (kind, advice) in [("memory", "max=SIZE"), ("keyboard x", "nothing more"), ("x", "tablet")]
    {
        let answer = guest.monitor(&format!("device add {kind}"))?;
        assert!(answer.contains(advice), "{kind}: {answer}");
    }
    guest.power_off()
}

/// Threads that carry bytes.
fn carriers(guest: &Guest) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", guest.process())).unwrap();
    let name =
        |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.flatten().map(name).filter(|name| name.starts_with("console ")).count()
}

#[test]
fn channels_come_and_go() -> Result<(), Error> {
    let folder = Folder::new("plugged-channels");
    let (socket, log) = (folder.path("agent"), folder.path("log"));
    let options = Options::default()
        .arg("--ports", "2")
        .arg("--channel", &format!("first=file:{}", folder.path("first").display()));
    let Some(mut guest) = boot(options)? else { return Ok(()) };
    let before = carriers(&guest);
    let port = |name: &str| {
        format!("/dev/$(basename $(dirname $(grep -lx {name} /sys/class/virtio-ports/*/name)))")
    };
    for round in 1..=2 {
        add(&mut guest, &format!("channel agent=unix:{}", socket.display()), 0)?;
        add(&mut guest, &format!("console log=file:{}", log.display()), 1)?;
        assert!(carriers(&guest) > before);
        for name in ["agent", "log"] {
            until(&mut guest, &format!("grep -x {name} /sys/class/virtio-ports/*/name"))?;
        }
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(COMMAND)).unwrap();
        let serve = "while read -r l; do echo \"got $l\"; done <&3 >&3";
        guest.says(&format!("P={}; (exec 3<>$P; {serve}) & sleep 1", port("agent")))?;
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        for word in ["one", "two"] {
            writeln!(stream, "{word}").unwrap();
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line.trim(), format!("got {word}"));
        }
        guest.says(&format!("seq {round} 50000 > {}", port("log")))?;
        // The client goes with the device, and what the guest wrote last has been written.
        remove(&mut guest, 0)?;
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert!(!socket.exists());
        remove(&mut guest, 1)?;
        let said = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        let want: String = (round..=50_000).map(|n| format!("{n}\n")).collect();
        assert!(said == want, "{} bytes", said.len());
        wait_for("the threads end", || Ok(carriers(&guest) == before))?;
        assert_eq!(guest.says("cat /sys/class/virtio-ports/*/name")?, "first");
    }
    for (option, why) in [
        ("channel first=pty", "of this name"),
        ("channel x", "a name and what carries it"),
        ("channel x=stdio", "carries no channel"),
        ("channel x=unix:/nonexistent/socket", "can be written"),
    ] {
        let answer = guest.monitor(&format!("device add {option}"))?;
        assert!(answer.contains(why), "{option}: {answer}");
    }
    assert_eq!(carriers(&guest), before, "what was refused has left nothing");
    // A machine that ends writes what was said last.
    add(&mut guest, &format!("channel log=file:{}", log.display()), 0)?;
    until(&mut guest, "grep -x log /sys/class/virtio-ports/*/name")?;
    guest.says(&format!("seq 1 20000 > {}", port("log")))?;
    guest.power_off()?;
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 20_000);
    Ok(())
}
