//! The contract between a Xen back end and the domain that it serves.
//!
//! A back end (block, network) shares pages with the domain's driver, its front end: the domain
//! *grants* them, by entries of its grant table, and takes them back when nobody uses them. The two
//! notify each other by *event channels*, and agree on all of this in xenstore. Whoever runs the
//! domain implements [`Domain`]; a type of back end implements [`Backend`], and knows neither the
//! personality nor the machine.
//!
//! What the front end wrote is hostile: references, ports, rings, and the strings in xenstore.

pub mod fake;
mod page;
mod ring;

pub use page::Page;
pub use ring::{Overrun, Position, Ring};

use device::Device;
use std::{collections::BTreeMap, sync::Arc};

/// A grant reference: the number of an entry of the domain's grant table.
pub type GrantRef = u32;

/// What a back end does with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// And reads.
    Write,
}

/// Why a grant or a port cannot be used: what Xen tells a back end by `GNTST_*` and an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the domain has not granted {0}")]
    Grant(GrantRef),
    #[error("the domain has granted {0} for reading only")]
    ReadOnly(GrantRef),
    #[error("the frame of grant {0} is not one that can be written now")]
    Frame(GrantRef),
    #[error("port {0} is not one for a back end to bind")]
    Port(u32),
    #[error("{0} bytes at {1} are not inside a page, or not to be written")]
    Range(usize, usize),
}

/// Bytes of a page that the domain grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub grant: GrantRef,
    pub offset: usize,
    pub len: usize,
}

/// Pieces of data that are one behind the other, from the first byte on.
#[derive(Clone, Copy, Debug)]
pub struct Gather<'a> {
    now: &'a [u8],
    rest: &'a [&'a [u8]],
}

impl<'a> Gather<'a> {
    pub fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self { now: &[], rest: pieces }
    }

    /// Up to so many of the next bytes that are in one piece; `None` behind the last.
    pub fn next(&mut self, most: usize) -> Option<&'a [u8]> {
        while self.now.is_empty() {
            let (first, rest) = self.rest.split_first()?;
            (self.now, self.rest) = (first, rest);
        }
        let (here, later) = self.now.split_at(most.min(self.now.len()));
        self.now = later;
        Some(here)
    }
}

/// What a back end hears of a port by.
pub type Notified = Arc<dyn Fn() + Send + Sync>;

/// A domain, as a back end sees it.
pub trait Domain: Send + Sync {
    /// Uses a page that the domain grants; it cannot take that back until [`Domain::unmap`]. Called
    /// by [`Grant::map`].
    fn map(&self, grant: GrantRef, access: Access) -> Result<Page, Error>;

    /// The opposite, once for each [`Domain::map`] that succeeded.
    fn unmap(&self, grant: GrantRef, access: Access);

    /// Copies these parts, one behind the other, as far as they fill `out`. The domain cannot take a page
    /// back while it is copied.
    fn copy_from(&self, parts: &[Part], out: &mut [u8]) -> Result<(), Error> {
        let mut rest = out;
        for part in parts {
            let page = self.map(part.grant, Access::Read)?;
            let (here, later) = rest.split_at_mut(part.len.min(rest.len()));
            let read = page.read(part.offset, here);
            self.unmap(part.grant, Access::Read);
            read?;
            rest = later;
        }
        Ok(())
    }

    /// The opposite: copies `data` into these parts, as far as it goes. If one cannot be written, nothing is
    /// said of the others.
    fn copy_to(&self, parts: &[Part], data: &[&[u8]]) -> Result<(), Error> {
        let mut data = Gather::new(data);
        for part in parts {
            let page = self.map(part.grant, Access::Write)?;
            let (mut at, mut written) = (0, Ok(()));
            while at < part.len
                && written.is_ok()
                && let Some(bytes) = data.next(part.len - at)
            {
                written = page.write(part.offset + at, bytes);
                at += bytes.len();
            }
            self.unmap(part.grant, Access::Write);
            written?;
        }
        Ok(())
    }

    /// Binds a port that the domain allocated for its back end. `notified` is called when the domain
    /// notifies it, on a vCPU's thread: it must not block, nor call the domain.
    fn bind(&self, port: u32, notified: Notified) -> Result<(), Error>;

    /// The opposite, if it is still bound with that: nothing is called when this returns.
    fn unbind(&self, port: u32, notified: &Notified);

    /// Notifies the domain on a port that is bound.
    fn notify(&self, port: u32);
}

/// A page in use, until this is dropped.
pub struct Grant {
    domain: Arc<dyn Domain>,
    grant: GrantRef,
    access: Access,
    page: Page,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant").field("grant", &self.grant).field("access", &self.access).finish()
    }
}

impl Grant {
    pub fn map(domain: &Arc<dyn Domain>, grant: GrantRef, access: Access) -> Result<Self, Error> {
        let page = domain.map(grant, access)?;
        Ok(Self { domain: domain.clone(), grant, access, page })
    }

    pub fn access(&self) -> Access {
        self.access
    }
}

impl std::ops::Deref for Grant {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.domain.unmap(self.grant, self.access);
    }
}

/// A port that is bound, until this is dropped.
pub struct Channel {
    domain: Arc<dyn Domain>,
    port: u32,
    notified: Notified,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("port", &self.port).finish()
    }
}

impl Channel {
    /// See [`Domain::bind`].
    pub fn bind(domain: &Arc<dyn Domain>, port: u32, notified: Notified) -> Result<Self, Error> {
        domain.bind(port, notified.clone())?;
        Ok(Self { domain: domain.clone(), port, notified })
    }

    pub fn notify(&self) {
        self.domain.notify(self.port);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.domain.unbind(self.port, &self.notified);
    }
}

/// Nodes of a folder of xenstore: names below it, as `queue-0/ring-ref`, and values.
pub type Nodes = BTreeMap<String, String>;

/// A type of back end. Whoever has the domain's xenstore takes it through the states of `XenbusState`
/// (`io/xenbus.h`): it writes [`Backend::front`] and [`Backend::features`] and waits; when the front
/// end has written what it chose and is `Initialised` or `Connected`, it calls [`Backend::connect`];
/// when the front end closes, [`Backend::disconnect`].
///
/// Its [`Device`]: reset is a [`Backend::disconnect`]; what is saved includes how far rings were
/// served. When a machine is restored, the state is restored first, and then `connect` is called
/// with the same nodes ([`Connect::Again`]) while the device is paused.
pub trait Backend: Device {
    /// The folder of its kind: `vbd`, `vif`.
    fn kind(&self) -> &'static str;

    /// What the front end's folder has from the start, besides what every device's has: `mac`,
    /// `virtual-device`.
    fn front(&self) -> Nodes;

    /// What the back end's own folder says while it waits for the front end.
    fn features(&self) -> Nodes;

    /// The front end has chosen. Returns what the back end's folder says once it is connected, in
    /// addition, or for an operator why it cannot connect.
    fn connect(
        &self,
        domain: &Arc<dyn Domain>,
        front: &Nodes,
        how: Connect,
    ) -> Result<Nodes, String>;

    /// Uses no page and no port any more, and none when this returns. It may be connected later.
    fn disconnect(&self);
}

/// How a back end connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Rings are fresh.
    First,
    /// Rings are as they were when the state was saved that the device has restored.
    Again,
}
