//! What is written to a disk that nobody wants to keep.

use crate::{
    OpenError,
    chain::{Image, Opened, deny, storage},
};
use imago::{FormatAccess, FormatCreateBuilder, qcow2::Qcow2};
use std::path::Path;

/// QEMU's default too: small enough to copy for the first write, large enough for few tables.
const CLUSTER: usize = 64 << 10;

/// An image over `base` in a file without a name.
pub(crate) fn over(base: Image, folder: &Path) -> Result<Opened, OpenError> {
    let failed = |source| OpenError::Overlay { folder: folder.to_owned(), source };
    let file = tempfile::tempfile_in(folder).map_err(failed)?;
    let size = base.size();
    let overlay = Qcow2::create_builder(storage(file)?)
        .size(size)
        .cluster_size(CLUSTER)
        .create_open(deny(), |image| Ok(Qcow2::builder(image).backing(Some(base))))
        .map_err(failed)?;
    let image = FormatAccess::new(overlay);
    Ok(Opened { image, discards: true, cluster: CLUSTER as u64, mark: None })
}
