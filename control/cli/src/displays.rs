//! The VM's screen: its firmware, and the server that shows it.

use std::{
    fs::{self, File},
    io::Read,
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use display::Seat;
use vm_spec::{Display, Vnc};
use vnc_server::{Config, Password, Server};

use crate::{Failure, report};

/// Where distributions put the firmware for this VGA, which is part of SeaBIOS; Debian's is the
/// first.
const VGA_ROM: &[&str] = &[
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/share/qemu/vgabios-stdvga.bin",
    "/usr/share/qemu-kvm/vgabios-stdvga.bin",
];
/// No such firmware is larger.
const ROM_MAX: u64 = 256 << 10;
/// The first line of a file of passwords, with room for one that is too long.
const LINE_MAX: u64 = 256;

/// The VGA's firmware, if this host has it: only a BIOS needs it.
pub fn vga_rom(display: &Display) -> Option<Arc<[u8]>> {
    if !display.is_there() {
        return None;
    }
    let path = VGA_ROM.iter().map(Path::new).find(|path| path.is_file())?;
    let file = File::open(path).ok()?;
    let mut rom = Vec::new();
    file.take(ROM_MAX).read_to_end(&mut rom).ok()?;
    (!rom.is_empty()).then(|| rom.into())
}

/// Shows the seat to whoever the option says; nobody if there is none.
pub fn serve(display: &Display, seat: Seat) -> Result<Option<Server>, Failure> {
    let Display::Vnc(vnc) = display else { return Ok(None) };
    let password = vnc.password_file.as_deref().map(password).transpose()?;
    let listen = vnc.socket();
    let config = Config { listen, password, name: "Sarang".into() };
    let server = vnc_server::serve(config, seat).map_err(|error| {
        let why = report::os_reason(&error);
        Failure::host(format!(
            "--display {display}: cannot listen at {listen}: {why}; give another display's number, \
             or auto"
        ))
    })?;
    if vnc.display.is_none() {
        report::notice(&format!("the screen is at {}", place(server.address())));
    }
    Ok(Some(server))
}

/// As a client is told it.
fn place(address: SocketAddr) -> String {
    match Vnc::display_of(address.port()) {
        Some(display) => format!("{address} (VNC display {display})"),
        None => format!("{address} (VNC)"),
    }
}

/// The first line of a file.
fn password(path: &Path) -> Result<Password, Failure> {
    let fail = |why: &str| {
        Failure::host(format!(
            "--display password-file={}: {why}; give a file whose first line is the password, of 1 \
             to 8 bytes",
            path.display()
        ))
    };
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LINE_MAX).read_to_end(&mut text))
        .map_err(|error| fail(&report::os_reason(&error)))?;
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Password::new(line).map_err(|error| fail(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_one_line() {
        let file = std::env::temp_dir().join(format!("sarang-vnc-{}", std::process::id()));
        for (text, why) in [("", "is empty"), ("123456789\n", "at most 8 bytes")] {
            fs::write(&file, text).unwrap();
            let line = password(&file).unwrap_err().line;
            assert!(line.contains(why) && !line.contains('\n'), "{line}");
        }
        fs::write(&file, "secret\r\nmore").unwrap();
        assert_eq!(password(&file).unwrap(), Password::new(b"secret").unwrap());
        fs::remove_file(&file).unwrap();
        assert!(password(&file).unwrap_err().line.contains("password-file="));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let display = Display::Vnc(Vnc {
            address: [127, 0, 0, 1].into(),
            display: Vnc::display_of(port),
            password_file: None,
        });
        let line = serve(&display, Seat::default()).unwrap_err().line;
        assert!(line.starts_with(&format!("--display {display}: cannot listen at ")), "{line}");
        assert!(serve(&Display::None, Seat::default()).unwrap().is_none());
    }
}
