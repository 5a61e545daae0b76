//! Xenbus: how a back end and the domain's driver for it find each other, by two folders in xenstore
//! (`io/xenbus.h`, `docs/misc/xenstore-paths.pandoc` of Xen).
//!
//! The driver's folder, `/local/domain/1/device/KIND/ID`, is the domain's own, and all in it is
//! hostile; the back end's, `/local/domain/0/backend/KIND/1/ID`, is the host's, and the domain only
//! reads it. Each side has a node `state` there, and follows the other's.
//!
//! All that the [`Bus`] has to know is in the tree, so it saves nothing: [`Bus::restore`] finds it
//! there again.

mod bus;
mod folders;

pub use bus::{Bus, Event, Removal};
pub use folders::Id;

/// Why an owner's request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the domain has {0} already")]
    Taken(Id),
    #[error("the domain has no {0}")]
    Missing(Id),
    #[error("{0} cannot go on: {1}")]
    Restore(Id, String),
}
