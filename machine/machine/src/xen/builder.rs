//! The domain builder: from files, or from the domain's own disk, to what its memory holds.

use crate::{Error, Image, Start};
use boot::{XenPv, XenPvRequest};
use disk::Disk;
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use xen_pv::{CONSOLE_PORT, Layout, STORE_PORT};

/// What the kernel calls its first disk.
const FIRST_DISK: &str = "xvda";

/// Builds at power-on and at each reset.
pub(crate) struct Builder {
    source: Source,
    description: Mutex<String>,
    built: AtomicBool,
}

enum Source {
    Files { kernel: Image, initrd: Option<Image>, command_line: String },
    Disk { disk: Arc<dyn Disk>, words: String, reader: Option<PathBuf> },
}

impl Builder {
    /// `disk` is the domain's first one.
    pub(crate) fn new(start: Start, disk: Option<Arc<dyn Disk>>) -> Result<Self, Error> {
        let source = match start {
            Start::Kernel { kernel, initrd, command_line } => {
                Source::Files { kernel, initrd, command_line }
            }
            Start::Disk { words, reader } => {
                Source::Disk { disk: disk.ok_or(Error::DomainDisk)?, words, reader }
            }
            Start::Firmware(_) => return Err(Error::DomainFirmware),
        };
        Ok(Self { source, description: Mutex::default(), built: AtomicBool::new(false) })
    }

    /// Whether something was built before.
    pub(crate) fn is_again(&self) -> bool {
        self.built.swap(true, Relaxed)
    }

    pub(crate) fn description(&self) -> String {
        self.description.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn plan(&self, layout: &Layout) -> Result<XenPv, Error> {
        let (mut request, place) = self.request(layout)?;
        request.memory = layout.ram;
        let plan = boot::load_xen_pv(&request)?;
        let description = format!("{place}{}", plan.description);
        *self.description.lock().unwrap_or_else(PoisonError::into_inner) = description;
        Ok(plan)
    }

    /// And where it is from.
    fn request(&self, layout: &Layout) -> Result<(XenPvRequest, String), Error> {
        let (kernel, initrd, command_line, place) = match &self.source {
            Source::Files { kernel, initrd, command_line } => {
                let initrd = initrd.as_ref().map(Image::bytes).transpose();
                let kernel = kernel.bytes().map_err(Error::Image)?;
                (kernel, initrd.map_err(Error::Image)?, command_line.clone(), String::new())
            }
            Source::Disk { disk, words, reader } => {
                let found = match reader {
                    Some(program) => disk_boot::read_by(program, disk, layout.ram, FIRST_DISK)?,
                    None => disk_boot::read(disk, layout.ram, FIRST_DISK)?,
                };
                let command_line = format!("{} {words}", of_domain(&found.command_line));
                let place = format!("{}: ", found.description);
                (found.kernel.into(), found.initrd.map(Into::into), command_line, place)
            }
        };
        let request = XenPvRequest {
            kernel,
            initrd,
            command_line,
            memory: layout.ram,
            shared_info: layout.shared_info(),
            store_port: STORE_PORT,
            console_port: CONSOLE_PORT,
        };
        Ok((request, place))
    }
}

/// A command line that was written for a PC: the root file system's disk has another name.
fn of_domain(command_line: &str) -> String {
    let word = |word: &str| {
        let disk = ["root=/dev/vd", "root=/dev/sd"].iter().find_map(|name| word.strip_prefix(name));
        disk.map_or_else(|| word.to_owned(), |rest| format!("root=/dev/xvd{rest}"))
    };
    command_line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_xen_s_names() {
        let line = "root=/dev/vda1 ro console=ttyS0 resume=/dev/sda2";
        assert_eq!(of_domain(line), "root=/dev/xvda1 ro console=ttyS0 resume=/dev/sda2");
        assert_eq!(of_domain("  root=UUID=1-2  quiet "), "root=UUID=1-2 quiet");
    }
}
