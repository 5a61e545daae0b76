//! Reading a Debian package: an `ar` archive that holds a compressed `tar` (deb(5)).
//!
//! Nothing is written to the file system: files are handed to the caller in memory, with
//! their normalised path, so that no name in an archive can lead anywhere.

use std::io::{self, Read};

/// A package expands to at most this much.
const TOTAL_MAX: u64 = 2 << 30;
/// One file of a package has at most this size.
const FILE_MAX: u64 = 256 << 20;
/// What a decompressor's dictionary may take, in KiB: `xz -9` takes 64 MiB.
const DICTIONARY_MAX_KIB: u32 = 192 << 10;
/// The same for zstd's window, in bytes.
const WINDOW_MAX: u64 = 128 << 20;

/// Calls `take` for each regular file of the package whose path `wants` accepts.
///
/// Paths are relative, with neither `.` nor `..` in them. An entry whose path would lead
/// outside makes the whole package an error.
pub fn for_each_file(
    package: impl Read,
    wants: impl Fn(&str) -> bool,
    mut take: impl FnMut(String, Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let mut archive = ar::Archive::new(package);
    while let Some(member) = archive.next_entry() {
        let member = member?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(compression) = name.strip_prefix("data.tar") else { continue };
        let data: Box<dyn Read + '_> = match compression {
            "" => Box::new(member),
            ".xz" => Box::new(xz(member)),
            ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            ".zst" => Box::new(zstd(member)?),
            other => return Err(invalid(format!("it is compressed by {other}, which is unknown"))),
        };
        return each_in_tar(Bounded { inner: data, left: TOTAL_MAX }, &wants, &mut take);
    }
    Err(invalid("it holds no data".into()))
}

/// Undoes the compression that a file's name tells of, if any.
pub(crate) fn decompress_by_name(name: &str, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let compressed = io::Cursor::new(&bytes);
    let mut reader: Box<dyn Read + '_> = match name.rsplit('.').next() {
        Some("xz") => Box::new(xz(compressed)),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(compressed)),
        Some("zst") => Box::new(zstd(compressed)?),
        _ => return Ok(bytes),
    };
    let mut out = Vec::new();
    reader.by_ref().take(FILE_MAX + 1).read_to_end(&mut out)?;
    if out.len() as u64 > FILE_MAX {
        return Err(invalid(format!("{name} expands to more than {FILE_MAX} bytes")));
    }
    Ok(out)
}

fn xz<R: Read>(reader: R) -> impl Read {
    lzma_rust2::XzReader::new_mem_limit(reader, true, DICTIONARY_MAX_KIB)
}

fn zstd<R: Read>(reader: R) -> io::Result<impl Read> {
    let mut decoder = ruzstd::decoding::FrameDecoder::new();
    decoder.set_max_window_size(WINDOW_MAX);
    ruzstd::decoding::StreamingDecoder::new_with_decoder(reader, decoder)
        .map_err(|e| invalid(format!("its zstd data is damaged: {e}")))
}

fn each_in_tar(
    data: impl Read,
    wants: &impl Fn(&str) -> bool,
    take: &mut impl FnMut(String, Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let mut archive = tar::Archive::new(data);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = normalise(&entry.path_bytes())?;
        if !entry.header().entry_type().is_file() || !wants(&path) {
            continue;
        }
        let size = entry.size();
        if size > FILE_MAX {
            return Err(invalid(format!("{path} has {size} bytes, more than {FILE_MAX}")));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(invalid(format!("{path} is cut short")));
        }
        take(path, bytes)?;
    }
    Ok(())
}

