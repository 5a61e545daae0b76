//! Package sources for another suite, made from those that the host already trusts.
//!
//! No mirror is named here: whatever mirror the host's Debian sources name is asked for the
//! other suite, with the same key ring.

use std::{fs, path::Path};

/// One archive of the host's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Archive {
    uri: String,
    /// The `[...]` of a one-line source (sources.list(5)), without the brackets.
    options: String,
}

/// Text for a `sources.list` with `suites` from the mirror of the host's own Debian suite.
///
/// `None` if the host is not Debian or names no mirror.
pub fn derive(etc: &Path, suites: &[&str]) -> Option<String> {
    let release = fs::read_to_string(etc.join("os-release")).ok()?;
    let field = |name: &str| {
        release.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_matches('"')))
    };
    if field("ID=")? != "debian" {
        return None;
    }
    // A testing or unstable host has no codename of a release, but suites of that name.
    let codename = field("VERSION_CODENAME=").unwrap_or("sid");
    let archive = read_all(etc, codename).into_iter().next()?;
    let options =
        if archive.options.is_empty() { String::new() } else { format!("[{}] ", archive.options) };
    let line = |suite: &&str| format!("deb {options}{} {suite} main\n", archive.uri);
    Some(suites.iter().map(line).collect())
}

fn read_all(etc: &Path, codename: &str) -> Vec<Archive> {
    let apt = etc.join("apt");
    let mut files = vec![apt.join("sources.list")];
    if let Ok(listing) = fs::read_dir(apt.join("sources.list.d")) {
        let mut parts: Vec<_> = listing.flatten().map(|item| item.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut archives = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => archives.extend(one_line(&text, codename)),
            Some("sources") => archives.extend(deb822(&text, codename)),
            _ => {}
        }
    }
    archives
}

fn is_own_suite(suite: &str, codename: &str) -> bool {
    suite == codename || ["stable", "testing", "unstable", "sid"].contains(&suite)
}

/// `deb [options] uri suite component...`
fn one_line(text: &str, codename: &str) -> Vec<Archive> {
    let parse = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let main = words.any(|component| component == "main");
        (main && is_own_suite(suite, codename))
            .then(|| Archive { uri: uri.into(), options: options.trim().into() })
    };
    text.lines().filter_map(parse).collect()
}

/// Paragraphs of `Types:`, `URIs:`, `Suites:`, `Components:`, `Signed-By:`.
fn deb822(text: &str, codename: &str) -> Vec<Archive> {
    let mut archives = Vec::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            paragraph.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name: &str, word: &str| {
            field(name).is_some_and(|value| value.split_whitespace().any(|w| w == word))
        };
        let own = field("Suites")
            .is_some_and(|v| v.split_whitespace().any(|suite| is_own_suite(suite, codename)));
        if !has("Types", "deb") || !has("Components", "main") || !own || has("Enabled", "no") {
            continue;
        }
        let Some(uri) = field("URIs").and_then(|v| v.split_whitespace().next()) else { continue };
        // A key written into the paragraph itself has no form on one line: apt's own then.
        let options = match field("Signed-By") {
            Some(path) if path.starts_with('/') && !path.contains(char::is_whitespace) => {
                format!("signed-by={path}")
            }
            _ => String::new(),
        };
        archives.push(Archive { uri: uri.into(), options });
    }
    archives
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment: with a colon\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\n\
        Signed-By: /usr/share/keyrings/debian.gpg\n\n\
        Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n\
        Components: main\n";

    #[test]
    fn paragraphs() {
        assert_eq!(
            deb822(DEB822, "bookworm"),
            [Archive {
                uri: "http://mirror.example/debian".into(),
                options: "signed-by=/usr/share/keyrings/debian.gpg".into()
            }]
        );
        assert_eq!(deb822(DEB822, "trixie"), []);
        assert_eq!(deb822(&DEB822.replace("Types: deb\n#", "Types: deb-src\n#"), "bookworm"), []);
    }

    #[test]
    fn lines() {
        let text = "# deb http://commented.example bookworm main\n\
            deb https://other.example/apt nodistro main\n\
            deb [arch=amd64 trusted=yes] http://mirror.example/debian bookworm main contrib\n\
            deb http://plain.example/debian stable main\n\
            deb-src http://source.example/debian bookworm main\n";
        let archives = one_line(text, "bookworm");
        assert_eq!(archives.len(), 2);
        assert_eq!(archives[0].options, "arch=amd64 trusted=yes");
        assert_eq!(archives[1].uri, "http://plain.example/debian");
    }

    #[test]
    fn another_suite_from_the_same_mirror() {
        let etc = std::env::temp_dir().join(format!("sarang-etc-{}", std::process::id()));
        fs::create_dir_all(etc.join("apt/sources.list.d")).unwrap();
        fs::write(etc.join("os-release"), "ID=debian\nVERSION_CODENAME=bookworm\n").unwrap();
        fs::write(etc.join("apt/sources.list.d/debian.sources"), DEB822).unwrap();
        assert_eq!(
            derive(&etc, &["bookworm-backports"]).unwrap(),
            "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian \
             bookworm-backports main\n"
        );
        fs::write(etc.join("os-release"), "ID=fedora\n").unwrap();
        assert_eq!(derive(&etc, &["bookworm-backports"]), None);
        fs::remove_dir_all(&etc).unwrap();
    }
}
