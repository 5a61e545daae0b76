//! The seam between a machine and whatever executes its guest.
