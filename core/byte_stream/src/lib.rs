//! The contract between a character device and what carries its bytes.
//!
//! A device (a serial port) holds an [`Output`] and pushes bytes into it; what the carrier
//! receives it pushes into the device's [`Input`]. Neither may block: a device is called on a
//! vCPU's thread.

/// Where a device's bytes go: a terminal, a file, a socket, nothing.
pub trait Output: Send + Sync {
    /// Takes all of `bytes`; a carrier that cannot take them drops them and counts.
    fn write(&self, bytes: &[u8]);

    /// Takes as many bytes as there is room for and returns how many, for a device that can hold
    /// its guest back. It offers the rest again after [`Self::on_space`]'s callback.
    fn offer(&self, bytes: &[u8]) -> usize {
        self.write(bytes);
        bytes.len()
    }

    /// `callback` is called when there is room again after `offer` took less than offered. It
    /// must not call back into the carrier.
    fn on_space(&self, _callback: Box<dyn Fn() + Send + Sync>) {}
}

/// A device that takes bytes.
pub trait Input: Send + Sync {
    /// Takes as many bytes as there is room for and returns how many. The carrier offers the
    /// rest again after [`Self::on_room`]'s callback, or a little later.
    fn receive(&self, bytes: &[u8]) -> usize;

    /// `callback` is called when there is room again after `receive` took less than offered.
    /// It must not call back into the device.
    fn on_room(&self, callback: Box<dyn Fn() + Send + Sync>);

    /// Whether somebody is at the other end, where a carrier knows.
    fn peer(&self, _present: bool) {}
}

/// Discards everything.
#[derive(Debug, Default)]
pub struct Null;

impl Output for Null {
    fn write(&self, _: &[u8]) {}
}
