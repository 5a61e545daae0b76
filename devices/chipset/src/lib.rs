//! PIC, PIT, IOAPIC, RTC, ACPI PM, i8042, reset, pvpanic and debug ports.
