//! Devices that come and go while the machine runs: behind the ports of the spec, and as units of the
//! SCSI adapter.

use crate::{
    disks,
    extras::Extras,
    parts::{ChannelPart, DiskPart, NetworkPart, VsockPart},
    place::Place,
    units::Units,
};
use byte_stream::Input;
use device::Device;
use guest_mem::GuestMem;
use pci::PciHost;
use std::{any::Any, fmt, io::Read, sync::Arc};
use virtio::VirtioDevice;
use virtio_blk::VirtioBlk;
use virtio_input::Kind;
use virtio_net::VirtioNet;
use virtio_rng::VirtioRng;
use virtio_scsi::{Address, InsertError};
use virtio_vsock::VirtioVsock;
use vm_spec::{DiskBus, NetModel};

/// What belongs to a device, and is dropped when that has gone.
pub type Keep = Box<dyn Any + Send>;

/// Begins to carry bytes to a device, and ends that when what it returns is dropped. Why not, in a line.
pub type Carry = Box<dyn FnOnce(Arc<dyn Input>) -> Result<Keep, String> + Send>;

/// What can be added.
pub enum Plug {
    /// Behind a port, or, by its bus, a unit of the SCSI adapter.
    Disk(DiskPart),
    Network(NetworkPart),
    /// Random bytes without end.
    Entropy(Box<dyn Read + Send>),
    /// A SCSI adapter without units; a machine has one.
    Scsi,
    /// Sockets, which a machine has once.
    Sockets(VsockPart, Keep),
    /// A balloon, which a machine has once.
    Balloon,
    /// Their events are the seat's.
    Keyboard,
    Tablet,
    /// A port with a name, which no other has.
    Channel(ChannelPart, Carry),
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(disk) => disk.fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Entropy(_) => f.write_str("Entropy"),
            Self::Scsi => f.write_str("Scsi"),
            Self::Sockets(part, _) => part.fmt(f),
            Self::Balloon => f.write_str("Balloon"),
            Self::Keyboard => f.write_str("Keyboard"),
            Self::Tablet => f.write_str("Tablet"),
            Self::Channel(part, _) => part.fmt(f),
        }
    }
}

/// Why a device was not added.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    #[error("only virtio and SCSI disks can be added; leave bus= out, or give scsi or scsi-cd")]
    Bus,
    #[error("only virtio cards can be added; leave model= out")]
    Model,
    #[error("the machine has no SCSI adapter; `device add scsi` puts one behind a port")]
    NoAdapter,
    #[error("the machine has a SCSI adapter; `device add disk FILE,bus=scsi` gives it a disk")]
    Adapter,
    #[error("the SCSI adapter has all units that it can have; remove one first")]
    NoAddress,
    #[error("the SCSI adapter has no CD drive there")]
    NoDrive,
    #[error("the guest has locked the drive; let it unmount or eject the disc first")]
    Locked,
    #[error("the machine has a device for sockets, and guests know no second one")]
    Sockets,
    #[error("the machine has a balloon; `balloon N` leaves the guest with N MiB")]
    Balloon,
    #[error("the machine has a channel of this name; give another name")]
    Channel,
    #[error("{0}")]
    Carrier(String),
    #[error("a Xen domain has disks and network cards only: `device add disk` or `device add net`")]
    Domain,
    #[error("{0}")]
    DomainDevice(xen_bus::Error),
    #[error("the machine has no port that is free")]
    NoPort,
    #[error("this host has no thread for the device")]
    Thread(#[source] std::io::Error),
}

/// What the machine has from the start, of which some things are there once only.
pub(crate) struct There {
    /// The SCSI adapter's.
    pub(crate) units: Option<Units>,
    pub(crate) sockets: bool,
    pub(crate) extras: Arc<Extras>,
}

/// What is behind one port.
struct Plugged {
    /// As the operator called it.
    label: String,
    devices: Vec<Arc<dyn Device>>,
    /// If it is the machine's SCSI adapter.
    units: Option<Units>,
    sockets: bool,
    /// Goes after the devices.
    keep: Vec<Keep>,
}

/// The ports, by their number.
pub(crate) struct Ports {
    pci: Arc<PciHost>,
    memory: Arc<GuestMem>,
    vcpus: u32,
    there: There,
    plugged: Vec<Option<Plugged>>,
}

impl Ports {
    pub(crate) fn new(pci: Arc<PciHost>, memory: Arc<GuestMem>, vcpus: u32, there: There) -> Self {
        let plugged = pci.ports().iter().map(|_| None).collect();
        Self { pci, memory, vcpus, there, plugged }
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.plugged.iter().flatten().flat_map(|plugged| &plugged.devices)
    }

    /// The SCSI adapter, wherever it is.
    fn units(&mut self) -> Option<&mut Units> {
        let behind = self.plugged.iter_mut().flatten().filter_map(|it| it.units.as_mut());
        self.there.units.iter_mut().chain(behind).next()
    }

    fn has_sockets(&self) -> bool {
        self.there.sockets || self.plugged.iter().flatten().any(|plugged| plugged.sockets)
    }

    /// Puts a device behind the first free port, or a unit at the first free address of the SCSI
    /// adapter; where that is.
    pub(crate) fn plug(
        &mut self,
        plug: Plug,
        label: String,
        running: bool,
    ) -> Result<Place, PlugError> {
        self.forget_ejected();
        match plug {
            Plug::Disk(disk) if disk.bus.is_scsi() => {
                let units = self.units().ok_or(PlugError::NoAdapter)?;
                let address = units.add(disk, label).ok_or(PlugError::NoAddress)?;
                Ok(Place::Unit(address))
            }
            plug => self.plug_port(plug, label, running).map(Place::Port),
        }
    }

