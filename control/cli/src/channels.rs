//! Ports of the virtio console, and what carries their bytes.

use std::sync::Arc;

use byte_stream::Input;
use machine::{Carry, ChannelPart, Keep, Machine};
use vm_spec::Channel;

use crate::{Failure, console::Console};

/// Of a channel that came late. When it goes, the last output is written first.
struct Late(Console);

impl Drop for Late {
    fn drop(&mut self) {
        self.0.drain();
    }
}

/// Opens them, in the order of the options.
pub fn open(channels: &[Channel]) -> Result<Vec<Console>, Failure> {
    let open_one = |channel: &Channel| {
        Console::open(&format!("--channel {}=", channel.name), &channel.carrier)
    };
    channels.iter().map(open_one).collect()
}

/// Opens one for a machine that runs already.
pub fn open_late(channel: &Channel) -> Result<(ChannelPart, Carry), Failure> {
    let carrier = Console::open(&format!("--channel {}=", channel.name), &channel.carrier)?;
    let part = part((channel, &carrier));
    let mut carrier = Late(carrier);
    let carry = move |input: Arc<dyn Input>| {
        carrier.0.start_channel(input).map_err(|failure| failure.line)?;
        Ok(Box::new(carrier) as Keep)
    };
    Ok((part, Box::new(carry)))
}

fn part((channel, carrier): (&Channel, &Console)) -> ChannelPart {
    ChannelPart {
        name: channel.name.clone(),
        output: carrier.output(),
        peer: carrier.is_always_there(),
    }
}

/// What the machine is built with.
pub fn parts(channels: &[Channel], carriers: &[Console]) -> Vec<ChannelPart> {
    channels.iter().zip(carriers).map(part).collect()
}

/// Begins to carry input to the machine.
pub fn start(carriers: &mut [Console], machine: &Machine) -> Result<(), Failure> {
    for (carrier, input) in carriers.iter_mut().zip(machine.channels()) {
        carrier.start_channel(input.clone())?;
    }
    Ok(())
}
