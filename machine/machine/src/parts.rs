//! What a spec names, opened: what a machine is built of.

use crate::{Start, Tracer};
use byte_stream::Output;
use device::Device;
use disk::Disk;
use nic::{Mac, Network};
use std::{fmt, io::Read, os::unix::net::UnixListener, path::PathBuf, sync::Arc};
use vm_spec::{DiskBus, NetModel};

/// What a spec names, opened.
pub struct Parts {
    pub start: Start,
    pub console: Arc<dyn Output>,
    /// Those of the spec, in its order.
    pub channels: Vec<ChannelPart>,
    /// Those of the spec, in its order.
    pub disks: Vec<DiskPart>,
    /// Random bytes without end, for a guest that has an entropy device.
    pub entropy: Option<Box<dyn Read + Send>>,
    /// The firmware of the VGA, for a guest that has one.
    pub vga_rom: Option<Arc<[u8]>>,
    /// What the guest's network cards are plugged into.
    pub networks: Vec<NetworkPart>,
    pub vsock: Option<VsockPart>,
    pub tracer: Tracer,
}

/// A port with a name, and what carries its bytes.
pub struct ChannelPart {
    pub name: String,
    pub output: Arc<dyn Output>,
    /// Somebody is at the other end, until the carrier says otherwise.
    pub peer: bool,
}

/// A disk, opened.
pub struct DiskPart {
    pub disk: Arc<dyn Disk>,
    pub serial: String,
    pub bus: DiskBus,
}

/// Where programs of the host come to, and what sockets of those that listen are called.
#[derive(Debug)]
pub struct VsockPart {
    /// The guest's address.
    pub cid: u32,
    pub listener: UnixListener,
    pub base: PathBuf,
}

/// A network, and the card for it.
pub struct NetworkPart {
    pub network: Arc<dyn Network>,
    /// The same, to be paused, saved and reset with the machine.
    pub device: Arc<dyn Device>,
    pub model: NetModel,
    pub mac: Mac,
    pub mtu: u16,
}

impl fmt::Debug for NetworkPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkPart({})", self.mac)
    }
}

impl fmt::Debug for DiskPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskPart({:?}, {:?})", self.serial, self.disk.shape())
    }
}

impl fmt::Debug for ChannelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelPart({})", self.name)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("start", &self.start).finish_non_exhaustive()
    }
}
