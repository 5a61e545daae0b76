//! Devices that come and go while the machine runs: behind the ports of the spec, and as units of the
//! SCSI adapter.

use crate::{
    disks,
    parts::{DiskPart, NetworkPart, VsockPart},
    place::Place,
    units::Units,
};
use device::Device;
use guest_mem::GuestMem;
use pci::PciHost;
use std::{any::Any, fmt, io::Read, sync::Arc};
use virtio::VirtioDevice;
use virtio_blk::VirtioBlk;
use virtio_net::VirtioNet;
use virtio_rng::VirtioRng;
use virtio_scsi::{Address, InsertError};
use virtio_vsock::VirtioVsock;
use vm_spec::{DiskBus, NetModel};

/// What belongs to a device, and is dropped when that has gone.
pub type Keep = Box<dyn Any + Send>;

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
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(disk) => disk.fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Entropy(_) => f.write_str("Entropy"),
            Self::Scsi => f.write_str("Scsi"),
            Self::Sockets(part, _) => part.fmt(f),
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
    #[error("the machine has no port that is free")]
    NoPort,
    #[error("this host has no thread for the device")]
    Thread(#[source] std::io::Error),
}

/// What the machine has from the start, of which there is one only.
pub(crate) struct There {
    /// The SCSI adapter's.
    pub(crate) units: Option<Units>,
    pub(crate) sockets: bool,
}

/// What is behind one port.
struct Plugged {
    /// As the operator called it.
    label: String,
    devices: Vec<Arc<dyn Device>>,
    /// If it is the machine's SCSI adapter.
    units: Option<Units>,
    sockets: bool,
    _keep: Option<Keep>,
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
            Plugged { label, devices: Vec::new(), units: None, sockets: false, _keep: None };
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
                plugged._keep = Some(keep);
                let config = virtio_vsock::Config { cid, listener, base };
                VirtioVsock::new(config).map_err(PlugError::Thread)?
            }
        })
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
