//! A device for the tests of the transport, on its board.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc::Sender,
    },
    time::Duration,
};
pub use virtio::fake::*;
use virtio::{GuestError, Handle, Queue, Served, VirtioDevice, fake};

/// Queue 0 sends back what it is given, queue 1 gives what [`Echo::produce`] was told.
#[derive(Default)]
pub struct Echo {
    pub handle: Mutex<Option<Handle>>,
    pub features: AtomicU64,
    pub activated: AtomicUsize,
    pub resets: AtomicUsize,
    pub config: Mutex<[u8; 8]>,
    waiting: Mutex<Vec<u8>>,
    /// Requests of queue 0 take long: who waits is told of each that has begun.
    pub slow: Mutex<Option<Sender<()>>>,
}

impl Echo {
    pub fn produce(&self, byte: u8) {
        self.waiting.lock().unwrap().push(byte);
        self.handle.lock().unwrap().as_ref().unwrap().kick(1);
    }
}

impl VirtioDevice for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn device_type(&self) -> u16 {
        0x3f
    }
    fn class(&self) -> u32 {
        0xff_00_00
    }
    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![SIZE, SIZE]
    }
    fn threads(&self) -> usize {
        2
    }
    fn attach(&self, handle: Handle) {
        *self.handle.lock().unwrap() = Some(handle);
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        for (i, byte) in (offset as usize..).zip(data) {
            *byte = config.get(i).copied().unwrap_or(0);
        }
    }
    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        for (i, byte) in (offset as usize..).zip(data) {
            if let Some(to) = config.get_mut(i) {
                *to = *byte;
            }
        }
    }
    fn activate(&self, features: u64) {
        self.features.store(features, SeqCst);
        self.activated.fetch_add(1, SeqCst);
    }
    fn reset(&self) {
        self.resets.fetch_add(1, SeqCst);
    }
    fn serve(&self, index: u16, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        if index == 1 {
            let mut waiting = self.waiting.lock().unwrap();
            while let Some(byte) = waiting.first().copied() {
                let Some(mut chain) = queue.pop()? else { return Ok(Served::Drained) };
                waiting.remove(0);
                let written = chain.writable.write(&[byte]) as u32;
                queue.complete(chain, written)?;
            }
            return Ok(Served::Left);
        }
        while let Some(mut chain) = queue.pop()? {
            let mut bytes = vec![0; chain.readable.len().min(1 << 16) as usize];
            let len = chain.readable.read(&mut bytes);
            if let Some(begun) = &*self.slow.lock().unwrap() {
                begun.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(200));
            }
            let written = chain.writable.write(&bytes[..len]) as u32;
            queue.complete(chain, written)?;
        }
        Ok(Served::Drained)
    }
}

pub struct Board {
    board: fake::Board,
    pub echo: Arc<Echo>,
}

impl Deref for Board {
    type Target = fake::Board;

    fn deref(&self) -> &fake::Board {
        &self.board
    }
}

impl Board {
    pub fn new() -> Self {
        let echo = Arc::new(Echo::default());
        Self { board: fake::Board::new(echo.clone()), echo }
    }

    /// A request with these bytes, and room for as many.
    pub fn request(&self, bytes: &[u8]) {
        self.submit(0, bytes, bytes.len() as u32);
    }
}
