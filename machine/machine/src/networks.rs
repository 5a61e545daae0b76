//! The guest's network cards.

use crate::{Error, disks, parts::NetworkPart, virtio_bus::VirtioBus};
use device::Wiring;
use virtio_net::VirtioNet;
use vm_spec::NetModel;

/// Puts all of them on the board; the slots of those on the PCI bus.
pub(crate) fn add(
    networks: Vec<NetworkPart>,
    bus: &mut VirtioBus,
    vcpus: u32,
    wiring: &mut Wiring,
) -> Result<Vec<u8>, Error> {
    let pairs = disks::queues(vcpus);
    let mut slots = Vec::new();
    for NetworkPart { network, device, model, mac, mtu } in networks {
        slots.extend(match model {
            NetModel::Virtio => {
                let card = VirtioNet::new(virtio_net::Config { mac, mtu, pairs }, network);
                bus.add(card, wiring)?.slot()
            }
            NetModel::E1000 => Some(e1000::build(mac, network, bus.pci(), wiring).slot()),
        });
        wiring.devices.push(device);
    }
    Ok(slots)
}
