//! Debian's installers, as its netboot packages have them: the stock kernels of both widths, each
//! with an initrd of 30 to 40 MB and a program of dialogs on the console.

use std::time::Duration;
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
    // With less, it begins with a warning.
    Some(Options::default().kernel(&kernel).initrd(&initrd).memory("768M"))
}

/// Goes from the first dialog to the second one.
fn choose_language(guest: &mut Guest) -> Result<(), Error> {
    guest.expect("Select a language", DIALOG)?;
    guest.expect("English", DIALOG)?;
    guest.send_bytes(b"\r")?;
    guest.expect("Select your location", DIALOG)?;
    Ok(())
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
