//! Devices that the operator adds while the machine runs.

use machine::{Handle, Plug, PlugError};

use crate::{Failure, disks, monitor::Gone, nets};

/// Opens what the words name, and puts it behind a free port; what came of it, as a line.
pub fn add(machine: &Handle, kind: &str, option: &str) -> Result<String, Gone> {
    let ports = machine.ports().map_err(|machine::Gone| Gone)?;
    if ports.is_empty() {
        return Ok("the machine has no ports; start it with --ports N\n".into());
    }
    let plug = match open(kind, option) {
        Ok(plug) => plug,
        Err(failure) => return Ok(format!("{}\n", failure.line)),
    };
    let label = format!("{kind} {option}");
    let plugged = machine.plug(plug, label.trim().into()).map_err(|machine::Gone| Gone)?;
    Ok(match plugged {
        Ok(port) => format!("behind port {port}\n"),
        Err(error @ PlugError::NoPort) => format!("{error}; remove a device first\n"),
        Err(error @ (PlugError::Bus | PlugError::Model)) => format!("{error}\n"),
        Err(error) => format!("{error}; lower the load of this host and try again\n"),
    })
}

fn open(kind: &str, option: &str) -> Result<Plug, Failure> {
    let refused = |error: vm_spec::SpecError| Failure::usage(error.to_string());
    let nothing = || Failure::usage(format!("device add {kind}: give disk, net or rng"));
    match kind {
        "disk" => {
            let disk = option.parse().map_err(refused)?;
            let opened = disks::open(&[disk], None)?.pop();
            opened.map(Plug::Disk).ok_or_else(nothing)
        }
        "net" => {
            let net = option.parse().map_err(refused)?;
            let opened = nets::open(&net)?.pop();
            let why = || {
                Failure::usage(format!("device add net {option}: this is no network; give user"))
            };
            opened.map(Plug::Network).ok_or_else(why)
        }
        "rng" => disks::entropy().map(Plug::Entropy),
        _ => Err(nothing()),
    }
}

/// Asks the guest to let go; what came of it, as a line.
pub fn remove(machine: &Handle, port: usize) -> Result<String, Gone> {
    let asked = machine.unplug(port).map_err(|machine::Gone| Gone)?;
    Ok(if asked {
        "asked; `device list` shows when the guest has let go, which takes it some seconds\n".into()
    } else {
        format!("nothing is behind port {port}\n")
    })
}

/// A line for each port.
pub fn list(machine: &Handle) -> Result<String, Gone> {
    let ports = machine.ports().map_err(|machine::Gone| Gone)?;
    if ports.is_empty() {
        return Ok("the machine has no ports; start it with --ports N\n".into());
    }
    let line = |(number, label): (usize, &Option<String>)| {
        format!("port {number}  {}\n", label.as_deref().unwrap_or("empty"))
    };
    Ok(ports.iter().enumerate().map(line).collect())
}
