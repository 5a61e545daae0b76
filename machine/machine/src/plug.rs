//! Devices that come and go while the machine runs, behind the ports of the spec.

use crate::{
    board::{DiskPart, NetworkPart},
    disks::QUEUES_MAX,
};
use device::Device;
use guest_mem::GuestMem;
use pci::PciHost;
use std::{fmt, io::Read, sync::Arc};
use virtio::VirtioDevice;
use virtio_blk::VirtioBlk;
use virtio_net::VirtioNet;
use virtio_rng::VirtioRng;
use vm_spec::{DiskBus, NetModel};

/// What can be put behind a port.
pub enum Plug {
    Disk(DiskPart),
    Network(NetworkPart),
    /// Random bytes without end.
    Entropy(Box<dyn Read + Send>),
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(disk) => disk.fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Entropy(_) => f.write_str("Entropy"),
        }
    }
}

/// Why a device was not put behind a port.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    #[error("only virtio disks can be added; leave bus= out")]
    Bus,
    #[error("only virtio cards can be added; leave model= out")]
    Model,
    #[error("the machine has no port that is free")]
    NoPort,
    #[error("this host has no thread for the device")]
    Thread(#[source] std::io::Error),
}

/// What is behind one port.
struct Plugged {
    /// As the operator called it.
    label: String,
    devices: Vec<Arc<dyn Device>>,
}

/// The ports, by their number.
pub(crate) struct Ports {
    pci: Arc<PciHost>,
    memory: Arc<GuestMem>,
    vcpus: u32,
    plugged: Vec<Option<Plugged>>,
}

impl Ports {
    pub(crate) fn new(pci: Arc<PciHost>, memory: Arc<GuestMem>, vcpus: u32) -> Self {
        let plugged = pci.ports().iter().map(|_| None).collect();
        Self { pci, memory, vcpus, plugged }
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.plugged.iter().flatten().flat_map(|plugged| &plugged.devices)
    }

    /// Puts a device behind the first free port; the port's number.
    pub(crate) fn plug(
        &mut self,
        plug: Plug,
        label: String,
        running: bool,
    ) -> Result<usize, PlugError> {
        self.forget_ejected();
        let free = self.plugged.iter().position(Option::is_none);
        let port = free.ok_or(PlugError::NoPort)?;
        let mut devices = Vec::new();
        let device: Arc<dyn VirtioDevice> = match plug {
            Plug::Disk(DiskPart { bus, .. }) if bus != DiskBus::Virtio => {
                return Err(PlugError::Bus);
            }
            Plug::Disk(DiskPart { disk, serial, .. }) => {
                let queues = self.vcpus.min(QUEUES_MAX) as u16;
                VirtioBlk::new(&virtio_blk::Config { serial, queues }, disk)
            }
            Plug::Network(NetworkPart { model, .. }) if model != NetModel::Virtio => {
                return Err(PlugError::Model);
            }
            Plug::Network(NetworkPart { network, device, mac, mtu, .. }) => {
                devices.push(device);
                let pairs = self.vcpus.min(QUEUES_MAX) as u16;
                VirtioNet::new(virtio_net::Config { mac, mtu, pairs }, network)
            }
            Plug::Entropy(source) => VirtioRng::new(source),
        };
        let plugged = virtio::plug(device, &self.pci, port, &self.memory);
        devices.push(plugged.map_err(|error| match error {
            virtio::PlugError::Slot(_) => PlugError::NoPort,
            virtio::PlugError::Thread(source) => PlugError::Thread(source),
        })?);
        if running {
            devices.iter().for_each(|device| device.resume());
        }
        if let Some(place) = self.plugged.get_mut(port) {
            *place = Some(Plugged { label, devices });
        }
        Ok(port)
    }

    /// Asks the guest to let go of what is behind a port; false if nothing is.
    pub(crate) fn ask_unplug(&mut self, port: usize) -> bool {
        self.forget_ejected();
        self.pci.ask_unplug(port)
    }

    /// What the guest has let go of goes: its threads end, its files are closed.
    pub(crate) fn forget_ejected(&mut self) {
        for (place, occupied) in self.plugged.iter_mut().zip(self.pci.ports()) {
            if !occupied && let Some(plugged) = place.take() {
                plugged.devices.iter().for_each(|device| device.pause());
            }
        }
    }

    /// What is behind each port, as it was called.
    pub(crate) fn labels(&mut self) -> Vec<Option<String>> {
        self.forget_ejected();
        let label = |place: &Option<Plugged>| place.as_ref().map(|plugged| plugged.label.clone());
        self.plugged.iter().map(label).collect()
    }
}
