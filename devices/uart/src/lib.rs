//! The 16550A serial port.
