//! The local APIC for engines that have none of their own.
