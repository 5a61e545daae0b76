//! A console that is written to a file.

use std::{
    fs::{File, OpenOptions},
    path::Path,
};

use crate::Failure;

/// Opens the file for appending.
pub fn open(option: &str, path: &Path) -> Result<File, Failure> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
        Failure::host(format!(
            "{option}file:{}: {}; give the path of a file that can be written",
            path.display(),
            crate::report::os_reason(&e)
        ))
    })
}