    fn plug_port(&mut self, plug: Plug, label: String, running: bool) -> Result<usize, PlugError> {
        let free = self.plugged.iter().position(Option::is_none);
        let port = free.ok_or(PlugError::NoPort)?;
        let mut plugged =
            Plugged { label, devices: Vec::new(), units: None, sockets: false, keep: Vec::new() };
        let device = self.device(plug, &mut plugged)?;
        let on_bus = virtio::plug(device, &self.pci, port, &self.memory);
        plugged.devices.push(on_bus.map_err(|error| match error {
            virtio::PlugError::Slot(_) => PlugError::NoPort,
            virtio::PlugError::Thread(source) => PlugError::Thread(source),
        })?);
        if running {
            plugged.devices.iter().for_each(|device| device.resume());
        }
        if let Some(place) = self.plugged.get_mut(port) {
            *place = Some(plugged);
        }
        Ok(port)
    }

    /// Makes what goes behind a port, and notes what belongs to it.
    fn device(
        &mut self,
        plug: Plug,
        plugged: &mut Plugged,
    ) -> Result<Arc<dyn VirtioDevice>, PlugError> {
        Ok(match plug {
            Plug::Disk(DiskPart { bus, .. }) if bus != DiskBus::Virtio => {
                return Err(PlugError::Bus);
            }
            Plug::Disk(DiskPart { disk, serial, .. }) => {
                let queues = disks::queues(self.vcpus);
                VirtioBlk::new(&virtio_blk::Config { serial, queues }, disk)
            }
            Plug::Network(NetworkPart { model, .. }) if model != NetModel::Virtio => {
                return Err(PlugError::Model);
            }
            Plug::Network(NetworkPart { network, device, mac, mtu, .. }) => {
                plugged.devices.push(device);
                let pairs = disks::queues(self.vcpus);
                VirtioNet::new(virtio_net::Config { mac, mtu, pairs }, network)
            }
            Plug::Entropy(source) => VirtioRng::new(source),
            Plug::Scsi if self.units().is_some() => return Err(PlugError::Adapter),
            Plug::Scsi => {
                let units = Units::new(disks::queues(self.vcpus));
                plugged.units.insert(units).adapter()
            }
            Plug::Sockets(..) if self.has_sockets() => return Err(PlugError::Sockets),
            Plug::Sockets(VsockPart { cid, listener, base }, keep) => {
                plugged.sockets = true;
                plugged.keep.push(keep);
                let config = virtio_vsock::Config { cid, listener, base };
                VirtioVsock::new(config).map_err(PlugError::Thread)?
            }
            Plug::Balloon => {
                let made = self.there.extras.new_balloon(&self.memory);
                let (balloon, keep) = made.ok_or(PlugError::Balloon)?;
                plugged.keep.push(keep);
                balloon
            }
            Plug::Keyboard => self.input(Kind::Keyboard, plugged),
            Plug::Tablet => self.input(Kind::Tablet, plugged),
            Plug::Channel(part, carry) => {
                let made = self.there.extras.new_channel(part);
                let (console, name) = made.ok_or(PlugError::Channel)?;
                // The name is free when the carrier has ended.
                plugged.keep.push(carry(console.input(0)).map_err(PlugError::Carrier)?);
                plugged.keep.push(name);
                console
            }
        })
    }

    fn input(&self, kind: Kind, plugged: &mut Plugged) -> Arc<dyn VirtioDevice> {
        let (input, keep) = self.there.extras.new_input(kind);
        plugged.keep.push(keep);
        input
    }

    /// Puts a disc into a CD drive of the SCSI adapter, or takes out what there is.
    pub(crate) fn insert(
        &mut self,
        drive: Address,
        disc: Option<DiskPart>,
        label: String,
    ) -> Result<(), PlugError> {
        let units = self.units().ok_or(PlugError::NoAdapter)?;
        units.insert(drive, disc, label).map_err(|error| match error {
            InsertError::NoDrive => PlugError::NoDrive,
            InsertError::Locked => PlugError::Locked,
        })
    }

    /// Asks the guest to let go of what is behind a port, or takes a unit away, of which the guest
    /// hears; false if nothing is there.
    pub(crate) fn unplug(&mut self, place: Place) -> bool {
        self.forget_ejected();
        match place {
            Place::Port(port) => self.pci.ask_unplug(port),
            Place::Unit(address) => self.units().is_some_and(|units| units.remove(address)),
            Place::Device(_) => false,
        }
    }

    /// What the guest has let go of goes: its threads end, its files are closed.
    pub(crate) fn forget_ejected(&mut self) {
        for (place, occupied) in self.plugged.iter_mut().zip(self.pci.ports()) {
            if !occupied && let Some(plugged) = place.take() {
                plugged.devices.iter().for_each(|device| device.pause());
            }
        }
    }

    /// What is at each place, as it was called.
    pub(crate) fn labels(&mut self) -> Vec<(Place, Option<String>)> {
        self.forget_ejected();
        let label = |place: &Option<Plugged>| place.as_ref().map(|plugged| plugged.label.clone());
        let ports = self.plugged.iter().map(label).enumerate();
        let mut all: Vec<_> = ports.map(|(port, label)| (Place::Port(port), label)).collect();
        if let Some(units) = self.units() {
            let labels = units.labels().iter();
            all.extend(labels.map(|(at, label)| (Place::Unit(*at), Some(label.clone()))));
        }
        all
    }
}
