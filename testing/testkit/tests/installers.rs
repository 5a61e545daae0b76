//! Debian's installers, as its netboot packages have them: the stock kernels of both widths, each
//! with an initrd of 30 to 40 MB and a program of dialogs on the console.

use std::time::{Duration, Instant};
use testkit::{BOOT, Error, Guest, Options, package_files};

/// A screen is drawn by a guest that has just unpacked its root and looks for hardware.
const DIALOG: Duration = BOOT.saturating_mul(2);

fn installer(architecture: &str) -> Option<Options> {
    let folder = format!(
        "/usr/lib/debian-installer/images/12/{architecture}/text/debian-installer/{architecture}"
    );
    let package = format!("debian-installer-12-netboot-{architecture}");
    let files = [format!("{folder}/linux"), format!("{folder}/initrd.gz")];
    let [kernel, initrd] = package_files(&package, [&files[0], &files[1]])?;
    // With less, it begins with a dialog about that.
    Some(Options::default().kernel(&kernel).initrd(&initrd).memory("1G"))
}

/// What is typed while a dialog prepares its terminal is dropped: it is typed again.
const AGAIN: Duration = Duration::from_secs(20);

/// Goes from the first dialog to the second one.
fn choose_language(guest: &mut Guest) -> Result<(), Error> {
    guest.expect("Select a language", DIALOG)?;
    guest.expect("English", DIALOG)?;
    let limit = Instant::now() + DIALOG;
    loop {
        guest.send_bytes(b"\r")?;
        match guest.expect("Select your location", AGAIN) {
            Err(error) if Instant::now() >= limit => return Err(error),
            Err(_) => {}
            Ok(_) => return Ok(()),
        }
    }
}

#[test]
fn the_64_bit_installer_asks_for_a_language() -> Result<(), Error> {
    let Some(options) = installer("amd64") else { return Ok(()) };
    let mut guest = Guest::boot(&options.cpus(2))?;
    choose_language(&mut guest)
}

#[test]
fn the_32_bit_installer_asks_for_a_language() -> Result<(), Error> {
    let Some(options) = installer("i386") else { return Ok(()) };
    let mut guest = Guest::boot(&options.cpus(2))?;
    guest.expect("-686", BOOT)?;
    guest.expect("Total of 2 processors activated", BOOT)?;
    choose_language(&mut guest)
}
