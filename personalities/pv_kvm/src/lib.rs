//! KVM's paravirtual leaves and MSRs: clock, EOI, steal time.
