//! What a VM is: versioned data.
