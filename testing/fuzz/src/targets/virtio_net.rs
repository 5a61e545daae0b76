//! Frames, from the driver's side and from the network's, and commands, at a card with several pairs
//! of queues.

use crate::{
    input::Input,
    rig::{Model, Request, Rig, drive},
};
use nic::{Checksum, FRAME_MAX, Mac, Meta, Network, Port, SegmentKind, Segmentation};
use std::sync::{Arc, Mutex, Weak};
use virtio_net::{Config, RECEIVE, TRANSMIT, VirtioNet};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const PAIRS: u16 = 3;

/// A network that does nothing by itself.
#[derive(Default)]
pub(super) struct Wire(Mutex<Option<Weak<dyn Port>>>);

impl Network for Wire {
    fn attach(&self, port: Weak<dyn Port>) {
        *self.0.lock().expect("no panic") = Some(port);
    }
    fn wake(&self) {}
    fn pause(&self) {}
    fn resume(&self) {}
}

impl Wire {
    fn port(&self) -> Option<Arc<dyn Port>> {
        self.0.lock().expect("no panic").as_ref().and_then(Weak::upgrade)
    }

    /// What a network may do with a card.
    pub(super) fn act(&self, input: &mut Input<'_>) {
        let Some(port) = self.port() else { return };
        match input.u8() & 7 {
            0..=2 => {
                let mut bytes = vec![0; FRAME_MAX];
                while let Some(taken) = port.take(&mut bytes) {
                    assert!(taken.len <= FRAME_MAX, "a frame of {} bytes", taken.len);
                }
                port.flush();
            }
            3..=5 => {
                let meta = meta(input, port.offloads().checksum);
                let mut frame = frame(input, port.mac());
                if input.u8() > 0xf0 {
                    frame.resize(input.below(FRAME_MAX as u64 + 1) as usize, 1);
                }
                let at = input.below(frame.len() as u64 + 1) as usize;
                let (head, rest) = frame.split_at(at);
                let _ = port.give(&meta, &[head, rest]);
                if input.flag() {
                    port.flush();
                }
            }
            6 => port.flush(),
            _ => port.set_link(input.flag()),
        }
    }
}

/// What the contract allows to a network: offsets lie within the frame's headers.
fn meta(input: &mut Input<'_>, offloads: bool) -> Meta {
    if !offloads || input.flag() {
        return Meta::default();
    }
    let kind = if input.flag() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
    let large = Segmentation { kind, size: 1400, header_len: 54 };
    Meta {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        segmentation: input.flag().then_some(large),
    }
}

/// An Ethernet frame to somebody, with something in it.
pub(super) fn frame(input: &mut Input<'_>, own: Mac) -> Vec<u8> {
    let mut frame = match input.u8() & 3 {
        0 => [0xff; 6].to_vec(),
        1 => vec![1, 0, 0x5e, 0, 0, input.u8()],
        2 => own.0.to_vec(),
        _ => input.bytes(6).to_vec(),
    };
    frame.extend([2, 0, 0, 0, 0, 1]);
    if input.u8() & 7 == 0 {
        frame.extend([0x81, 0]);
        frame.extend(input.u16().to_be_bytes());
    }
    match input.u8() & 3 {
        0 => {
            frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, input.pick(&[6, 17, 1]), 0, 0]);
            frame.extend([10, 0, 2, 2, 10, 0, 2, 15]);
        }
        1 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, input.pick(&[6, 17, 58, 0]), 64]);
            frame.extend([0xfe; 32]);
        }
        _ => {}
    }
    frame.extend(input.some(64));
    frame
}

impl Model for Arc<Wire> {
    /// virtio 1.2, 5.1.6.
    fn request(&self, input: &mut Input<'_>) -> Request {
        let pair = input.below(PAIRS.into()) as u16;
        match input.u8() & 7 {
            0 | 1 => {
                let wanted = input.pick(&[1526, 0x8000, 2048, 12, 64, 0x4000]);
                Request { queue: 2 * pair + RECEIVE, given: Vec::new(), wanted }
            }
            2..=4 => {
                // 5.1.6.2: flags, kind, sizes, buffers.
                let mut given = vec![input.u8() & 7, input.pick(&[0, 1, 4, 0x81, 3])];
                for _ in 0..4 {
                    given.extend((input.number() as u16).to_le_bytes());
                }
                given.extend([0; 2]);
                if input.u8() < 0x30 {
                    given.fill(0);
                }
                given.extend(frame(input, MAC));
                Request { queue: 2 * pair + TRANSMIT, given, wanted: 0 }
            }
            _ => Request { queue: 2 * PAIRS, given: command(input), wanted: 1 },
        }
    }

    fn host(&self, input: &mut Input<'_>) {
        self.act(input);
    }
}

/// 5.1.6.5: a class, a command, what goes with it.
fn command(input: &mut Input<'_>) -> Vec<u8> {
    let mut given = vec![input.below(6) as u8, input.below(6) as u8];
    if given[0] == 1 && input.flag() {
        for _ in 0..2 {
            let count = input.below(4) as usize;
            let told = if input.u8() < 0xf0 { count as u32 } else { input.number() as u32 };
            given.extend(told.to_le_bytes());
            given.extend(input.bytes(6 * count));
        }
    } else {
        given.extend(input.some(12));
    }
    given
}

pub(super) fn run(data: &[u8]) {
    drive(data, || {
        let wire = Arc::new(Wire::default());
        let config = Config { mac: MAC, mtu: 1500, pairs: PAIRS };
        (Rig::new(VirtioNet::new(config, wire.clone())), wire)
    });
}
