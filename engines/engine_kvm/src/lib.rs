//! The engine over /dev/kvm.
