//! The guest-physical space: slots on memfds, volatile access, dirty and code planes.
