//! CPU models as data: which CPUID leaves and MSRs a guest sees.
