#!/bin/sh
# io-bench PORT MS: a raw disk, a qcow2 disk and a stream, of virtio or of Xen, each for MS at a time.
# The other end of the stream is at that port of the gateway.
modprobe -aq virtio_pci virtio_blk virtio_net xen_blkfront xen_netfront
until [ -b /dev/vdb ] || [ -b /dev/xvdb ]; do sleep 0.1; done
until ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up; do sleep 0.1; done 2> /dev/null
until ping -c 1 -W 1 10.0.2.2 > /dev/null; do :; done
gbench -t "$2" disk raw /dev/*vda disk qcow2 /dev/*vdb net 10.0.2.2 "$1"
