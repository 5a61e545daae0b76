//! What the cache keeps and what it forgets.

use super::*;

fn add(cache: &mut Cache, key: Key, len: u16) -> Span {
    let insn = Insn { end: len, ..semantics::insn::too_long() };
    let bytes = vec![0x90; len.into()];
    let insns = &mut vec![insn];
    cache.add(New { key: Some(key), insns, bytes: &bytes, checked: false }, &|_| true)
}

fn key(start: u64) -> Key {
    Key { start, mode: 2, second: None }
}

#[test]
fn what_is_in_use_grows_to_its_bound() {
    let mut cache = Cache::default();
    cache.resize(1 << 20);
    assert_eq!(cache.in_use(), 0);
    add(&mut cache, key(0), 8);
    // Numbers begin at one; a page's list has the block.
    let one = size_of::<Insn>() + 8 + 2 * size_of::<Block>() + size_of::<u32>();
    assert_eq!(cache.in_use(), one);
    for n in 1..20_000 {
        add(&mut cache, key(8 * n), 8);
    }
    let all = cache.in_use();
    assert!(all > 500 << 10 && all <= 1 << 20, "{all}");
}

#[test]
fn only_what_was_written_is_suspect() {
    let mut cache = Cache::default();
    let (a, b) = (key(0x1000), key(0x1010));
    let first = add(&mut cache, a, 16);
    let second = add(&mut cache, b, 16);
    cache.set_jump(0x5000, 7, first);
    assert_eq!(cache.jump(0x5000, [7, 3]), Some((first, false)));
    assert_eq!(cache.jump(0x5000, [6, 7]), Some((first, true)));
    assert_eq!(cache.jump(0x5000, [6, 8]), None);
    cache.invalidate(&(0x100f..0x1010));
    assert_eq!(cache.find(&a), Some((first, Trust::Suspect)));
    assert_eq!(cache.find(&b), Some((second, Trust::Live)));
    assert_eq!(cache.jump(0x5000, [7, 3]), None);
    cache.revive(first);
    assert_eq!(cache.jump(0x5000, [7, 3]), Some((first, false)));
    cache.forget(first.id);
    assert_eq!((cache.jump(0x5000, [7, 3]), cache.find(&a)), (None, None));
    cache.invalidate(&(0..u64::MAX));
    assert_eq!(cache.find(&b), None);
}

#[test]
fn a_chain_ends_with_its_target() {
    let mut cache = Cache::default();
    let from = add(&mut cache, key(0x1000), 16);
    let to = add(&mut cache, key(0x1010), 16);
    assert_eq!(cache.chained(&cache.insns(from)[0]), None);
    cache.chain(cache.epoch(), from, 0, to);
    assert_eq!(cache.chained(&cache.insns(from)[0]), Some(to));
    cache.invalidate(&(0x1018..0x1019));
    assert_eq!(cache.chained(&cache.insns(from)[0]), None);
    let epoch = cache.epoch();
    cache.clear();
    cache.chain(epoch, from, 0, to);
    assert!(cache.insns(from).is_empty());
}

#[test]
fn an_instruction_across_pages_depends_on_both() {
    for write in [0x1fff..0x2000, 0x7000..0x7001] {
        let mut cache = Cache::default();
        let key = Key { start: 0x1ffe, mode: 2, second: Some(0x7000) };
        let span = add(&mut cache, key, 5);
        cache.invalidate(&(0x7003..0x7008));
        assert_eq!(cache.find(&key), Some((span, Trust::Live)));
        cache.invalidate(&write);
        assert_eq!(cache.find(&key), Some((span, Trust::Suspect)));
        cache.forget(span.id);
        assert_eq!((cache.forgotten, cache.find(&key)), (2, None));
        cache.invalidate(&write);
        let listed = |page: u64| cache.by_page.contains_key(&(page / PAGE));
        assert_eq!((cache.forgotten, listed(write.start)), (1, false));
        cache.sweep();
        assert!(cache.by_page.is_empty());
    }
}

