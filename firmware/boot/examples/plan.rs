//! Prints the boot plan of a kernel: `plan KERNEL [INITRD] [--pvh] [--guest] [--vmlinux OUT]`.

use boot::{Bytes, Memory, Protocol, Request, Unpack};
use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut files = Vec::new();
    let (mut protocol, mut unpack, mut vmlinux) = (Protocol::Auto, Unpack::Auto, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--pvh" => protocol = Protocol::Pvh,
            "--guest" => unpack = Unpack::Guest,
            "--vmlinux" => vmlinux = args.next(),
            _ => files.push(fs::read(arg)?),
        }
    }
    let mut files = files.into_iter();
    let kernel = files.next().ok_or("which kernel?")?;
    if let Some(path) = vmlinux {
        fs::write(path, boot::extract_vmlinux(&kernel, 1 << 30)?)?;
    }
    let request = Request {
        initrd: files.next().map(Bytes::from),
        command_line: "console=ttyS0".into(),
        rsdp: Some(0xf_5000),
        protocol,
        unpack,
        ..Request::new(kernel, Memory::low(512 << 20))
    };
    let loaded = boot::load(&request)?;
    println!("{}", loaded.description);
    for segment in &loaded.segments {
        let range = segment.range();
        println!(
            "{:#011x}..{:#011x} {:>10} bytes  {}",
            range.start,
            range.end,
            segment.data.len(),
            segment.what
        );
    }
    Ok(())
}
