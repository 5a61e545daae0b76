//! Quantities as people write them: `512M`, `1GiB`, `30s`.

use crate::{SpecError, limits};

/// Parses a size of memory: a whole number with a binary unit, `K`, `M`, `G` or `T`, which
/// may be followed by `iB`. Decimal units (`MB`) and bare numbers are refused rather than
/// guessed at.
pub fn parse_memory(text: &str) -> Result<u64, SpecError> {
    let bytes = parse_size("--memory", text)?;
    limits::check_memory(bytes)?;
    Ok(bytes)
}

/// Parses what there is from the start and what there can be: `1G,max=4G`.
pub fn parse_memory_max(text: &str) -> Result<(u64, Option<u64>), SpecError> {
    let (start, most) = match text.split_once(',') {
        None => return Ok((parse_memory(text)?, None)),
        Some((start, rest)) => (start, rest.strip_prefix("max=")),
    };
    let Some(most) = most else {
        let advice = "give a size, or SIZE,max=SIZE";
        return Err(SpecError::new("--memory", text, "there is no such word", advice));
    };
    let (start, most) = (parse_memory(start)?, parse_size("--memory", most)?);
    limits::check_memory_max(start, Some(most))?;
    Ok((start, Some(most)))
}

/// Parses the size of the memory for translated code, and checks its range; `0` is none.
pub fn parse_code_cache(text: &str) -> Result<u64, SpecError> {
    let bytes = if text == "0" { 0 } else { parse_size("--code-cache", text)? };
    limits::check_code_cache(bytes, text)?;
    Ok(bytes)
}

fn parse_size(option: &str, text: &str) -> Result<u64, SpecError> {
    let refuse = |reason: &str| {
        Err(SpecError::new(option, text, reason, "give a size such as 512M, 2G or 1GiB"))
    };
    let Some((number, unit)) = split(text) else { return refuse("this is not a size") };
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "" => return refuse("the unit is missing"),
        "kb" | "mb" | "gb" | "tb" => return refuse("memory is counted in binary units"),
        _ => return refuse("there is no such unit"),
    };
    let Some(bytes) = number.checked_mul(1 << shift) else {
        return refuse("this is more than a machine can address");
    };
    Ok(bytes)
}

/// Parses a number of virtual CPUs.
pub fn parse_cpus(text: &str) -> Result<u32, SpecError> {
    match text.parse::<u64>() {
        // A number beyond `u32` is a number: the range check gives the better answer.
        Ok(cpus) => {
            let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
            limits::check_cpus(cpus)?;
            Ok(cpus)
        }
        Err(_) => {
            let advice = format!("give {} to {}", limits::CPUS_MIN, limits::CPUS_MAX);
            Err(SpecError::new("--cpus", text, "this is not a number of CPUs", &advice))
        }
    }
}

/// Parses how many there are from the start and how many there can be: `1,max=4`.
pub fn parse_cpus_max(text: &str) -> Result<(u32, Option<u32>), SpecError> {
    let (start, most) = match text.split_once(',') {
        None => return Ok((parse_cpus(text)?, None)),
        Some((start, rest)) => (start, rest.strip_prefix("max=")),
    };
    let Some(most) = most else {
        let advice = "give a number of CPUs, or N,max=N";
        return Err(SpecError::new("--cpus", text, "there is no such word", advice));
    };
    let (start, most) = (parse_cpus(start)?, parse_cpus(most)?);
    limits::check_cpus_max(start, Some(most))?;
    Ok((start, Some(most)))
}

/// Parses a number of ports.
pub fn parse_ports(text: &str) -> Result<u32, SpecError> {
    let advice = format!("give 0 to {}", limits::PORTS_MAX);
    let wrong = |_| SpecError::new("--ports", text, "this is not a number of ports", &advice);
    let ports = text.parse::<u64>().map_err(wrong)?;
    let ports = u32::try_from(ports).unwrap_or(u32::MAX);
    limits::check_ports(ports)?;
    Ok(ports)
}

/// Parses a time limit in milliseconds: a whole number with `ms`, `s`, `m` or `h`.
pub fn parse_timeout(text: &str) -> Result<u64, SpecError> {
    let refuse = |reason: &str| {
        Err(SpecError::new("--timeout", text, reason, "give a time such as 30s, 500ms, 5m or 2h"))
    };
    let Some((number, unit)) = split(text) else { return refuse("this is not a time") };
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => return refuse("the unit is missing"),
        _ => return refuse("there is no such unit"),
    };
    let Some(ms) = number.checked_mul(factor) else { return refuse("this is too long a time") };
    limits::check_timeout(Some(ms))?;
    Ok(ms)
}

