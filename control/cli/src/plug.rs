//! Devices that the operator adds while the machine runs.

use machine::{Handle, Place, Plug, PlugError};
use vm_spec::Channel;

use crate::{Failure, channels, disks, monitor::Gone, nets, vsock};

const NO_PORTS: &str = "the machine has no ports; start it with --ports N\n";
const KINDS: &str =
    "give disk, net, rng, scsi, vsock, balloon, keyboard, tablet or channel; `help` tells more";
/// Of a machine that has a device for memory: its place is told at the start, and so is the device.
const HAS_MEMORY: &str =
    "the machine has its device for memory from the start; `memory N` gives the guest more\n";
const NO_ROOM: &str = "the guest is told at the start how much memory may come; start the machine \
                       with --memory SIZE,max=SIZE, and `memory N` gives it\n";

/// Opens what the words name, and adds it; what came of it, as a line.
pub fn add(machine: &Handle, kind: &str, option: &str) -> Result<String, Gone> {
    if let "memory" | "mem" = kind {
        let memory = machine.memory_info().map_err(|machine::Gone| Gone)?;
        return Ok(if memory.is_some() { HAS_MEMORY } else { NO_ROOM }.into());
    }
    let plug = match open(kind, option) {
        Ok(plug) => plug,
        Err(failure) => return Ok(format!("{}\n", failure.line)),
    };
    let label = format!("{kind} {option}");
    let plugged = machine.plug(plug, label.trim().into()).map_err(|machine::Gone| Gone)?;
    Ok(match plugged {
        Ok(Place::Port(port)) => format!("behind port {port}\n"),
        Ok(place @ Place::Unit(_)) => format!("unit {place} of the SCSI adapter\n"),
        Ok(place @ Place::Device(_)) => format!("added as {place}\n"),
        Err(PlugError::NoPort) if !has_ports(machine)? => NO_PORTS.into(),
        Err(error @ PlugError::NoPort) => format!("{error}; remove a device first\n"),
        Err(error @ PlugError::Thread(_)) => {
            format!("{error}; lower the load of this host and try again\n")
        }
        Err(error) => format!("{error}\n"),
    })
}

fn has_ports(machine: &Handle) -> Result<bool, Gone> {
    let places = machine.places().map_err(|machine::Gone| Gone)?;
    Ok(places.iter().any(|(place, _)| matches!(place, Place::Port(_))))
}

fn open(kind: &str, option: &str) -> Result<Plug, Failure> {
    let refused = |error: vm_spec::SpecError| Failure::usage(error.to_string());
    let wrong = |what: &str| Failure::usage(format!("device add {kind}: {what}"));
    match kind {
        "disk" => {
            let disk = option.parse().map_err(refused)?;
            let opened = disks::open(&[disk], None)?.pop();
            opened.map(Plug::Disk).ok_or_else(|| wrong("give a file"))
        }
        "net" => {
            let net = option.parse().map_err(refused)?;
            let opened = nets::open(&net)?.pop();
            opened.map(Plug::Network).ok_or_else(|| wrong("this is no network; give user"))
        }
        "rng" => disks::entropy().map(Plug::Entropy),
        "scsi" => Ok(Plug::Scsi),
        "vsock" => {
            let option = option.parse().map_err(refused)?;
            let opened = vsock::open(Some(&option))?;
            let plug = opened.map(|(socket, part)| Plug::Sockets(part, Box::new(socket)));
            plug.ok_or_else(|| wrong("give a path"))
        }
        "channel" | "console" => {
            let option: Channel = option.parse().map_err(refused)?;
            channels::open_late(&option).map(|(part, carry)| Plug::Channel(part, carry))
        }
        "balloon" | "keyboard" | "tablet" if !option.is_empty() => {
            Err(wrong("it takes nothing more"))
        }
        "balloon" => Ok(Plug::Balloon),
        "keyboard" => Ok(Plug::Keyboard),
        "tablet" => Ok(Plug::Tablet),
        "input" => Err(wrong("give keyboard or tablet")),
        "cd" | "cdrom" => Err(wrong("give disk FILE,bus=scsi-cd")),
        _ => Err(wrong(KINDS)),
    }
}

/// Puts a disc into a CD drive of the SCSI adapter, or, without a file, takes out what there is; what
/// came of it, as a line.
pub fn disc(machine: &Handle, drive: Place, file: Option<&str>) -> Result<String, Gone> {
    let Place::Unit(address) = drive else {
        return Ok("device: give target and unit of a CD drive, such as 0:1\n".into());
    };
    let opened = match file.map(|file| open("disk", &format!("{file},bus=scsi-cd"))).transpose() {
        Ok(opened) => opened,
        Err(failure) => return Ok(format!("{}\n", failure.line)),
    };
    let disc = match opened {
        Some(Plug::Disk(disc)) => Some(disc),
        _ => None,
    };
    let label = file.map_or("CD drive without a disc".into(), |file| format!("disc {file}"));
    let done = machine.insert(address, disc, label).map_err(|machine::Gone| Gone)?;
    Ok(match (done, file) {
        (Ok(()), Some(_)) => format!("the disc is in the drive {drive}\n"),
        (Ok(()), None) => format!("the drive {drive} is empty\n"),
        (Err(error), _) => format!("{error}\n"),
    })
}

/// Asks the guest to let go of a device, or takes a unit away; what came of it, as a line.
pub fn remove(machine: &Handle, place: Place) -> Result<String, Gone> {
    let done = machine.unplug(place).map_err(|machine::Gone| Gone)?;
    Ok(match (done, place) {
        (true, Place::Port(_) | Place::Device(_)) => {
            "asked; `device list` shows when the guest has let go, which takes it some seconds\n"
                .into()
        }
        (true, Place::Unit(_)) => "removed\n".into(),
        (false, Place::Port(port)) => format!("nothing is behind port {port}\n"),
        (false, Place::Unit(_)) => format!("the SCSI adapter has no unit {place}\n"),
        (false, Place::Device(_)) => format!("the guest has no {place}\n"),
    })
}

/// A line for each port, and for each unit of the SCSI adapter.
pub fn list(machine: &Handle) -> Result<String, Gone> {
    let places = machine.places().map_err(|machine::Gone| Gone)?;
    if places.is_empty() {
        return Ok(NO_PORTS.into());
    }
    let line = |(place, label): &(Place, Option<String>)| {
        let kind = match place {
            Place::Port(_) => "port",
            Place::Unit(_) => "unit",
            Place::Device(_) => "device",
        };
        format!("{kind} {place}  {}\n", label.as_deref().unwrap_or("empty"))
    };
    Ok(places.iter().map(line).collect())
}
