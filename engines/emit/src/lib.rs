//! Host code: executable memory, and stubs that run one instruction on the host's own units.
