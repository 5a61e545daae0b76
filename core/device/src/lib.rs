//! Contracts of devices: port and MMIO facets, lines, MSI, timers, the bus map.
