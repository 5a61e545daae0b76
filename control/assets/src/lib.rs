//! The default guest: Debian's packages fetched, unpacked and cached.
