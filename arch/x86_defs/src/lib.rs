//! Registers, MSRs, descriptors and page-table bits of x86, as the SDM and APM name them.
