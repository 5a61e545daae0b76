//! A network that gives the guest each of its frames back.

use super::bed::{Shape, Side, start};
use nic::{FRAME_MAX, Mac, Network, Port};
use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};
use virtio::fake::Board;
use virtio_net::VirtioNet;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

struct Mirror {
    port: OnceLock<Weak<dyn Port>>,
    wake: Mutex<Sender<()>>,
}

impl Network for Mirror {
    fn attach(&self, port: Weak<dyn Port>) {
        let _ = self.port.set(port);
    }
    fn wake(&self) {
        // At the end its thread has gone.
        let _ = self.wake.lock().unwrap_or_else(PoisonError::into_inner).send(());
    }
    fn pause(&self) {}
    fn resume(&self) {}
}

/// Frames and nanoseconds.
type Carried = (u16, u64);

fn serve(mirror: &Weak<Mirror>, woken: &Receiver<()>, tell: &Sender<Carried>) {
    let mut buffer = vec![0; FRAME_MAX];
    while woken.recv().is_ok() {
        let port = mirror.upgrade().and_then(|mirror| mirror.port.get()?.upgrade());
        let Some(port) = port else { return };
        let (start, mut count) = (Instant::now(), 0);
        while let Some(taken) = port.take(&mut buffer) {
            if port.give(&taken.meta, &[&buffer[..taken.len]]).is_ok() {
                count += 1;
            }
        }
        port.flush();
        let elapsed = start.elapsed().as_nanos() as u64;
        if count > 0 && tell.send((count, elapsed)).is_err() {
            return;
        }
    }
}

pub(super) struct Loop {
    board: Board,
    sides: [Side; 2],
    told: Receiver<Carried>,
}

impl Loop {
    pub(super) fn new() -> Self {
        let ((wake, woken), (tell, told)) = (channel(), channel());
        let mirror = Arc::new(Mirror { port: OnceLock::new(), wake: wake.into() });
        let of_thread = Arc::downgrade(&mirror);
        thread::spawn(move || serve(&of_thread, &woken, &tell));
        let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
        let card = VirtioNet::new(virtio_net::Config { mac, mtu: 1500, pairs: 1 }, mirror);
        let board = Board::new(card);
        start(&board, virtio_net::feature::MAC | virtio_net::feature::MRG_RXBUF);
        let sides = [RECEIVE, TRANSMIT].map(|queue| Side::new(&board.memory, queue));
        Self { board, sides, told }
    }

    /// Nanoseconds of a frame, of so many at once.
    pub(super) fn batch(&mut self, count: u16) -> f64 {
        let [wanted, sent] = &mut self.sides;
        wanted.offer(Shape::Wanted, count);
        sent.offer(Shape::Sent, count);
        self.board.ring(RECEIVE);
        self.board.ring(TRANSMIT);
        let (mut elapsed, mut frames) = (0, 0);
        while frames < count {
            let (done, ns) = self.told.recv().expect("a thread");
            elapsed += ns;
            frames += done;
        }
        self.board.sink.take_messages();
        elapsed as f64 / f64::from(count)
    }

    /// Everything was taken and given.
    #[cfg(test)]
    pub(super) fn came_back(&self) -> bool {
        self.sides.iter().all(Side::done)
    }
}
