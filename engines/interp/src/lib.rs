//! The reference interpreter: decode cache and run loop over `semantics`.
