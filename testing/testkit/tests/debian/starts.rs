//! From a disk to a login, on the serial line and on the screen.

use crate::{common::*, stress::stress};
use std::time::{Duration, Instant};
use testkit::{BOOT, COMMAND, Debian, Error, Guest, Options, PASSWORD, Screen, debian};

/// All of ASCII that has a picture.
const LETTERS: [&str; 2] = [
    "!#$%&()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "[]^_`abcdefghijklmnopqrstuvwxyz{|}~",
];

/// A screen whose font is known: of the adapter's own text mode it is its firmware's, of a mode
/// that was set by UEFI the kernel's.
fn readable(guest: &mut Guest) -> Result<Screen, Error> {
    let mut screen = Screen::of(guest).unwrap();
    let [first, second] = LETTERS;
    let limit = Instant::now() + BOOT;
    loop {
        says(guest, &format!("printf '\\033c%s\\n%s\\n\\n' '{first}' '{second}' > /dev/tty1"))?;
        at_rest(&mut screen);
        // The console's own prompt may have come after them.
        if screen.learn(&LETTERS.join("\n")) {
            break;
        }
        assert!(Instant::now() < limit, "the screen shows something else");
    }
    assert!(screen.text().starts_with(&LETTERS.join("\n")), "{}", screen.text());
    Ok(screen)
}

/// Looks until two pictures are the same, and not black.
fn at_rest(screen: &mut Screen) {
    let limit = Instant::now() + COMMAND;
    let mut last = Vec::new();
    loop {
        screen.look().unwrap();
        let (_, _, pixels) = screen.picture();
        if pixels == last && pixels.iter().any(|pixel| *pixel != 0) {
            break;
        }
        assert!(Instant::now() < limit, "the screen does not come to rest");
        last = pixels.to_vec();
        std::thread::sleep(Duration::from_secs(2));
    }
}

fn on_both(debian: &Debian, options: Options, cpus: u32) -> Result<(), Error> {
    let options = options.cpus(cpus).arg("--display", "vnc=127.0.0.1:auto").flag("--ephemeral");
    let mut guest = Guest::boot(&options.flag(&debian.disk.to_string_lossy()))?;
    log_in(&mut guest)?;
    assert_eq!(says(&mut guest, "nproc")?, cpus.to_string());
    stress(&mut guest, cpus)?;
    let mut screen = readable(&mut guest)?;
    says(&mut guest, "printf '\\033c' > /dev/tty1")?;
    screen.type_line("").unwrap();
    screen.expect("sarang login:", BOOT).unwrap();
    screen.type_line("root").unwrap();
    screen.expect("Password:", COMMAND).unwrap();
    screen.type_line(PASSWORD).unwrap();
    screen.expect("root@sarang:~#", COMMAND).unwrap();
    screen.type_line("clear; tty; echo \"$((6*7))-Is_Shown\"").unwrap();
    screen.expect("/dev/tty1\n42-Is_Shown\n", COMMAND).unwrap();
    power_off(guest)
}

#[test]
fn one_cpu_from_a_bios() -> Result<(), Error> {
    let Some(debian) = debian() else { return Ok(()) };
    on_both(&debian, options(&debian, Start::Bios), 1)
}

#[test]
fn four_cpus_from_uefi() -> Result<(), Error> {
    let Some(debian) = debian() else { return Ok(()) };
    on_both(&debian, options(&debian, Start::Uefi), 4)
}
