//! What the host must be for Sarang to run at all.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Failure;

/// Lets this process open as many files as it ever may; whether that is so many.
pub fn allow_files(wanted: u64) -> bool {
    let mut limit = getrlimit(Resource::Nofile);
    // No limit is more than any.
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    if enough(limit.current) {
        return true;
    }
    limit.current = match limit.maximum {
        Some(most) => Some(most.min(wanted)),
        None => Some(wanted),
    };
    setrlimit(Resource::Nofile, limit).is_ok() && enough(limit.current)
}

/// Refuses a processor below x86-64-v2, which the engines take for granted
/// (x86-64 psABI, 3.1.1).
pub fn check_floor() -> Result<(), Failure> {
    match missing_features() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Failure::host(format!(
            "host processor: it lacks {}, and Sarang needs x86-64-v2; use a host from about 2009 \
             or later",
            missing.join(", ")
        ))),
    }
}

fn missing_features() -> Vec<&'static str> {
    let features = [
        ("CMPXCHG16B", is_x86_feature_detected!("cmpxchg16b")),
        ("POPCNT", is_x86_feature_detected!("popcnt")),
        ("SSE3", is_x86_feature_detected!("sse3")),
        ("SSSE3", is_x86_feature_detected!("ssse3")),
        ("SSE4.1", is_x86_feature_detected!("sse4.1")),
        ("SSE4.2", is_x86_feature_detected!("sse4.2")),
    ];
    features.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
}
