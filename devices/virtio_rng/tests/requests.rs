//! Requests for random bytes, from the driver's side.

use std::{io::Read, sync::Arc};
use virtio::{
    VirtioDevice,
    fake::{Board, buffer},
    feature::VERSION_1,
};
use virtio_rng::{AT_ONCE, VirtioRng};

/// Bytes that count, up to a number of them.
struct Counting(u8, usize);

impl Read for Counting {
    fn read(&mut self, data: &mut [u8]) -> std::io::Result<usize> {
        let len = data.len().min(self.1);
        for byte in &mut data[..len] {
            self.0 = self.0.wrapping_add(1);
            *byte = self.0;
        }
        self.1 -= len;
        Ok(len)
    }
}

fn device(bytes: usize) -> (Board, Arc<VirtioRng>) {
    let rng = VirtioRng::new(Counting(0, bytes));
    let board = Board::new(rng.clone());
    board.start(VERSION_1, true);
    (board, rng)
}

#[test]
fn each_request_gets_other_bytes() {
    let (board, rng) = device(1 << 20);
    assert_eq!(board.call(0, &[], 5).unwrap(), [1, 2, 3, 4, 5]);
    assert_eq!(board.call(0, &[], 3).unwrap(), [6, 7, 8]);
    assert_eq!(board.call(0, &[], 0x8000).unwrap().len(), AT_ONCE);
    assert_eq!(rng.counters()[0], ("bytes given", 8 + AT_ONCE as u64));
}

#[test]
fn without_a_source_there_is_nothing() {
    let (board, rng) = device(4);
    assert_eq!(board.call(0, &[], 4).unwrap(), [1, 2, 3, 4]);
    board.memory.write(buffer(0) + 0x1000, &[0xee; 4]).unwrap();
    assert_eq!(board.call(0, &[], 4).unwrap(), []);
    let mut bytes = [0; 4];
    board.memory.read(buffer(0) + 0x1000, &mut bytes).unwrap();
    assert_eq!(bytes, [0xee; 4]);
    assert_eq!(rng.counters()[1], ("failed requests", 1));
}

#[test]
fn a_request_that_gives_bytes_is_an_error() {
    for (given, wanted) in [(&[1][..], 4), (&[1][..], 0)] {
        let (board, _) = device(100);
        assert_eq!(board.call(0, given, wanted), None);
    }
}

#[test]
fn noise_on_its_queue_breaks_nothing() {
    for seed in 1..100 {
        let (board, _) = device(usize::MAX);
        board.noise(seed, VERSION_1);
        board.start_over(VERSION_1);
        assert_eq!(board.call(0, &[], 4).map(|bytes| bytes.len()), Some(4), "{seed}");
    }
}
