//! The engine that needs no hardware support.
