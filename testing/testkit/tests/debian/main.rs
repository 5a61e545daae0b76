//! Debian 12 with systemd from a qcow2 disk, under a BIOS, under UEFI and without either.

mod common;
mod first_days;
mod seed;
mod starts;
mod stress;
mod xen;
