//! A network with one other station on it, which lives on while the guest moves: it answers pings
//! and sends back what comes over TCP to port 7. Its time stands still with the machine's, so
//! that a connection outlives any pause.

use device::Device;
use nic::{Meta, Network, Port};
use saved_state::{Error, Reader, Writer};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, Checksum, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant as Time,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, Weak},
    thread,
    time::{Duration, Instant},
};

const BUFFER: usize = 256 << 10;

#[derive(Default)]
struct Orders {
    port: Option<Weak<dyn Port>>,
    paused: bool,
    parked: bool,
    woken: bool,
}

/// The network, and the device that is paused with the machine.
#[derive(Default)]
pub struct Peer {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// Frames of the guest, and bytes that came back to it.
    pub counted: Mutex<(u64, u64)>,
}

impl Peer {
    /// Its thread ends when nobody else has it.
    pub fn start() -> Arc<Self> {
        let peer = Arc::new(Self::default());
        let weak = Arc::downgrade(&peer);
        thread::spawn(move || Station::new().serve(&weak));
        peer
    }

    /// The port, once the machine runs, and whether to look at it at once.
    fn turn(&self) -> Option<Arc<dyn Port>> {
        let mut orders = self.orders.lock().unwrap();
        while orders.paused {
            orders.parked = true;
            self.changed.notify_all();
            orders = self.changed.wait(orders).unwrap();
        }
        orders.parked = false;
        if !std::mem::take(&mut orders.woken) {
            orders = self.changed.wait_timeout(orders, Duration::from_millis(2)).unwrap().0;
            if orders.paused {
                return None;
            }
        }
        orders.port.as_ref().and_then(Weak::upgrade)
    }
}

impl Network for Peer {
    fn attach(&self, port: Weak<dyn Port>) {
        self.orders.lock().unwrap().port = Some(port);
    }

    fn wake(&self) {
        self.orders.lock().unwrap().woken = true;
        self.changed.notify_all();
    }

    fn pause(&self) {
        let mut orders = self.orders.lock().unwrap();
        orders.paused = true;
        self.changed.notify_all();
        while !orders.parked {
            orders = self.changed.wait(orders).unwrap();
        }
    }

    fn resume(&self) {
        self.orders.lock().unwrap().paused = false;
        self.changed.notify_all();
    }
}

impl Device for Peer {
    fn name(&self) -> String {
        "peer".into()
    }

    fn reset(&self) {}

    fn pause(&self) {
        Network::pause(self);
    }

    fn resume(&self) {
        Network::resume(self);
    }

    /// What it knows stays in this process.
    fn save(&self, _: &mut Writer) {}

    fn restore(&self, _: &mut Reader) -> Result<(), Error> {
        Ok(())
    }
}

/// Frames between the card and smoltcp.
#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    to_send: VecDeque<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Time) -> Option<(Rx, Tx<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Rx(frame), Tx(&mut self.to_send)))
    }

    fn transmit(&mut self, _: Time) -> Option<Tx<'_>> {
        Some(Tx(&mut self.to_send))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        // The guest leaves sums to its card; what it is given has them.
        caps.checksum.tcp = Checksum::Tx;
        caps
    }
}

struct Station {
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    echo: SocketHandle,
    /// Not counting pauses.
    elapsed: Duration,
}

impl Station {
    fn new() -> Self {
        let mut wire = Wire::default();
        let hardware = EthernetAddress([0x52, 0x54, 0, 0, 0, 1]);
        let config = Config::new(HardwareAddress::Ethernet(hardware));
        let mut iface = Interface::new(config, &mut wire, Time::ZERO);
        iface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(IpAddress::v4(10, 9, 0, 1), 24)).unwrap();
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut sockets = SocketSet::new(Vec::new());
        let echo = sockets.add(tcp::Socket::new(buffer(), buffer()));
        sockets.get_mut::<tcp::Socket<'_>>(echo).listen(7).unwrap();
        Self { wire, iface, sockets, echo, elapsed: Duration::ZERO }
    }

    fn serve(mut self, peer: &Weak<Peer>) {
        let mut buffer = vec![0; nic::FRAME_MAX];
        while let Some(peer) = peer.upgrade() {
            let Some(port) = peer.turn() else { continue };
            let start = Instant::now();
            while let Some(taken) = port.take(&mut buffer) {
                self.wire.received.push_back(buffer[..taken.len].to_vec());
                peer.counted.lock().unwrap().0 += 1;
            }
            let now = Time::from_micros(self.elapsed.as_micros() as i64);
            self.iface.poll(now, &mut self.wire, &mut self.sockets);
            peer.counted.lock().unwrap().1 += self.echo();
            self.iface.poll(now, &mut self.wire, &mut self.sockets);
            while let Some(frame) = self.wire.to_send.pop_front() {
                if port.give(&Meta::default(), &[&frame]).is_err() {
                    self.wire.to_send.push_front(frame);
                    break;
                }
            }
            port.flush();
            // At least what a wait takes, so that its timers go on.
            self.elapsed += start.elapsed().max(Duration::from_millis(1));
        }
    }

    /// Sends back what there is room for, and ends after the guest does.
    fn echo(&mut self) -> u64 {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.echo);
        let room = socket.send_capacity() - socket.send_queue();
        let mut bytes = vec![0; room.min(BUFFER)];
        let count = socket.recv_slice(&mut bytes).unwrap_or(0);
        if count > 0 {
            assert_eq!(socket.send_slice(&bytes[..count]), Ok(count));
        }
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
            socket.close();
        }
        count as u64
    }
}
