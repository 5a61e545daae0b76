//! The socket device, as `--vsock` says it.

use std::{fmt, os::unix::ffi::OsStrExt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{SpecError, disk};

const OPTION: &str = "--vsock";
const ADVICE: &str = "give PATH, or PATH,cid=N";
/// The guest's address if none is given: the first that is free.
pub const CID_DEFAULT: u32 = 3;
/// The name of a Unix socket has at most 107 bytes, of which `_` and a port take eleven.
const PATH_MAX: usize = 107 - 11;

/// Streams between programs of the guest and Unix sockets of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address, from 3 to 4294967294.
    pub cid: u32,
    /// The socket to which programs of the host come; those that listen have one each, named
    /// after it with `_` and the port.
    pub path: PathBuf,
}

impl Vsock {
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        let refuse = |reason: &str, advice: &str| {
            Err(SpecError::new(OPTION, &self.to_string(), reason, advice))
        };
        if !(CID_DEFAULT..u32::MAX).contains(&self.cid) {
            return refuse(
                "that is no guest's address; 0 to 2 are others'",
                "give a cid from 3 to 4294967294",
            );
        }
        let name = self.path.as_os_str().as_bytes();
        if name.is_empty() || name.contains(&0) {
            return refuse("the socket has no name", ADVICE);
        }
        if name.len() > PATH_MAX {
            return refuse(
                "the name is too long for sockets that are called after it",
                &format!("give one of at most {PATH_MAX} bytes"),
            );
        }
        Ok(())
    }
}

impl FromStr for Vsock {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: &str| Err(SpecError::new(OPTION, text, reason, ADVICE));
        let (mut cid, mut path) = (None, None);
        for (index, word) in disk::parts(text).iter().enumerate() {
            let twice = match word.split_once('=') {
                Some(("cid", number)) => match number.parse() {
                    Ok(number) => cid.replace(number).is_some(),
                    Err(_) => return refuse("a cid is a number"),
                },
                Some(("path", name)) => path.replace(PathBuf::from(name)).is_some(),
                _ if index == 0 => path.replace(PathBuf::from(word)).is_some(),
                _ => return refuse("there is no such word"),
            };
            if twice {
                return refuse("a word is there twice");
            }
        }
        let vsock = Self { cid: cid.unwrap_or(CID_DEFAULT), path: path.unwrap_or_default() };
        vsock.validate()?;
        Ok(vsock)
    }
}

impl fmt::Display for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display().to_string().replace(',', ",,");
        // One that could be taken for another word.
        let name = if path.contains('=') { "path=" } else { "" };
        write!(f, "{name}{path}")?;
        if self.cid == CID_DEFAULT { Ok(()) } else { write!(f, ",cid={}", self.cid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vsock(cid: u32, path: &str) -> Vsock {
        Vsock { cid, path: path.into() }
    }

    #[test]
    fn it_can_be_said_in_two_ways() {
        for (text, want) in [
            ("/run/vm.sock", vsock(3, "/run/vm.sock")),
            ("/run/vm.sock,cid=7", vsock(7, "/run/vm.sock")),
            ("cid=7,path=/run/vm.sock", vsock(7, "/run/vm.sock")),
            ("path=a=b", vsock(3, "a=b")),
            ("a,,b,cid=4294967294", vsock(u32::MAX - 1, "a,b")),
        ] {
            let parsed: Vsock = text.parse().unwrap();
            assert_eq!(parsed, want);
            assert_eq!(parsed.to_string().parse::<Vsock>().unwrap(), want);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = "x".repeat(97);
        for text in [
            "",
            "cid=3",
            "a,cid=2",
            "a,cid=4294967295",
            "a,cid=x",
            "a,b",
            "a,cid=3,cid=4",
            "a,path=b",
            "path=",
            &long,
        ] {
            let error = text.parse::<Vsock>().expect_err(text);
            assert_eq!(error.option(), OPTION);
            assert!(!error.to_string().contains('\n'));
        }
        assert!(long[1..].parse::<Vsock>().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            if let Ok(vsock) = text.parse::<Vsock>() {
                prop_assert_eq!(vsock.to_string().parse::<Vsock>().unwrap(), vsock);
            }
        }
    }
}
