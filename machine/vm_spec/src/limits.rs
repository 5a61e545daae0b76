//! The ranges within which a VM can be described.

use crate::{SpecError, format_memory};

/// A VM has at least one virtual CPU.
pub const CPUS_MIN: u32 = 1;
/// Local APIC IDs 0 to 254 in xAPIC format; 255 is the broadcast (SDM Vol. 3A, 11.6.1).
pub const CPUS_MAX: u32 = 255;

/// The least RAM with which any guest gets as far as saying something.
pub const MEMORY_MIN: u64 = 16 << 20;
/// The most RAM: what the board's address map has room for.
pub const MEMORY_MAX: u64 = 256 << 30;
/// RAM comes in whole MiB.
pub const MEMORY_GRANULE: u64 = 1 << 20;
/// Steps in which memory can be more than at the start: the least piece that Linux takes.
pub const MEMORY_STEP: u64 = 128 << 20;
/// The RAM of a VM whose operator did not say.
pub const MEMORY_DEFAULT: u64 = 512 << 20;

/// Bytes of [`crate::VmSpec::append`]: Linux keeps 2048 on x86 with the terminating zero,
/// and the machine adds its own words.
pub const COMMAND_LINE_MAX: usize = 1600;

/// Disks of a VM. With so many virtio disks the PCI bus has places left for some other devices, not
/// for all at once (see [`crate::PCI_MAX`]).
pub const DISKS_MAX: usize = 24;
/// Disks and CD drives of the SATA adapter: its ports.
pub const SATA_MAX: usize = 6;

/// Ports for devices that come later: each has a bus and a place on the root bus.
pub const PORTS_MAX: u32 = 8;

/// A week: longer limits are mistakes in the unit.
const TIMEOUT_MAX_MS: u64 = 7 * 24 * 3600 * 1000;

pub(crate) fn check_ports(ports: u32) -> Result<(), SpecError> {
    if ports <= PORTS_MAX {
        return Ok(());
    }
    let advice = format!("give 0 to {PORTS_MAX}");
    Err(SpecError::new(
        "--ports",
        &ports.to_string(),
        "the board has no place for so many",
        &advice,
    ))
}

pub(crate) fn check_cpus(cpus: u32) -> Result<(), SpecError> {
    let reason = match cpus {
        0 => "a machine has at least one CPU".to_string(),
        CPUS_MIN..=CPUS_MAX => return Ok(()),
        _ => format!("a machine has at most {CPUS_MAX} CPUs"),
    };
    let advice = format!("give {CPUS_MIN} to {CPUS_MAX}");
    Err(SpecError::new("--cpus", &cpus.to_string(), &reason, &advice))
}

/// `most` is what there can be while the VM runs.
pub(crate) fn check_cpus_max(cpus: u32, most: Option<u32>) -> Result<(), SpecError> {
    let Some(most) = most else { return Ok(()) };
    let refuse = |reason: &str, advice: &str| {
        Err(SpecError::new("--cpus", &format!("max={most}"), reason, advice))
    };
    if most > CPUS_MAX {
        let advice = format!("give at most {CPUS_MAX}");
        return refuse(&format!("a machine has at most {CPUS_MAX} CPUs"), &advice);
    }
    if most <= cpus {
        let reason = "this is not more than there are from the start";
        return refuse(reason, "give more, or leave it out");
    }
    Ok(())
}

pub(crate) fn check_memory(bytes: u64) -> Result<(), SpecError> {
    let refuse = |reason: &str| {
        let advice = format!("give {} to {}", format_memory(MEMORY_MIN), format_memory(MEMORY_MAX));
        Err(SpecError::new("--memory", &format_memory(bytes), reason, &advice))
    };
    if bytes < MEMORY_MIN {
        return refuse("this is too little for any guest");
    }
    if bytes > MEMORY_MAX {
        return refuse("this is more than the machine's address map has room for");
    }
    if !bytes.is_multiple_of(MEMORY_GRANULE) {
        return refuse("memory comes in whole MiB");
    }
    Ok(())
}

/// `most` is what there can be while the VM runs.
pub(crate) fn check_memory_max(bytes: u64, most: Option<u64>) -> Result<(), SpecError> {
    let Some(most) = most else { return Ok(()) };
    let shown = format!("max={}", format_memory(most));
    let refuse =
        |reason: &str, advice: &str| Err(SpecError::new("--memory", &shown, reason, advice));
    if most > MEMORY_MAX {
        let advice = format!("give at most {}", format_memory(MEMORY_MAX));
        return refuse("this is more than the machine's address map has room for", &advice);
    }
    if most <= bytes {
        return refuse(
            "this is not more than there is from the start",
            "give more, or leave it out",
        );
    }
    let more = most - bytes;
    if !more.is_multiple_of(MEMORY_STEP) {
        let right = bytes + more / MEMORY_STEP * MEMORY_STEP;
        let right = if right == bytes { bytes + MEMORY_STEP } else { right };
        let advice = match right <= MEMORY_MAX {
            true => format!("give {}", format_memory(right)),
            false => "leave it out".into(),
        };
        return refuse("memory comes in pieces of 128 MiB", &advice);
    }
    Ok(())
}

/// Memory for translated code unless a VM says otherwise, in bytes.
pub const CODE_CACHE_DEFAULT: u64 = 128 << 20;
/// Most memory for translated code, in bytes.
pub const CODE_CACHE_MAX: u64 = 1 << 30;
/// Least that is of use, in bytes.
pub const CODE_CACHE_MIN: u64 = 1 << 20;

/// `shown` is how a refusal names it.
pub(crate) fn check_code_cache(bytes: u64, shown: &str) -> Result<(), SpecError> {
    let reason = match bytes {
        0 | CODE_CACHE_MIN..=CODE_CACHE_MAX => return Ok(()),
        1..CODE_CACHE_MIN => "this is too little for any code",
        _ => "this is more than translated code can use",
    };
    let advice = "give 1M to 1G, or 0 to interpret only";
    Err(SpecError::new("--code-cache", shown, reason, advice))
}

pub(crate) fn check_timeout(milliseconds: Option<u64>) -> Result<(), SpecError> {
    let Some(ms) = milliseconds else { return Ok(()) };
    let reason = match ms {
        0 => "no guest does anything in no time",
        1..=TIMEOUT_MAX_MS => return Ok(()),
        _ => "this is more than a week",
    };
    let advice = "give a time such as 30s, 5m or 2h, or leave the option out";
    Err(SpecError::new("--timeout", &format!("{ms}ms"), reason, advice))
}
