//! What these tests have in common.

use std::{
    fs,
    process::{Command, Output, Stdio},
};
use testkit::{BOOT, COMMAND, Debian, Error, Folder, Guest, Options, PASSWORD, status};

pub fn run(line: &[&str]) -> Output {
    Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()).output().unwrap()
}

/// What a program of the host prints, which must succeed.
pub fn host(line: &[&str]) -> String {
    let out = run(line);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{line:?}: {errors}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What the machine starts with.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// The kernel itself, with these words more.
    Kernel(&'static str),
    Bios,
    Uefi,
}

pub fn options(debian: &Debian, start: Start) -> Options {
    let options = Options::default().arg("--memory", "1G").timeout("2h");
    match start {
        Start::Kernel(words) => options
            .kernel(&debian.kernel)
            .initrd(&debian.initrd)
            .append(&format!("root=/dev/vda1 net.ifnames=0 {words}")),
        Start::Bios => options.arg("--firmware", "bios"),
        Start::Uefi => options.arg("--firmware", "uefi"),
    }
}

/// From the login prompt to a shell.
pub fn log_in(guest: &mut Guest) -> Result<(), Error> {
    guest.expect(" login: ", BOOT)?;
    guest.send("root")?;
    guest.expect("Password: ", COMMAND)?;
    guest.send(PASSWORD)?;
    guest.expect("# ", COMMAND)?;
    // Nothing of its echo is waited for: readline breaks it at the terminal's width, and where
    // that is seen depends on how the letters arrive.
    guest.send("export TERM=dumb; bind 'set enable-bracketed-paste off'")?;
    guest.expect("# ", COMMAND)?;
    guest.quiet()
}

/// What a command prints, which must succeed.
pub fn says(guest: &mut Guest, line: &str) -> Result<String, Error> {
    let (text, code) = guest.command(line, BOOT)?;
    assert_eq!(code, 0, "{line}: {text}");
    Ok(text.trim().to_owned())
}

pub fn power_off(mut guest: Guest) -> Result<(), Error> {
    guest.send("shutdown -h now")?;
    let end = guest.finish(BOOT)?;
    assert_eq!(end.status, Some(status::POWERED_OFF), "{}", end.stderr);
    Ok(())
}

/// Lets whoever has the key in; the arguments of `ssh` up to the command.
pub fn key(guest: &mut Guest, folder: &Folder, port: u16) -> Result<Vec<String>, Error> {
    let key = folder.text("key");
    host(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key]);
    let public = fs::read_to_string(folder.path("key.pub")).unwrap();
    says(guest, "mkdir -m 700 -p /root/.ssh")?;
    says(guest, &format!("echo {} > /root/.ssh/authorized_keys", public.trim()))?;
    let line = format!(
        "ssh -F /dev/null -i {key} -p {port} -o StrictHostKeyChecking=no -o BatchMode=yes \
         -o UserKnownHostsFile=/dev/null -o ConnectTimeout=120 root@127.0.0.1"
    );
    Ok(line.split(' ').map(str::to_owned).collect())
}

pub fn check(image: &str) {
    host(&["qemu-img", "check", "-q", image]);
}
