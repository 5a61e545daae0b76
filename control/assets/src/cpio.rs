//! Writing an initramfs: the `newc` format of cpio
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive in memory. Owner and times are zero, so equal contents give equal bytes.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
    next_inode: u32,
}

impl Writer {
    pub fn directory(&mut self, path: &str, permissions: u32) {
        self.entry(path, S_IFDIR | permissions, (0, 0), &[]);
    }

    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.entry(path, S_IFREG | permissions, (0, 0), contents);
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, S_IFLNK | 0o777, (0, 0), target.as_bytes());
    }

    pub fn character_device(&mut self, path: &str, permissions: u32, number: (u32, u32)) {
        self.entry(path, S_IFCHR | permissions, number, &[]);
    }

    /// The archive, ended and padded.
    pub fn finish(mut self) -> Vec<u8> {
        self.next_inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.out.resize(self.out.len().next_multiple_of(512), 0);
        self.out
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let inode = self.next_inode;
        self.next_inode += 1;
        // Contents come from a package whose files have a bounded size.
        let size = u32::try_from(contents.len()).expect("a file of an initramfs is below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        self.out.extend_from_slice(b"070701");
        for field in [
            inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size,
            0, // no checksum in this format
        ] {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(path.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> usize {
        usize::from_str_radix(std::str::from_utf8(bytes).unwrap(), 16).unwrap()
    }

    /// Reads an archive back: (path, mode, contents), the trailer included.
    fn read(archive: &[u8]) -> Vec<(String, usize, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let header = &archive[at..at + 110];
            assert_eq!(&header[..6], b"070701");
            let field = |n: usize| hex(&header[6 + 8 * n..14 + 8 * n]);
            let name = at + 110..at + 110 + field(11) - 1;
            let start = (name.end + 1).next_multiple_of(4);
            let end = start + field(6);
            let path = String::from_utf8(archive[name].to_vec()).unwrap();
            let last = path == "TRAILER!!!";
            entries.push((path, field(1), archive[start..end].to_vec()));
            at = end.next_multiple_of(4);
            if last {
                assert!(archive[at..].iter().all(|b| *b == 0));
                return entries;
            }
        }
    }

    #[test]
    fn reads_back() {
        let mut writer = Writer::default();
        writer.directory("bin", 0o755);
        writer.file("bin/a", 0o755, b"12345");
        writer.symlink("init", "bin/a");
        writer.character_device("dev/console", 0o600, (5, 1));
        let archive = writer.finish();
        assert_eq!(archive.len() % 512, 0);
        let entries = read(&archive);
        assert_eq!(entries[0], ("bin".into(), 0o040_755, vec![]));
        assert_eq!(entries[1], ("bin/a".into(), 0o100_755, b"12345".to_vec()));
        assert_eq!(entries[2], ("init".into(), 0o120_777, b"bin/a".to_vec()));
        assert_eq!(entries[3].1, 0o020_600);
        assert_eq!(entries[4].0, "TRAILER!!!");
    }

    #[test]
    fn the_device_number_is_written() {
        let mut writer = Writer::default();
        writer.character_device("c", 0o600, (5, 1));
        let archive = writer.finish();
        assert_eq!((hex(&archive[78..86]), hex(&archive[86..94])), (5, 1));
    }
}