/// Writes a size of memory in the largest unit that divides it.
pub fn format_memory(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_can_be_more() {
        assert_eq!(parse_memory_max("1G"), Ok((1 << 30, None)));
        assert_eq!(parse_memory_max("1G,max=4G"), Ok((1 << 30, Some(4 << 30))));
        for text in
            ["1G,", "1G,4G", "1G,max=", "1G,max=1G", "1G,max=512M", "1G,max=1100M", "max=1G"]
        {
            assert_eq!(parse_memory_max(text).expect_err(text).option(), "--memory");
        }
        let advice = parse_memory_max("1G,max=2000M").unwrap_err().to_string();
        assert!(advice.contains("give 1920 MiB"), "{advice}");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("2G", 2 << 30),
            ("1GiB", 1 << 30),
            ("1 GiB", 1 << 30),
            ("65536K", 64 << 20),
            ("65536KiB", 64 << 20),
            ("256G", 256 << 30),
            ("16M", 16 << 20),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "-1M",
            "1.5G",
            "512",
            "512MB",
            "512X",
            "1M",
            "15M",
            "257G",
            "1T",
            "16385K",
            "0M",
            "99999999999999999999M",
            "18446744073709551615T",
            "512M ",
            "²G",
        ] {
            let error = parse_memory(text).expect_err(text);
            assert_eq!(error.option(), "--memory");
            assert!(error.to_string().contains("; give "), "{error}");
        }
    }

    #[test]
    fn one_mebibyte_names_the_range() {
        let line = parse_memory("1M").unwrap_err().to_string();
        assert_eq!(
            line,
            "--memory 1 MiB: this is too little for any guest; give 16 MiB to 256 GiB"
        );
    }

    #[test]
    fn code_caches() {
        for (text, bytes) in [("0", 0), ("1M", 1 << 20), ("65536K", 64 << 20), ("1G", 1 << 30)] {
            assert_eq!(parse_code_cache(text), Ok(bytes), "{text}");
        }
        for text in ["", "1", "1023K", "2G", "1048577K", "M", "128MB"] {
            assert_eq!(parse_code_cache(text).expect_err(text).option(), "--code-cache");
        }
        assert_eq!(
            parse_code_cache("900G").unwrap_err().to_string(),
            "--code-cache 900G: this is more than translated code can use; give 1M to 1G, or 0 \
             to interpret only"
        );
    }

    #[test]
    fn cpu_counts() {
        assert_eq!(parse_cpus("1"), Ok(1));
        assert_eq!(parse_cpus("255"), Ok(255));
        for text in ["0", "256", "4096", "4294967297", "-1", "two", "", "1.0"] {
            assert_eq!(parse_cpus(text).expect_err(text).option(), "--cpus");
        }
    }

    #[test]
    fn cpus_that_can_be_more() {
        assert_eq!(parse_cpus_max("2"), Ok((2, None)));
        assert_eq!(parse_cpus_max("1,max=255"), Ok((1, Some(255))));
        for text in ["2,", "2,4", "2,max=", "2,max=2", "2,max=1", "1,max=256", "max=2", "0,max=2"] {
            let error = parse_cpus_max(text).expect_err(text);
            assert_eq!(error.option(), "--cpus");
            assert!(error.to_string().contains("; give "), "{error}");
        }
    }

    #[test]
    fn times() {
        for (text, ms) in
            [("30s", 30_000), ("500ms", 500), ("5m", 300_000), ("5min", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse_timeout(text), Ok(ms), "{text}");
        }
        for text in ["", "s", "30", "0s", "1d", "-1s", "1.5s", "999999h", "18446744073709551615h"] {
            assert_eq!(parse_timeout(text).expect_err(text).option(), "--timeout");
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit() {
        assert_eq!(format_memory(512 << 20), "512 MiB");
        assert_eq!(format_memory(1 << 30), "1 GiB");
        assert_eq!(format_memory(1025), "1025 bytes");
        assert_eq!(format_memory(0), "0 bytes");
    }
}
