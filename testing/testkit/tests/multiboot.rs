//! Kernels that are not Linux, by Multiboot: one of our own for what they are told, and GNU Mach.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use testkit::{BOOT, COMMAND, Error, Guest, Options, Screen, package_files, status};

/// A file of this test's, removed at its end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("sarang-{name}-{}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The kernel of `guests/multiboot.S`.
fn build(version: u32) -> Temporary {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/multiboot.S");
    let kernel = Temporary::new(&format!("multiboot{version}"));
    let out = Command::new("cc")
        .args(["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"])
        .args(["-Wl,-Ttext-segment=0x100000", &format!("-DVERSION={version}"), "-o"])
        .args([&kernel.0, &source])
        .output()
        .expect("cc");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    kernel
}

fn tells_what_it_was_told(version: u32, line: &str) -> Result<(), Error> {
    let kernel = build(version);
    let module = Temporary::new(&format!("multiboot{version}-module"));
    fs::write(&module.0, "the module's text\0").unwrap();
    let options = Options::default().kernel(&kernel.0).initrd(&module.0).append("some=words");
    let mut guest = Guest::boot(&options)?;
    guest.expect(line, BOOT)?;
    guest.expect("the module's text", COMMAND)?;
    let end = guest.finish(COMMAND)?;
    assert_eq!(end.status, Some(status::POWERED_OFF), "{}", end.stderr);
    assert!(!end.console.contains("FAILED"), "{}", end.console);
    Ok(())
}

#[test]
fn a_kernel_by_the_first_version() -> Result<(), Error> {
    tells_what_it_was_told(1, "kernel console=ttyS0 some=words\n")
}

#[test]
fn a_kernel_by_the_second_version() -> Result<(), Error> {
    tells_what_it_was_told(2, "console=ttyS0 some=words\n")
}

#[test]
fn gnu_mach_prints_its_banner() -> Result<(), Error> {
    let file = "/boot/gnumach-1.8-486.gz";
    let Some([kernel]) = package_files("gnumach-image-1.8-486", [file]) else { return Ok(()) };
    let mut guest = Guest::boot(&Options::default().kernel(&kernel).append("console=com0"))?;
    guest.expect("GNU Mach 1.8", BOOT)?;
    // It has found the memory that it was told of; without its first program it goes no further.
    guest.expect("000000000000100000:000000000020000000, available", COMMAND)?;
    guest.expect("No bootstrap code loaded with the kernel", COMMAND)?;
    Ok(())
}

#[test]
fn gnu_mach_finds_the_text_screen() -> Result<(), Error> {
    let file = "/boot/gnumach-1.8-486.gz";
    let Some([kernel]) = package_files("gnumach-image-1.8-486", [file]) else { return Ok(()) };
    let options = Options::default().kernel(&kernel).arg("--display", "vnc=127.0.0.1:auto");
    let guest = Guest::boot(&options)?;
    let mut screen = Screen::of(&guest).unwrap();
    screen.expect("No bootstrap code loaded", BOOT).unwrap();
    // A picture is drawn from above while the guest writes: the end may be in it and the
    // beginning not yet.
    screen.look().unwrap();
    let text = screen.text();
    assert!(text.starts_with("GNU Mach 1.8"), "{text}");
    Ok(())
}
