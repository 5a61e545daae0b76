//! Ports of the virtio console, and what carries their bytes.

use machine::{ChannelPart, Machine};
use vm_spec::Channel;

use crate::{Failure, console::Console};

/// Opens them, in the order of the options.
pub fn open(channels: &[Channel]) -> Result<Vec<Console>, Failure> {
    let open_one = |channel: &Channel| {
        Console::open(&format!("--channel {}=", channel.name), &channel.carrier)
    };
    channels.iter().map(open_one).collect()
}

/// What the machine is built with.
pub fn parts(channels: &[Channel], carriers: &[Console]) -> Vec<ChannelPart> {
    let part = |(channel, carrier): (&Channel, &Console)| ChannelPart {
        name: channel.name.clone(),
        output: carrier.output(),
        peer: carrier.is_always_there(),
    };
    channels.iter().zip(carriers).map(part).collect()
}

/// Begins to carry input to the machine.
pub fn start(carriers: &mut [Console], machine: &Machine) -> Result<(), Failure> {
    for (carrier, input) in carriers.iter_mut().zip(machine.channels()) {
        carrier.start_channel(input.clone())?;
    }
    Ok(())
}