/// `./boot/vmlinuz` as `boot/vmlinuz`.
fn normalise(raw: &[u8]) -> io::Result<String> {
    let refuse =
        |why: &str| Err(invalid(format!("its entry {:?} {why}", String::from_utf8_lossy(raw))));
    let Ok(text) = std::str::from_utf8(raw) else { return refuse("has no UTF-8 name") };
    if text.starts_with('/') {
        return refuse("has an absolute path");
    }
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return refuse("leads out of the package"),
            _ => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Like [`io::Take`], but running out is an error and not an end.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => return Err(invalid(format!("it expands to more than {TOTAL_MAX} bytes"))),
        }
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A package as `dpkg-deb` would make it.
    pub(crate) fn package(data_name: &str, data: &[u8]) -> Vec<u8> {
        let mut builder = ar::Builder::new(Vec::new());
        let mut add = |name: &str, bytes: &[u8]| {
            let header = ar::Header::new(name.into(), bytes.len() as u64);
            builder.append(&header, bytes).unwrap();
        };
        add("debian-binary", b"2.0\n");
        add("control.tar.gz", b"never looked at");
        add(data_name, data);
        builder.into_inner().unwrap()
    }

    pub(crate) fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            // Written by hand: the builder itself refuses the paths that are refused here.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn files_of(package: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for_each_file(
            package,
            |_| true,
            |path, bytes| {
                files.push((path, bytes));
                Ok(())
            },
        )?;
        Ok(files)
    }

    const TWO: &[(&str, &[u8])] = &[("./boot/vmlinuz-6.1", b"kernel"), ("./usr/x", b"")];

    #[test]
    fn reads_plain_and_gzip() {
        let want = vec![
            ("boot/vmlinuz-6.1".to_string(), b"kernel".to_vec()),
            ("usr/x".to_string(), vec![]),
        ];
        assert_eq!(files_of(&package("data.tar", &tarball(TWO))).unwrap(), want);
        assert_eq!(files_of(&package("data.tar.gz", &gzip(&tarball(TWO)))).unwrap(), want);
    }

    #[test]
    fn reads_zstd() {
        let data = ruzstd::encoding::compress_to_vec(
            tarball(TWO).as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        assert_eq!(files_of(&package("data.tar.zst", &data)).unwrap().len(), 2);
    }

    #[test]
    fn reads_xz() {
        // `xz` of "sarang " twenty times.
        let xz = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00,
            0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x00, 0x8b, 0x00,
            0x0e, 0x5d, 0x00, 0x39, 0x98, 0x4a, 0xaa, 0x9c, 0x17, 0x52, 0xa8, 0x53, 0xa8, 0xef,
            0x68, 0x00, 0x00, 0x00, 0x00, 0x00, 0xcc, 0xa8, 0xee, 0x45, 0x16, 0x89, 0x42, 0x42,
            0x00, 0x01, 0x2a, 0x8c, 0x01, 0x00, 0x00, 0x00, 0x7b, 0xc8, 0xc8, 0xa9, 0xb1, 0xc4,
            0x67, 0xfb, 0x02, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
        ];
        let plain = decompress_by_name("a.ko.xz", xz.to_vec()).unwrap();
        assert_eq!(plain, b"sarang ".repeat(20));
        assert!(decompress_by_name("a.ko.xz", xz[..24].to_vec()).is_err());
        assert_eq!(decompress_by_name("a.ko", b"as it is".to_vec()).unwrap(), b"as it is");
    }

    #[test]
    fn only_what_is_wanted_is_taken() {
        let mut seen = Vec::new();
        for_each_file(
            package("data.tar", &tarball(TWO)).as_slice(),
            |path| path.starts_with("boot/"),
            |path, _| {
                seen.push(path);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, ["boot/vmlinuz-6.1"]);
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["../etc/passwd", "./a/../../b", "/etc/passwd"] {
            let data = tarball(&[(path, b"x")]);
            let error = files_of(&package("data.tar", &data)).unwrap_err().to_string();
            assert!(error.contains("etc/passwd") || error.contains(".."), "{error}");
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let good = package("data.tar.gz", &gzip(&tarball(TWO)));
        for cut in 0..good.len() {
            // A cut in the padding after the last block loses nothing.
            let _ = files_of(&good[..cut]);
        }
        assert!(files_of(&good[..good.len() / 2]).is_err());
        assert!(files_of(b"").is_err());
        assert!(files_of(b"!<arch>\n").is_err());
        assert!(files_of(&package("data.tar.br", b"x")).is_err());
        for at in 8..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            let _ = files_of(&bad);
        }
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("boot/huge").unwrap();
        header.set_size(FILE_MAX + 1);
        header.set_cksum();
        let error = files_of(&package("data.tar", header.as_bytes())).unwrap_err().to_string();
        assert!(error.contains("boot/huge"), "{error}");
        let mut zeros = Bounded { inner: io::repeat(0), left: 100 };
        assert!(io::copy(&mut zeros, &mut io::sink()).is_err());
    }
}
