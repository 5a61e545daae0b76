//! Paths of nodes.

use crate::Error;
use xen_abi::xs_wire::{ABSOLUTE_PATH_MAX, RELATIVE_PATH_MAX};

/// An absolute path, checked: `/`, or names that each follow a slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    pub fn root() -> Self {
        Self("/".into())
    }

    /// What a request says: one that does not begin with a slash is below `home`.
    pub fn parse(text: &str, home: &str) -> Result<Self, Error> {
        let relative = !text.starts_with('/');
        let most = if relative { RELATIVE_PATH_MAX } else { ABSOLUTE_PATH_MAX };
        if text.is_empty() || text.len() > most {
            return Err(Error::Invalid);
        }
        let whole = if relative { format!("{home}/{text}") } else { text.to_owned() };
        let known = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
        let right = whole.chars().all(known)
            && !whole.contains("//")
            && (whole == "/" || !whole.ends_with('/'));
        if right && whole.len() <= ABSOLUTE_PATH_MAX {
            Ok(Self(whole))
        } else {
            Err(Error::Invalid)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The node that this one is in; none of the root.
    pub fn parent(&self) -> Option<Self> {
        let (parent, name) = self.0.rsplit_once('/')?;
        (!name.is_empty())
            .then(|| if parent.is_empty() { Self::root() } else { Self(parent.into()) })
    }

    /// The last name.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// Whether this is `other` or below it.
    pub fn is_within(&self, other: &Self) -> bool {
        match self.0.strip_prefix(&other.0) {
            Some(rest) => rest.is_empty() || other.0 == "/" || rest.starts_with('/'),
            None => false,
        }
    }
}
