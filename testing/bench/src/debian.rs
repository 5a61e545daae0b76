//! A whole Debian with systemd, from a qcow2 disk to its login prompt.

use crate::contender::{Contender, Setup};
use crate::options::Options;
use crate::session::Session;
use crate::stats;
use serde::Serialize;
use std::process::Command;
use std::time::Duration;
use testkit::Debian;

/// What its serial line says at last.
const PROMPT: &str = " login: ";
/// MiB: half of the default is short for a system with services.
const MEMORY_MIB: u32 = 1024;
/// A boot that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(1800);
const APPEND: &str = "net.ifnames=0 quiet";

/// One contender's boots.
#[derive(Debug, Serialize)]
pub struct Login {
    pub name: &'static str,
    /// Wall seconds from start to the prompt, by round.
    pub seconds: Vec<Option<f64>>,
    pub median: Option<f64>,
    /// The median of each round's time relative to QEMU's of the same round.
    pub of_qemu: Option<f64>,
    #[serde(skip)]
    pub faults: Vec<String>,
}

/// Boots interleaved, each contender once a round. What the guests write is dropped.
pub fn measure(
    options: &Options,
    setup: &Setup,
    contenders: &[Contender],
) -> Result<Vec<Login>, String> {
    let debian = testkit::debian().ok_or("--debian: there is no image to boot")?;
    let able = contenders.iter().filter(|c| command(**c, setup, &debian).is_some());
    let mut logins: Vec<(Contender, Login)> = able.map(|c| (*c, Login::new(*c))).collect();
    for round in 1..=options.rounds {
        for (contender, login) in &mut logins {
            eprintln!("bench: Debian {round} of {}: {}", options.rounds, contender.name());
            let Some(mut command) = command(*contender, setup, &debian) else { continue };
            let seconds = boot(&mut command, options.timeout.min(LONGEST));
            login.seconds.push(seconds.as_ref().ok().copied());
            if let Err(why) = seconds {
                login.faults.push(format!("{}, Debian: {why}", contender.name()));
            }
        }
    }
    let mut logins: Vec<Login> = logins.into_iter().map(|(_, login)| login).collect();
    conclude(&mut logins);
    Ok(logins)
}

impl Login {
    fn new(contender: Contender) -> Self {
        Self {
            name: contender.name(),
            seconds: Vec::new(),
            median: None,
            of_qemu: None,
            faults: Vec::new(),
        }
    }
}

fn conclude(logins: &mut [Login]) {
    let qemu = logins.iter().find(|login| login.name == Contender::Qemu.name());
    let qemu = qemu.map(|login| login.seconds.clone()).unwrap_or_default();
    for login in logins {
        let times: Vec<f64> = login.seconds.iter().flatten().copied().collect();
        login.median = stats::median(&times);
        let pairs = login.seconds.iter().zip(&qemu);
        let ratios: Vec<f64> = pairs.filter_map(|(ours, qemu)| Some((*ours)? / (*qemu)?)).collect();
        login.of_qemu = stats::median(&ratios);
    }
}

fn boot(command: &mut Command, timeout: Duration) -> Result<f64, String> {
    let mut session = Session::start(command, timeout)?;
    let (time, _) = session.wait_for(PROMPT, 0)?;
    Ok((time - session.started()).as_secs_f64())
}

/// `None` of who has no disk of its own, or boots nothing.
fn command(contender: Contender, setup: &Setup, debian: &Debian) -> Option<Command> {
    let disk = debian.disk.display();
    let root = if contender == Contender::XenPv { "xvda1" } else { "vda1" };
    let append = format!("console={} root=/dev/{root} {APPEND}", contender.console());
    match contender {
        Contender::Qemu => {
            let mut qemu = Command::new("qemu-system-x86_64");
            qemu.args(["-machine", "q35", "-m", &format!("{MEMORY_MIB}M")]);
            qemu.arg("-smp").arg(setup.cpus.to_string());
            qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]);
            qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
            qemu.arg("-kernel").arg(&debian.kernel).arg("-initrd").arg(&debian.initrd);
            qemu.args(["-append", &append]);
            let drive = format!("file={disk},format=qcow2,if=none,id=disk,snapshot=on");
            qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
            Some(qemu)
        }
        Contender::Sarang | Contender::XenPv => {
            let mut sarang = contender.ours(setup, MEMORY_MIB);
            sarang.arg("--kernel").arg(&debian.kernel).arg("--initrd").arg(&debian.initrd);
            sarang.args(["--append", &append]);
            sarang.args(["--disk", &format!("{disk},format=qcow2,ephemeral")]);
            Some(sarang)
        }
        Contender::Native | Contender::QemuMicrovm | Contender::Uml => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_one_round() {
        let login = |contender, seconds: &[Option<f64>]| Login {
            seconds: seconds.to_vec(),
            ..Login::new(contender)
        };
        let qemu = login(Contender::Qemu, &[Some(10.0), None, Some(40.0), Some(20.0)]);
        let ours = login(Contender::Sarang, &[Some(5.0), Some(1.0), Some(10.0), Some(12.0)]);
        let mut logins = [qemu, ours];
        conclude(&mut logins);
        assert_eq!((logins[0].median, logins[0].of_qemu), (Some(20.0), Some(1.0)));
        assert_eq!((logins[1].median, logins[1].of_qemu), (Some(7.5), Some(0.5)));
    }
}
