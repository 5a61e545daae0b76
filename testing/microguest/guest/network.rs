//! Traffic with a virtio card: pings of the router at 10.0.2.2, several under way at a time. Each is
//! answered once, in its turn, with what was sent: nobody here asks again for what was lost.

use crate::{
    hardware::{claim_page, load, store},
    numbers::same,
    pattern,
    virtio::{Buffer, Device, Interrupts, Ring},
};

pub const TYPE: u16 = 1;
/// VIRTIO_NET_F_MAC (5.1.3).
const MAC: u32 = 1 << 5;
/// struct virtio_net_hdr (5.1.6).
const HEADER: u64 = 12;
const ROOM: u64 = 2048;
const RECEIVE: u16 = 8;
const SEND: u16 = 4;
/// Pings under way.
const WINDOW: u32 = 3;

const OURS: [u8; 4] = [10, 0, 2, 15];
const ROUTER: [u8; 4] = [10, 0, 2, 2];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
const IDENTIFIER: [u8; 2] = [0x5a, 0x7a];

/// Bytes of a ping's payload, which differ from one to the next.
fn length(number: u32) -> u32 {
    64 + (number % 16) * 72
}

type Head = [u8; 42];

pub struct Network {
    device: Device,
    receive: Ring,
    send: Ring,
    received: [u64; RECEIVE as usize],
    to_send: [(u64, bool); SEND as usize],
    mac: [u8; 6],
    router: Option<[u8; 6]>,
    asked: bool,
    begun: u32,
    pub done: u32,
    total: u32,
    /// Pings that may be sent.
    pub allowed: u32,
}

impl Network {
    pub fn start(total: u32, interrupts: Interrupts, vector: u8, cpu: u8) -> Option<Self> {
        let device = Device::take(TYPE, MAC, interrupts, vector, cpu)?;
        let (receive, send) = (device.queue(0), device.queue(1));
        device.ready();
        let mac = load(device.config);
        let mut this = Self {
            device,
            receive,
            send,
            received: core::array::from_fn(|_| claim_page()),
            to_send: core::array::from_fn(|_| (claim_page(), false)),
            mac,
            router: None,
            asked: false,
            begun: 0,
            done: 0,
            total,
            allowed: 0,
        };
        (0..RECEIVE).for_each(|id| this.give_buffer(id));
        Some(this)
    }

    pub fn is_done(&self) -> bool {
        self.done == self.total
    }

    fn give_buffer(&mut self, id: u16) {
        let at = self.received[usize::from(id)];
        self.receive.submit(id, &[Buffer { at, length: ROOM as u32, written: true }]);
    }

    pub fn step(&mut self) {
        if self.device.interrupted() {
            while let Some((id, _)) = self.send.completed() {
                let slot = &mut self.to_send[usize::from(id)].1;
                assert!(core::mem::take(slot), "a frame is sent twice");
            }
            while let Some((id, length)) = self.receive.completed() {
                self.take_frame(self.received[usize::from(id)] + HEADER, length);
                self.give_buffer(id);
            }
        }
        self.device.end();
        if !self.asked {
            self.asked = self.send_arp(1, [0xff; 6], ROUTER);
        }
        while let Some(router) = self.router
            && self.allowed > 0
            && self.begun < self.total
            && self.begun - self.done < WINDOW
            && self.send_ping(router)
        {
            self.begun += 1;
            self.allowed -= 1;
        }
    }

    /// Where a frame may be written.
    fn slot(&self) -> Option<(u16, u64)> {
        let free = (0..).zip(self.to_send).find(|(_, (_, busy))| !busy);
        free.map(|(id, (page, _))| (id, page + HEADER))
    }

    fn send_frame(&mut self, id: u16, length: u64) {
        let slot = &mut self.to_send[usize::from(id)];
        slot.1 = true;
        let at = slot.0;
        store(at, [0u8; HEADER as usize]);
        let length = (HEADER + length) as u32;
        self.send.submit(id, &[Buffer { at, length, written: false }]);
    }

