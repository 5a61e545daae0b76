//! The contract between a character device and what carries its bytes.
