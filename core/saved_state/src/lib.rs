//! The envelope of saved state: kind, version, payload; everything must be consumed.
//!
//! Everything that a guest could notice is in saved state. A part of a machine (a device,
//! a vCPU) has a *saved type*, apart from its runtime type even where the two look the same,
//! and a [`Schema`]: its kind and its version. [`Writer`] collects parts; [`Reader`] hands
//! each out once, and [`Reader::finish`] fails by name if one remains, so that nothing is
//! forgotten in silence. Restoring constructs or validates before it changes anything.
//!
//! Payloads are CBOR maps with named fields. Saved types say `#[serde(deny_unknown_fields)]`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What a saved type is called, and which shape of it this is.
pub trait Schema: Serialize + DeserializeOwned {
    const KIND: &'static str;
    const VERSION: u16;
}

/// One part of a machine's saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub kind: String,
    /// Which of several of a kind: `0` for a single one.
    pub instance: u32,
    pub version: u16,
    pub payload: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("saved state has no {kind} {instance}")]
    Missing { kind: &'static str, instance: u32 },
    #[error("saved {kind} has version {found}, this build reads version {known}")]
    Version { kind: &'static str, found: u16, known: u16 },
    #[error("saved {kind} is malformed: {reason}")]
    Malformed { kind: &'static str, reason: String },
    #[error("saved state has {kind} {instance}, which this machine has not")]
    Unconsumed { kind: String, instance: u32 },
    #[error("saved state has {kind} {instance} twice")]
    Twice { kind: String, instance: u32 },
}

/// For a value that a saved type's checks refuse.
pub fn malformed<S: Schema>(reason: impl Into<String>) -> Error {
    Error::Malformed { kind: S::KIND, reason: reason.into() }
}

/// Collects the parts of a machine.
#[derive(Debug, Default)]
pub struct Writer {
    parts: Vec<Part>,
}

impl Writer {
    pub fn put<S: Schema>(&mut self, instance: u32, state: &S) {
        let mut payload = Vec::new();
        ciborium::into_writer(state, &mut payload).expect("writing to memory does not fail");
        self.parts.push(Part { kind: S::KIND.into(), instance, version: S::VERSION, payload });
    }

    pub fn finish(self) -> Vec<Part> {
        self.parts
    }
}

/// Hands out the parts of a saved machine, each once.
#[derive(Debug)]
pub struct Reader {
    parts: Vec<Part>,
}

impl Reader {
    pub fn new(parts: Vec<Part>) -> Result<Self, Error> {
        for (i, part) in parts.iter().enumerate() {
            if parts[..i].iter().any(|p| p.kind == part.kind && p.instance == part.instance) {
                return Err(Error::Twice { kind: part.kind.clone(), instance: part.instance });
            }
        }
        Ok(Self { parts })
    }

    pub fn take<S: Schema>(&mut self, instance: u32) -> Result<S, Error> {
        let kind = S::KIND;
        let at = self.parts.iter().position(|p| p.kind == kind && p.instance == instance);
        let part = self.parts.remove(at.ok_or(Error::Missing { kind, instance })?);
        if part.version != S::VERSION {
            return Err(Error::Version { kind, found: part.version, known: S::VERSION });
        }
        ciborium::from_reader(part.payload.as_slice())
            .map_err(|e| Error::Malformed { kind, reason: e.to_string() })
    }

    /// Every part must have been taken.
    pub fn finish(self) -> Result<(), Error> {
        match self.parts.into_iter().next() {
            Some(Part { kind, instance, .. }) => Err(Error::Unconsumed { kind, instance }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Lamp {
        lit: bool,
    }

    impl Schema for Lamp {
        const KIND: &'static str = "lamp";
        const VERSION: u16 = 1;
    }

    fn saved() -> Vec<Part> {
        let mut writer = Writer::default();
        writer.put(0, &Lamp { lit: true });
        writer.finish()
    }

    #[test]
    fn what_was_put_is_taken() {
        let mut reader = Reader::new(saved()).unwrap();
        assert_eq!(reader.take::<Lamp>(0).unwrap(), Lamp { lit: true });
        reader.finish().unwrap();
    }

    #[test]
    fn what_remains_or_is_unknown_is_named() {
        let reader = Reader::new(saved()).unwrap();
        let error = reader.finish().unwrap_err().to_string();
        assert_eq!(error, "saved state has lamp 0, which this machine has not");
        let mut other = saved();
        other[0].version = 2;
        let error = Reader::new(other).unwrap().take::<Lamp>(0).unwrap_err().to_string();
        assert_eq!(error, "saved lamp has version 2, this build reads version 1");
        let mut twice = saved();
        twice.extend(saved());
        assert!(matches!(Reader::new(twice), Err(Error::Twice { .. })));
    }
}
