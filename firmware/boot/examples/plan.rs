//! Prints the boot plan of a kernel:
//! `plan KERNEL [INITRD] [--pvh|--linux|--multiboot] [--guest] [--append TEXT] [--vmlinux OUT] [--segments FOLDER]`.

use boot::{Bytes, Memory, Protocol, Request, Unpack};
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut files = Vec::new();
    let (mut protocol, mut unpack) = (Protocol::Auto, Unpack::Auto);
    let (mut vmlinux, mut folder, mut append) = (None, None, String::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--pvh" => protocol = Protocol::Pvh,
            "--linux" => protocol = Protocol::Linux,
            "--multiboot" => protocol = Protocol::Multiboot,
            "--guest" => unpack = Unpack::Guest,
            "--vmlinux" => vmlinux = args.next(),
            "--segments" => folder = args.next().map(PathBuf::from),
            "--append" => append = args.next().unwrap_or_default(),
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
        command_line: append,
        rsdp: Some(0xe_0000),
        protocol,
        unpack,
        ..Request::new(kernel, Memory::low(512 << 20))
    };
    let loaded = boot::load(&request)?;
    println!("{}", loaded.description);
    println!("{:x?}", loaded.vcpu.regs);
    for segment in &loaded.segments {
        let range = segment.range();
        println!(
            "{:#011x}..{:#011x} {:>10} bytes  {}",
            range.start,
            range.end,
            segment.data.len(),
            segment.what
        );
        if let Some(folder) = &folder {
            fs::write(folder.join(format!("{:x}", segment.gpa)), segment.bytes())?;
        }
    }
    Ok(())
}
