//! Devices that come while the machine is there.

use crate::{common::*, guests};
use byte_stream::{Input, Null, Output};
use machine::{ChannelPart, Keep, Machine, Place, Plug, PlugError, engines};
use std::sync::{
    Arc,
    mpsc::{Receiver, Sender, channel},
};
use vm_spec::VmSpec;

const PORTS: usize = 4;

fn with_ports(kind: engines::Kind) -> Machine {
    let engine = engines::open(kind).unwrap();
    let spec = VmSpec { ports: PORTS as u32, ..spec(kind) };
    let console = Arc::new(Console::default());
    Machine::build(&*engine, &spec, parts(elf(guests::COUNTS), &console)).unwrap()
}

fn plug(machine: &Machine, plug: Plug) -> Result<Place, PlugError> {
    machine.handle().plug(plug, String::new()).unwrap()
}

/// Says when it is dropped.
struct Ends(Sender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// A channel; of what carries it the receiver hears the device's input, and then the end.
fn port(name: &str, fails: bool) -> (Plug, Receiver<Arc<dyn Input>>, Receiver<()>) {
    let (inputs, input) = channel();
    let (ends, end) = channel();
    let ends = Ends(ends);
    let output: Arc<dyn Output> = Arc::new(Null);
    let part = ChannelPart { name: name.into(), output, peer: true };
    let carry = Box::new(move |input| {
        inputs.send(input).unwrap();
        if fails { Err("it carries nothing".into()) } else { Ok(Box::new(ends) as Keep) }
    });
    (Plug::Channel(part, carry), input, end)
}

#[test]
fn the_operator_has_what_came() {
    for kind in kinds() {
        let machine = with_ports(kind);
        let handle = machine.handle();
        assert!(handle.balloon_info().unwrap().is_none() && !handle.seat().has_keyboard());
        assert_eq!(handle.balloon(8 << 20), Ok(false));
        handle.resume().unwrap();
        let seat = handle.seat().clone();
        assert_eq!(plug(&machine, Plug::Balloon).unwrap(), Place::Port(0));
        assert_eq!(plug(&machine, Plug::Keyboard).unwrap(), Place::Port(1));
        assert!(seat.has_keyboard(), "who had the seat before has it, too");
        assert_eq!(plug(&machine, Plug::Tablet).unwrap(), Place::Port(2));
        assert!(seat.is_absolute());
        assert!(matches!(plug(&machine, Plug::Balloon), Err(PlugError::Balloon)));
        assert_eq!(handle.balloon(8 << 20), Ok(true));
        handle.reset().unwrap();
        assert_eq!(handle.balloon_info().unwrap().unwrap().target, 8 << 20);
    }
}

#[test]
fn what_is_refused_leaves_nothing() {
    for kind in kinds() {
        let machine = with_ports(kind);
        let (fails, input, end) = port("a", true);
        assert!(matches!(plug(&machine, fails), Err(PlugError::Carrier(_))));
        assert!(input.recv().is_ok() && end.recv().is_ok());
        let (good, input, end) = port("a", false);
        assert_eq!(plug(&machine, good).unwrap(), Place::Port(0), "name and port are free");
        let input = input.recv().unwrap();
        assert_eq!(input.receive(b"for the guest"), 13);
        let (twice, never, _) = port("a", false);
        assert!(matches!(plug(&machine, twice), Err(PlugError::Channel)));
        assert!(never.recv().is_err(), "nothing was carried");
        assert!(end.try_recv().is_err());
        for name in ["b", "c", "d"] {
            plug(&machine, port(name, false).0).unwrap();
        }
        assert!(matches!(plug(&machine, Plug::Balloon), Err(PlugError::NoPort)));
        assert!(matches!(plug(&machine, Plug::Keyboard), Err(PlugError::NoPort)));
        let handle = machine.handle();
        assert!(handle.balloon_info().unwrap().is_none() && !handle.seat().has_keyboard());
        handle.quit().unwrap();
        super::common::end(&machine);
        assert!(end.recv().is_ok(), "the carrier ends with the machine");
    }
}

#[test]
fn a_saved_machine_goes_on_in_one_with_the_same_devices() {
    for kind in kinds() {
        let all = |machine: &Machine| {
            for device in [Plug::Balloon, Plug::Keyboard, Plug::Tablet] {
                plug(machine, device).unwrap();
            }
            let (console, input, end) = port("a", false);
            plug(machine, console).unwrap();
            (input.recv().unwrap(), end)
        };
        let source = with_ports(kind);
        let (input, _end) = all(&source);
        input.receive(&[7; 1000]);
        assert_eq!(source.handle().balloon(9 << 20), Ok(true));
        let parts = source.handle().save().unwrap().unwrap();

        let target = with_ports(kind);
        assert!(target.handle().restore(parts.clone()).unwrap().is_err(), "they are not there");
        let (input, _end) = all(&target);
        target.handle().restore(parts.clone()).unwrap().unwrap();
        assert_eq!(target.handle().balloon_info().unwrap().unwrap().target, 7 << 20);
        assert_eq!(input.receive(&[7; 64 << 10]), (64 << 10) - 1000, "what waited waits");
        drop(source);
        let other = with_ports(kind);
        for device in [Plug::Balloon, Plug::Tablet, Plug::Keyboard] {
            plug(&other, device).unwrap();
        }
        plug(&other, port("a", false).0).unwrap();
        let error = other.handle().restore(parts).unwrap().unwrap_err();
        assert!(error.contains("another function"), "{error}");
    }
}
