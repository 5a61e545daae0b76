//! What a vCPU is, as neutral data in versioned sections, and its reset values.
