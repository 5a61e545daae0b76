//! Direct boot: bzImage, ELF by PVH and by the 64-bit protocol.
