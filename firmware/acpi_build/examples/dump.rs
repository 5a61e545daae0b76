//! Writes each table of a board to a file, for `iasl -d`: `dump FOLDER [CPUS [PRESENT]]`; with
//! PRESENT, so many of the CPUs are there from the start, and the others may come.

use acpi_build::{Board, Cpu, HotCpus, build};
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("which folder?")?);
    let cpus: u32 = args.next().map_or(Ok(2), |text| text.parse())?;
    let present: Option<usize> = args.next().map(|text| text.parse()).transpose()?;
    let board = Board {
        hot_cpus: present.map(|present| HotCpus {
            present,
            port: 0xcd8,
            events: 0x620,
            events_length: 4,
            event: 2,
        }),
        i8042: true,
        ..Board::new((0..cpus).map(|id| Cpu { uid: id, apic_id: id }).collect())
    };
    let tables = build(&board)?;
    for (at, bytes) in &tables.segments {
        let name = String::from_utf8_lossy(bytes.get(..4).unwrap_or(b"none")).into_owned();
        let name = name.trim().to_lowercase();
        println!("{at:#x} {:>6} bytes {name}", bytes.len());
        fs::write(folder.join(format!("{at:x}.{name}.dat")), bytes)?;
    }
    Ok(())
}
