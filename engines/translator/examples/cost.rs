//! What translating costs: all blocks of an ELF file's code, a few times over.
//!
//! `cargo run --release -p translator --example cost -- FILE [ROUNDS]`

use emit::StubCache;
use iced_x86::{Decoder, DecoderOptions};
use semantics::{CodeSize, Insn, ends_block, features::IsaFeatures, select};
use std::{env, error::Error, fs, sync::Arc, time::Instant};
use translator::{Source, Translator, Width};

const PAGE: usize = 4096;
/// As the interpreter has it.
const MOST: usize = 64;

/// A block: where it is, its bytes, and its instructions.
struct Block {
    at: usize,
    bytes: Vec<u8>,
    insns: Arc<[Insn]>,
}

/// The bytes of an ELF file's executable segments (System V ABI, program header).
fn code(file: &[u8]) -> Vec<u8> {
    let word = |at: usize, n: usize| -> usize {
        let bytes = file.get(at..at + n).unwrap_or_default();
        bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (headers, size, count) = (word(32, 8), word(54, 2), word(56, 2));
    let mut code = Vec::new();
    for at in (0..count).map(|n| headers + n * size) {
        let (kind, flags) = (word(at, 4), word(at + 4, 4));
        if kind == 1 && flags & 1 != 0 {
            let (offset, len) = (word(at + 8, 8), word(at + 32, 8));
            code.extend_from_slice(file.get(offset..offset + len).unwrap_or_default());
        }
    }
    code
}

fn blocks(code: &[u8], stubs: &StubCache) -> Vec<Block> {
    let (mut blocks, mut at) = (Vec::new(), 0);
    while at < code.len() {
        let end = (at / PAGE + 1) * PAGE;
        let own = &code[at..end.min(code.len())];
        let mut decoder = Decoder::with_ip(64, own, at as u64, DecoderOptions::NONE);
        let mut insns = Vec::new();
        while decoder.can_decode() && insns.len() < MOST {
            let start = decoder.position();
            let iced = decoder.decode();
            if iced.is_invalid() {
                break;
            }
            let bytes = &own[start..decoder.position()];
            let mut insn = select(&iced, bytes, CodeSize::Bits64, IsaFeatures::all(), stubs);
            insn.end = decoder.position() as u16;
            insns.push(insn);
            if ends_block(&iced) {
                break;
            }
        }
        let len = insns.last().map_or(0, |i| usize::from(i.end));
        if len > 0 {
            blocks.push(Block { at, bytes: own[..len].into(), insns: insns.into() });
        }
        at += len.max(1);
    }
    blocks
}

fn main() -> Result<(), Box<dyn Error>> {
    let file = fs::read(env::args().nth(1).ok_or("which file?")?)?;
    let rounds = env::args().nth(2).map_or(Ok(3), |n| n.parse())?;
    let stubs = StubCache::new()?;
    let blocks = blocks(&code(&file), &stubs);
    let count: usize = blocks.iter().map(|b| b.insns.len()).sum();
    println!("{} blocks, {count} instructions", blocks.len());
    let translator = Translator::new(512 << 20, IsaFeatures::all(), stubs.clone())?;
    let mut translator = translator.ok_or("the host has not what it takes")?;
    for _ in 0..rounds {
        let (since, mut made) = (Instant::now(), 0);
        for block in &blocks {
            let source = Source {
                insns: &block.insns,
                bytes: &block.bytes,
                linear: block.at as u64,
                start: (block.at % PAGE) as u16,
                version: 2,
                supervisor: false,
                width: Width::Wide,
                registers: [0; 16],
                check: None,
            };
            made += usize::from(translator.translate(&source).is_some());
        }
        let ns = since.elapsed().as_nanos() as f64;
        let (each, insn) = (ns / blocks.len() as f64, ns / count as f64);
        println!("{made} translated, {each:.0} ns a block, {insn:.0} an instruction");
        translator.clear();
    }
    Ok(())
}