    /// RFC 826. False if all slots are busy.
    fn send_arp(&mut self, operation: u8, to: [u8; 6], address: [u8; 4]) -> bool {
        let Some((id, at)) = self.slot() else { return false };
        let mut head: Head = [0; 42];
        head[..6].copy_from_slice(&to);
        head[6..12].copy_from_slice(&self.mac);
        head[12..14].copy_from_slice(&ARP);
        head[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
        head[22..28].copy_from_slice(&self.mac);
        head[28..32].copy_from_slice(&OURS);
        head[32..38].copy_from_slice(&to);
        head[38..].copy_from_slice(&address);
        store(at, head);
        self.send_frame(id, head.len() as u64);
        true
    }

    /// RFC 791 and RFC 792.
    fn send_ping(&mut self, router: [u8; 6]) -> bool {
        let Some((id, at)) = self.slot() else { return false };
        let (number, payload) = (self.begun, length(self.begun));
        let mut head: Head = [0; 42];
        head[..6].copy_from_slice(&router);
        head[6..12].copy_from_slice(&self.mac);
        head[12..14].copy_from_slice(&IPV4);
        head[14..16].copy_from_slice(&[0x45, 0]);
        head[16..18].copy_from_slice(&(28 + payload as u16).to_be_bytes());
        head[18..20].copy_from_slice(&(number as u16).to_be_bytes());
        head[22..24].copy_from_slice(&[64, 1]);
        head[26..30].copy_from_slice(&OURS);
        head[30..34].copy_from_slice(&ROUTER);
        let header = head[14..34].chunks_exact(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1]));
        let sum = !fold(header.sum());
        head[24..26].copy_from_slice(&sum.to_be_bytes());
        head[34] = 8;
        head[38..40].copy_from_slice(&IDENTIFIER);
        head[40..42].copy_from_slice(&(number as u16).to_be_bytes());
        store(at, head);
        pattern::fill(at + 42, number, 0, payload);
        let sum = !sum_of(at + 34, 8 + payload);
        store(at + 36, sum.to_be_bytes());
        self.send_frame(id, 42 + u64::from(payload));
        true
    }

    fn take_frame(&mut self, at: u64, length: u32) {
        let Some(length) = length.checked_sub(HEADER as u32) else {
            panic!("a frame without header")
        };
        let head: Head = load(at);
        match [head[12], head[13]] {
            ARP if head[20..22] == [0, 1] && head[38..42] == OURS => {
                let to = core::array::from_fn(|i| head[22 + i]);
                let address = core::array::from_fn(|i| head[28 + i]);
                assert!(self.send_arp(2, to, address), "no slot for an answer");
            }
            ARP if head[20..22] == [0, 2] && head[28..32] == ROUTER => {
                self.router = Some(core::array::from_fn(|i| head[22 + i]));
            }
            IPV4 if head[23] == 1 && head[34] == 0 && head[38..40] == IDENTIFIER => {
                self.take_answer(&head, at, length);
            }
            _ => {}
        }
    }

    fn take_answer(&mut self, head: &Head, at: u64, size: u32) {
        let number = self.done;
        assert!(self.begun > number, "an answer that nobody asked for");
        let got = u16::from_be_bytes([head[40], head[41]]);
        same("answer", number, got, number as u16);
        same("bytes of answer", number, size, 42 + length(number));
        same("sum of the header of answer", number, sum_of(at + 14, 20), 0xffffu16);
        same("sum of answer", number, sum_of(at + 34, size - 34), 0xffffu16);
        pattern::check("packet", at + 42, number, 0, length(number));
        self.done += 1;
    }
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// RFC 1071, of an even number of bytes.
fn sum_of(at: u64, length: u32) -> u16 {
    let word = |address| u32::from(load::<u16>(address).swap_bytes());
    fold((at..at + u64::from(length)).step_by(2).map(word).sum())
}
