//! Xenstore for one guest (`docs/misc/xenstore.txt` of Xen): a tree of short values with owners,
//! watches and transactions, which the guest reaches by a ring, and what is around it by calls.
//!
//! [`Tree`] is the data, [`Store`] the protocol, [`Ring`] what carries its messages.

mod error;
mod events;
mod path;
mod ring;
mod saved;
mod store;
mod tree;

pub use error::Error;
pub use path::Path;
pub use ring::{Ring, Served};
pub use store::{GUEST, HOST, Store};
pub use tree::{Permissions, Tree};
