//! Ports that are one byte wide, as everything of the ISA age is: a wider access is one
//! access to each port in turn.

use device::PioDevice;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) trait BytePorts: Send + Sync {
    /// `None` where nothing answers.
    fn read_byte(&self, port: u16) -> Option<u8>;
    fn write_byte(&self, port: u16, value: u8);
}

/// Makes a port device of byte ports.
#[derive(Debug)]
pub(crate) struct Bytewise<T>(pub(crate) T);

impl<T: BytePorts> PioDevice for Bytewise<std::sync::Arc<T>> {
    fn read(&self, port: u16, data: &mut [u8]) {
        for (i, byte) in (0u16..).zip(data) {
            if let Some(value) = self.0.read_byte(port.wrapping_add(i)) {
                *byte = value;
            }
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        for (i, byte) in (0u16..).zip(data) {
            self.0.write_byte(port.wrapping_add(i), *byte);
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `a * b / c` without overflow on the way; saturates.
pub(crate) fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b) / u128::from(c.max(1));
    u64::try_from(wide).unwrap_or(u64::MAX)
}
