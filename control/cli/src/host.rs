//! What the host must be for Sarang to run at all.

use crate::Failure;

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
