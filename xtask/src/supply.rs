//! Third-party crates, held against `deny.toml`: licences, banned names, foreign sources.
//!
//! `cargo deny` checks the same and more (advisories above all), but is not installed
//! everywhere; this check needs nothing but Cargo.

use crate::tree;
use std::path::Path;

/// Checks every package of the resolved graph.
pub fn check() -> Result<(), String> {
    let deny = tree::read(Path::new("deny.toml"))?;
    let (allowed, banned) = (allowed(&deny), banned(&deny));
    if allowed.is_empty() || banned.is_empty() {
        return Err("deny.toml has no list of allowed licences or of banned crates".to_owned());
    }
    let metadata = tree::metadata(true)?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let mut faults = Vec::new();
    for package in packages.iter().filter(|p| !p["source"].is_null()) {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let (name, version) = (text("name"), text("version"));
        if !satisfied(text("license"), &allowed) {
            let licence = text("license");
            faults.push(format!("{name} {version}: licence `{licence}` is not in deny.toml"));
        }
        if banned.iter().any(|b| b == name) {
            faults.push(format!("{name} {version} is banned by deny.toml"));
        }
        if !text("source").starts_with("registry+https://github.com/rust-lang/crates.io-index") {
            faults.push(format!("{name} {version} is not from crates.io: {}", text("source")));
        }
    }
    tree::verdict("supply", packages.len(), faults)
}

/// The strings of the `allow` list in the section `[licenses]`.
fn allowed(deny: &str) -> Vec<String> {
    let Some((_, section)) = deny.split_once("[licenses]") else { return Vec::new() };
    let Some((_, list)) = section.split_once("allow = [") else { return Vec::new() };
    let list = list.split(']').next().unwrap_or_default();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The names in the `deny` list of the section `[bans]`.
fn banned(deny: &str) -> Vec<String> {
    let Some((_, section)) = deny.split_once("[bans]") else { return Vec::new() };
    let names = section.lines().filter_map(|l| l.trim().strip_prefix("{ name = \""));
    names.filter_map(|l| l.split('"').next()).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be met by allowed licences. `OR` binds weaker than `AND`, as
/// SPDX has it; the old form `A/B` means `A OR B`.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = expression.split_whitespace().collect();
    let mut at = 0;
    let met = any(&tokens, &mut at, allowed);
    met && at == tokens.len()
}

fn any(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = all(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(tokens, at, allowed);
    }
    met
}

fn all(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = term(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        met &= term(tokens, at, allowed);
    }
    met
}

fn term(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let met = any(tokens, at, allowed);
        *at += 1;
        return met;
    }
    let mut name = (*token).to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", tokens.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    allowed.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_are_read() {
        assert_eq!(
            banned("[bans]\ndeny = [\n    { name = \"tokio\", reason = \"x\" },\n]\n"),
            ["tokio"]
        );
    }

    #[test]
    fn expressions() {
        let allowed =
            allowed("[licenses]\nallow = [\n \"MIT\",\n \"Apache-2.0\", \"Unicode-3.0\" ]\n");
        assert_eq!(allowed.len(), 3);
        for good in [
            "MIT",
            "MIT OR GPL-2.0",
            "GPL-2.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "MIT AND Apache-2.0",
        ] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-2.0", "MIT AND GPL-2.0", "Apache-2.0 WITH LLVM-exception", "(MIT"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }
}
