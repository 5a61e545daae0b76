//! A Xen domain: a machine without a board, whose kernel asks for what it needs.
//!
//! ```text
//!   vCPU threads --hypercalls--> XenPv --notify--> service thread --> xenstore, console
//!        ^                         |                                      |
//!        `-------- wake -----------'<--------------- raise ---------------'
//! ```

mod board;
mod build;
mod builder;
mod devices;
mod saved;
mod service;
mod toolstack;

pub(crate) use build::build;