#[test]
fn the_oldest_blocks_make_room() {
    let mut cache = Cache::with_room(4096, 1024);
    let mut old = Span::default();
    for n in 0..20_000 {
        let insns = (0..64).map(|i| Insn { end: i + 1, ..semantics::insn::too_long() });
        let at = key(n * 64);
        let new = New {
            key: Some(at),
            insns: &mut insns.collect(),
            bytes: &[n as u8; 64],
            checked: false,
        };
        let span = cache.add(new, &|_| true);
        assert_eq!((cache.insns(span).len(), cache.bytes(span)), (64, &[n as u8; 64][..]));
        assert_eq!(cache.find(&at), Some((span, Trust::Live)));
        if n % 10 == 0 {
            let before = key((n.max(30) - 30) * 64);
            assert!(cache.find(&before).is_some(), "recent ones are kept");
            assert!(n < 100 || cache.find(&key(0)).is_none(), "old ones are not");
            old = span;
        }
    }
    let listed: usize = cache.by_page.values().map(Vec::len).sum();
    assert!(listed <= 2 * cache.blocks.len() + FORGOTTEN + 1);
    assert!(cache.is_kept(old));
    assert!(cache.blocks.len() <= 1024);
}

#[test]
fn what_has_changed_becomes_hot_anew() {
    let mut cache = Cache::default();
    let span = add(&mut cache, key(0x1000), 4);
    for before in [Heat::Runs(9), Heat::Translated, Heat::Never] {
        cache.heat(span).into_iter().for_each(|heat| *heat = before);
        cache.amend(span, Vec::new(), &[1, 2, 3, 4]);
        assert_eq!(cache.heat(span), Some(&mut Heat::Runs(0)));
        assert_eq!(cache.bytes(span), [1, 2, 3, 4]);
    }
}

/// Whatever kinds of instructions there are, and whatever changes in blocks.
#[test]
fn rare_instructions_are_bounded_too() {
    let mut cache = Cache::default();
    cache.resize(400 << 10);
    let most = cache.most_colds;
    let cold = || {
        let iced = iced_x86::Instruction::default();
        Some(Box::new(Cold { iced, stub: None, fop: 0 }))
    };
    let insn = |i: u16, rare: bool| Insn {
        end: i + 1,
        cold: cold().filter(|_| rare),
        ..semantics::insn::too_long()
    };
    let in_use = |cache: &Cache| {
        let insns = (cache.oldest..cache.next).filter_map(|id| cache.block(id));
        insns.map(|b| count_colds(cache.insns(b.span))).sum::<usize>()
    };
    for n in 0..3000_u64 {
        let mut insns: Vec<Insn> = (0..20).map(|i| insn(i, n % 3 != 0)).collect();
        let (at, bytes) = (key(n * 64), [n as u8; 20]);
        let new = New { key: Some(at), insns: &mut insns, bytes: &bytes, checked: false };
        let span = cache.add(new, &|_| true);
        if n % 5 == 0 {
            let changed = vec![(3, insn(3, n % 2 == 0)), (4, insn(4, false))];
            cache.amend(span, changed, &bytes);
        }
        if n % 7 == 0 {
            let mut insns: Vec<Insn> = (0..20).map(|i| insn(i, n % 2 == 0)).collect();
            cache.soften(span, &mut insns, &bytes, 1);
        }
        assert!(cache.colds <= most + 40, "{} of {most}", cache.colds);
    }
    assert_eq!(cache.colds, in_use(&cache));
    let kept = count_colds(cache.insns.get(0, cache.insns.capacity().min(900)));
    assert!(kept <= cache.colds, "those of dropped blocks are gone");
    cache.clear();
    assert_eq!((cache.colds, in_use(&cache)), (0, 0));
}

#[test]
fn numbers_of_blocks_never_stand_for_others() {
    let mut cache = Cache::with_room(4096, 1024);
    let (from, to) = (add(&mut cache, key(0), 4), add(&mut cache, key(4), 4));
    cache.set_jump(0x5000, 7, to);
    for n in 2..10_000 {
        add(&mut cache, key(n * 4), 4);
    }
    assert_eq!(cache.jump(0x5000, [7, 3]), None);
    assert!(!cache.is_kept(from) && cache.bytes(to).is_empty());
}
