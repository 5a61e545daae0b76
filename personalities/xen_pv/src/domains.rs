//! Domains that a hypercall names: there are this one, and that of its back ends.

use crate::Domain;
use xen_abi::{DOMID_IO, DOMID_SELF, DomainId, errno::Errno};

/// The domain that back ends are in.
pub const BACKEND: DomainId = 0;
/// This one's number, which it knows from xenstore.
pub const OWN: DomainId = 1;

impl Domain {
    /// Whether a call is about this domain; it may do nothing to another.
    pub fn itself(domain: DomainId) -> Result<(), Errno> {
        match domain {
            DOMID_SELF | OWN => Ok(()),
            BACKEND => Err(Errno::Perm),
            _ => Err(Errno::Srch),
        }
    }

    /// Whether pages that a call about page tables names are this domain's. As for Xen, its own number
    /// is not that of a foreign domain.
    pub fn own_pages(foreign: u64) -> Result<(), Errno> {
        match foreign as u16 {
            DOMID_SELF => Ok(()),
            BACKEND | DOMID_IO => Err(Errno::Perm),
            _ => Err(Errno::Srch),
        }
    }

    /// The same of `mmu_update`, where above the pages' domain is that of the tables, and one more; 0 for
    /// its own.
    pub fn own_tables(foreign: u64) -> Result<(), Errno> {
        const TABLES_OWN: u16 = OWN + 1;
        const TABLES_BACKEND: u16 = BACKEND + 1;
        match (foreign >> 16) as u16 {
            0 | TABLES_OWN => Self::own_pages(foreign),
            TABLES_BACKEND => Err(Errno::Perm),
            _ => Err(Errno::Inval),
        }
    }
}
