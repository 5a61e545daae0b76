//! `sarang cache`.

use assets::{Cache, Fetcher};
use vm_spec::format_memory;

use crate::{Failure, args::CacheAction, progress::Bar, signals};

pub fn run(action: &CacheAction) -> Result<(), Failure> {
    let cache = Cache::locate()?;
    match action {
        CacheAction::Show => show(&cache),
        CacheAction::Clear => {
            let bytes = cache.clear(&mut Bar::new())?;
            println!("removed {} from {}", mebibytes(bytes), cache.root().display());
            Ok(())
        }
        CacheAction::Fetch { package } => {
            signals::cancel_on_interrupt()?;
            let mut bar = Bar::new();
            let guest = Fetcher { cache: &cache }.refresh(package, &mut bar)?;
            drop(bar);
            println!("{}\n{}", guest.kernel.display(), guest.initrd.display());
            Ok(())
        }
    }
}

fn show(cache: &Cache) -> Result<(), Failure> {
    let entries = cache.entries()?;
    println!("{}", cache.root().display());
    for entry in &entries {
        let name = match &entry.guest {
            Some(guest) => &guest.package,
            None => "left over from another version",
        };
        println!("{:>10}  {name}", mebibytes(entry.bytes));
    }
    if entries.is_empty() {
        println!("empty; `sarang run` or `sarang cache fetch` fills it");
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format_memory(bytes.div_ceil(1 << 20) * (1 << 20))
}
