//! Pages that the driver grants for requests.

use std::{collections::HashMap, sync::Arc};
use xen_front::{Access, Domain, Error, Grant, GrantRef};

/// Pages that a queue keeps in use: as many as Linux does (`xen_blkif_max_pgrants`).
const KEPT_MAX: usize = 1056;

/// The pages of one queue.
pub(crate) struct Grants {
    domain: Arc<dyn Domain>,
    /// Those of a driver that keeps them granted, and so granted for writing.
    kept: Option<HashMap<GrantRef, Arc<Grant>>>,
}

impl Grants {
    pub(crate) fn new(domain: Arc<dyn Domain>, persistent: bool) -> Self {
        Self { domain, kept: persistent.then(HashMap::new) }
    }

    /// A page for a request's data.
    pub(crate) fn map(&mut self, grant: GrantRef, access: Access) -> Result<Arc<Grant>, Error> {
        let Some(kept) = &mut self.kept else { return self.map_once(grant, access).map(Arc::new) };
        if let Some(page) = kept.get(&grant) {
            return Ok(page.clone());
        }
        let page = Arc::new(Grant::map(&self.domain, grant, Access::Write)?);
        if kept.len() < KEPT_MAX {
            kept.insert(grant, page.clone());
        }
        Ok(page)
    }

    /// A page that is used for no longer than it is held.
    pub(crate) fn map_once(&self, grant: GrantRef, access: Access) -> Result<Grant, Error> {
        Grant::map(&self.domain, grant, access)
    }
}
