//! The ACPI tables of the board.
