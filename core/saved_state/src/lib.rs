//! The envelope of saved state: kind, version, payload; everything must be consumed.
