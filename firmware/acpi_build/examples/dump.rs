//! Writes each table of a board to a file, for `iasl -d`: `dump FOLDER [CPUS]`.

use acpi_build::{Board, Cpu, build};
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("which folder?")?);
    let cpus: u32 = args.next().map_or(Ok(2), |text| text.parse())?;
    let board = Board {
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
