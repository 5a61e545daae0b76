//! A guest's screen and keyboard, through VNC as a person has them.

use std::{fs, path::Path, process::Command};
use testkit::{
    BOOT, COMMAND, Error, Guest, Options, Screen, left_out, on_this_host, package_files, status,
};

const RETURN: u32 = 0xff0d;
const F1: u32 = 0xffbe;

/// A guest with a screen of the size that it has, not of a serial line's.
fn with_screen(words: &str) -> Options {
    let words = format!("sarang.winsize=25x80 {words}");
    Options::default().arg("--display", "vnc=127.0.0.1:auto").append(&words)
}

/// The screen of a guest.
fn screen(guest: &Guest) -> Screen {
    Screen::of(guest).unwrap()
}

#[test]
fn a_shell_on_the_screen_is_typed_at() -> Result<(), Error> {
    let mut guest = Guest::boot(&with_screen("console=tty0"))?;
    let mut screen = screen(&guest);
    screen.expect("sarang:", BOOT).unwrap();
    screen.type_line("dmesg -n 1; clear; echo $((6*7))-Is_Shown \"!\" {a,b}").unwrap();
    let text = screen.expect("42-Is_Shown ! {a,b}", COMMAND).unwrap();
    // The driver found the keyboard, the mouse's port and the VGA.
    screen.type_line("grep -c 'AT Translated Set 2' /proc/bus/input/devices").unwrap();
    screen.expect("\n1\n", COMMAND).unwrap_or_else(|error| panic!("{text}\n{error}"));
    // The monitor sees the same, and types, too.
    let file = std::env::temp_dir().join(format!("sarang-screen-{}.png", std::process::id()));
    let answer = guest.monitor(&format!("screendump {}", file.display()))?;
    assert!(answer.contains(", 720 x "), "{answer}");
    assert!(fs::read(&file).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    fs::remove_file(&file).unwrap();
    screen.type_line("read -r line").unwrap();
    for key in ["x", "shift-y", "7", "ret"] {
        assert!(guest.monitor(&format!("sendkey {key}"))?.contains("sent"));
    }
    screen.type_line("echo \"<$line>\"").unwrap();
    screen.expect("<xY7>", COMMAND).unwrap();
    screen.type_line("poweroff").unwrap();
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::POWERED_OFF));
    Ok(())
}

#[test]
fn the_screen_comes_back_after_a_reset() -> Result<(), Error> {
    let mut guest = Guest::boot(&with_screen("console=tty0"))?;
    let mut screen = screen(&guest);
    screen.expect("sarang:", BOOT).unwrap();
    screen.type_line("clear; echo be\"\"fore").unwrap();
    screen.expect("before", COMMAND).unwrap();
    assert!(guest.monitor("reset")?.contains("reset"));
    let text = screen.expect("Sarang: Debian", BOOT).unwrap();
    assert!(!text.contains("before"), "{text}");
    screen.expect("sarang:", BOOT).unwrap();
    screen.type_line("poweroff").unwrap();
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::POWERED_OFF));
    Ok(())
}

#[test]
fn the_bios_writes_to_the_screen_by_the_firmware_of_the_vga() -> Result<(), Error> {
    let parts =
        ["bios-256k.bin", "vgabios-stdvga.bin"].map(|name| format!("/usr/share/seabios/{name}"));
    if !on_this_host(&parts.each_ref().map(String::as_str)) {
        return Ok(());
    }
    let disk = std::env::temp_dir().join(format!("sarang-blank-{}.img", std::process::id()));
    fs::write(&disk, [0; 4096]).unwrap();
    let options = Options::default()
        .arg("--firmware", "bios")
        .arg("--display", "vnc=127.0.0.1:auto")
        .arg("--disk", &disk.to_string_lossy());
    let mut guest = Guest::boot(&options)?;
    // On the serial port, too.
    guest.expect("No bootable device", BOOT)?;
    fs::remove_file(&disk).unwrap();
    let mut screen = screen(&guest);
    screen.look().unwrap();
    let (width, height, pixels) = screen.picture();
    assert_eq!((width, height), (720, 400));
    let lines = pixels.chunks(720 * 16).filter(|line| line.iter().any(|pixel| *pixel != 0)).count();
    assert!((4..12).contains(&lines), "{lines} lines of text");
    Ok(())
}

#[test]
fn a_stock_client_takes_a_picture() -> Result<(), Error> {
    let Some(client) = ["gvnccapture", "vncsnapshot"]
        .iter()
        .find(|name| Path::new("/usr/bin").join(name).is_file())
    else {
        left_out("not on this host: gvnccapture (package gvncviewer) or vncsnapshot");
        return Ok(());
    };
    let guest = Guest::boot(&with_screen(""))?;
    let mut screen = screen(&guest);
    screen.expect("Run /init as init process", BOOT).unwrap();
    let display = i32::from(screen.port().unwrap()) - 5900;
    let extension = if *client == "gvnccapture" { "png" } else { "jpg" };
    let name = format!("sarang-client-{}.{extension}", std::process::id());
    let file = std::env::temp_dir().join(name);
    let out = Command::new(client).arg(format!("127.0.0.1:{display}")).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{client}: {said}");
    assert!(fs::metadata(&file).is_ok_and(|data| data.len() > 1000), "{client}: {said}");
    fs::remove_file(&file).unwrap();
    Ok(())
}

#[test]
fn memtest86_runs_on_the_screen() -> Result<(), Error> {
    let Some([file]) = package_files("memtest86+", ["/boot/memtest86+x64.bin"]) else {
        return Ok(());
    };
    let guest = Guest::boot(&with_screen("").kernel(&file).memory("64M"))?;
    let mut screen = screen(&guest);
    screen.expect("Memtest86+", COMMAND).unwrap();
    screen.expect("<Enter> to start testing", COMMAND).unwrap();
    screen.press(RETURN).unwrap();
    let text = screen.expect("Pattern: 0x", COMMAND).unwrap();
    assert!(text.contains("Status: Testing") && text.contains("Errors: 0"), "{text}");
    // Its menu comes by a key, while it tests.
    screen.press(F1).unwrap();
    screen.expect("Settings", COMMAND).unwrap();
    Ok(())
}
