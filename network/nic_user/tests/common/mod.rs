//! A guest for tests: smoltcp's stack on a card of memory.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod wire;

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nic::{Checksum, Mac, Meta, Network, NoRoom, Offloads, Port, Taken};
use nic_user::{Config, UserNet};
use smoltcp::{
    iface::{Interface, PollResult, SocketHandle, SocketSet},
    phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium},
    socket::{tcp, udp},
    time::Instant as Time,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr},
};

pub const CARD: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Queues {
    to_net: VecDeque<(Vec<u8>, Meta)>,
    to_guest: VecDeque<(Vec<u8>, Meta)>,
    refused: bool,
}

/// A card whose rings are queues.
pub struct Card {
    queues: Mutex<Queues>,
    room: usize,
    offloads: Offloads,
    /// Every so manieth of the longer frames is lost, in each direction; 0 is none.
    pub loss: usize,
    count: Mutex<[usize; 2]>,
    net: OnceLock<Arc<UserNet>>,
}

impl Card {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loses(&self, direction: usize, len: usize) -> bool {
        let count = &mut self.count.lock().unwrap()[direction];
        *count += usize::from(len > 500);
        self.loss > 0 && len > 500 && count.is_multiple_of(self.loss)
    }

    pub fn send(&self, frame: Vec<u8>, meta: Meta) {
        if !self.loses(0, frame.len()) {
            self.queues().to_net.push_back((frame, meta));
        }
        if let Some(net) = self.net.get() {
            net.wake();
        }
    }

    pub fn receive(&self) -> Option<(Vec<u8>, Meta)> {
        let mut queues = self.queues();
        let frame = queues.to_guest.pop_front();
        let again = std::mem::take(&mut queues.refused);
        drop(queues);
        if let (true, Some(net)) = (again, self.net.get()) {
            net.wake();
        }
        frame
    }

    /// Whether the network has taken everything.
    pub fn is_drained(&self) -> bool {
        self.queues().to_net.is_empty()
    }
}

impl Port for Card {
    fn mac(&self) -> Mac {
        CARD
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn take(&self, buffer: &mut [u8]) -> Option<Taken> {
        let (frame, meta) = self.queues().to_net.pop_front()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Some(Taken { len: frame.len(), meta })
    }

    fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let mut queues = self.queues();
        if queues.to_guest.len() >= self.room {
            queues.refused = true;
            return Err(NoRoom);
        }
        assert!(self.offloads.checksum || meta.checksum == Checksum::Unknown);
        assert!(self.offloads.tso4 || meta.segmentation.is_none());
        let frame = parts.concat();
        assert!(meta.segmentation.is_some() || frame.len() <= 1514, "{}", frame.len());
        if !self.loses(1, frame.len()) {
            queues.to_guest.push_back((frame, *meta));
        }
        Ok(())
    }

    fn flush(&self) {}

    fn set_link(&self, _: bool) {}
}

/// smoltcp's view of the card.
struct Phy(Arc<Card>);

impl phy::Device for Phy {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx;

    fn receive(&mut self, _: Time) -> Option<(Rx, Tx)> {
        let (frame, _) = self.0.receive()?;
        Some((Rx(frame), Tx(self.0.clone())))
    }

    fn transmit(&mut self, _: Time) -> Option<Tx> {
        Some(Tx(self.0.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        if self.0.offloads.checksum {
            caps.checksum = ChecksumCapabilities::ignored();
            caps.checksum.ipv4 = phy::Checksum::Both;
            caps.checksum.icmpv4 = phy::Checksum::Both;
            caps.checksum.icmpv6 = phy::Checksum::Both;
        }
        caps
    }
}

struct Rx(Vec<u8>);
struct Tx(Arc<Card>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Tx {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        let checksum =
            if self.0.offloads.checksum { Checksum::Verified } else { Checksum::Unknown };
        self.0.send(frame, Meta { checksum, segmentation: None });
        result
    }
}

pub struct Guest {
    pub card: Arc<Card>,
    pub net: Arc<UserNet>,
    phy: Phy,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    next_port: u16,
    start: Instant,
}

/// What is special about a guest's card.
#[derive(Clone, Copy)]
pub struct Options {
    pub room: usize,
    pub offloads: bool,
    pub loss: usize,
    /// Asks routers for an address.
    pub slaac: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { room: 256, offloads: false, loss: 0, slaac: false }
    }
}

pub fn config() -> Config {
    Config { host_loopback: true, ..Config::default() }
}

impl Guest {
    pub fn new(config: Config) -> Self {
        Self::with(UserNet::start(config, 0).unwrap(), Options::default())
    }

    pub fn with(net: Arc<UserNet>, options: Options) -> Self {
        let card = plug(net.clone(), options);
        let mut phy = Phy(card.clone());
        let hardware = HardwareAddress::Ethernet(EthernetAddress(CARD.0));
        let mut config = smoltcp::iface::Config::new(hardware);
        config.slaac = options.slaac;
        let mut iface = Interface::new(config, &mut phy, Time::ZERO);
        iface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(IpAddress::from(ADDRESS), 24)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { card, net, phy, iface, sockets, next_port: 40_000, start: Instant::now() }
    }

    pub fn poll(&mut self) {
        let now = Time::from_micros(self.start.elapsed().as_micros() as i64);
        if self.iface.poll(now, &mut self.phy, &mut self.sockets) == PollResult::None {
            thread::sleep(Duration::from_micros(300));
        }
    }

    /// Polls until `done` gives something.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.poll();
            if let Some(result) = done(self) {
                return result;
            }
            assert!(start.elapsed() < PATIENCE, "{what} takes too long");
        }
    }

    pub fn tcp(&mut self, buffer: usize) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
        self.sockets.add(tcp::Socket::new(ring(), ring()))
    }

    pub fn connect(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let handle = self.tcp(buffer);
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.iface.context(), to, self.next_port).unwrap();
        handle
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn established(&mut self, handle: SocketHandle) {
        self.until("connecting", |g| {
            let state = g.socket(handle).state();
            assert_ne!(state, tcp::State::Closed, "refused");
            (state == tcp::State::Established).then_some(())
        });
    }

    /// Sends everything, then says that there is no more.
    pub fn send_all(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut at = 0;
        self.until("sending", |g| {
            let socket = g.socket(handle);
            if socket.can_send() {
                at += socket.send_slice(&bytes[at..]).unwrap();
            }
            (at == bytes.len()).then_some(())
        });
        self.socket(handle).close();
    }

    /// Everything until the peer ends.
    pub fn read_all(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        self.until("reading", |g| {
            let socket = g.socket(handle);
            while socket.can_recv() {
                let n = socket.recv_slice(&mut buffer).unwrap();
                all.extend(&buffer[..n]);
            }
            (!socket.may_recv()).then_some(())
        });
        all
    }

    pub fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 1 << 17]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub fn udp_send(&mut self, handle: SocketHandle, to: SocketAddr, bytes: &[u8]) {
        self.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(bytes, to).unwrap();
        self.poll();
    }

    /// The next datagram and its sender.
    pub fn udp_receive(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        self.until("a datagram", |g| {
            let socket = g.sockets.get_mut::<udp::Socket<'_>>(handle);
            let (bytes, meta) = socket.recv().ok()?;
            let from = SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port);
            Some((bytes.to_vec(), from))
        })
    }
}

/// A card that is plugged into the network.
pub fn plug(net: Arc<UserNet>, options: Options) -> Arc<Card> {
    let on = options.offloads;
    let card = Arc::new(Card {
        queues: Mutex::default(),
        room: options.room,
        offloads: Offloads { checksum: on, tso4: on, tso6: on },
        loss: options.loss,
        count: Mutex::default(),
        net: OnceLock::new(),
    });
    let weak: std::sync::Weak<Card> = Arc::downgrade(&card);
    net.attach(weak);
    let _ = card.net.set(net);
    card
}

/// Bytes that are not all alike.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Serves every connection by `serve`, each on its thread; the guest reaches it at the gateway.
pub fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    (GATEWAY, port).into()
}

/// Sends back what comes, until its end.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if stream.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
        }
    }
}
