//! What GRUB would start, from its `grub.cfg`.
//!
//! The file is a script. What `grub-mkconfig` writes for entries has no more of a language than
//! `linux` and `initrd` with their words, which is all that is looked at here: the first entry is the
//! default of nearly all.

use crate::Choice;

/// The first entry that has a kernel.
pub fn default_entry(text: &str) -> Option<Choice> {
    let mut lines = text.lines().map(words).filter(|words| !words.is_empty());
    let is = |word: &str, names: &[&str]| names.contains(&word);
    let kernel = lines
        .by_ref()
        .find(|words| is(&words[0], &["linux", "linuxefi", "linux16"]) && words.len() > 1)?;
    // Of the same entry: before the next kernel, or the end of the block.
    let initrd = lines
        .take_while(|words| !is(&words[0], &["linux", "linuxefi", "linux16", "menuentry", "}"]))
        .find(|words| is(&words[0], &["initrd", "initrdefi", "initrd16"]));
    let mut rest = kernel.into_iter().skip(1);
    Some(Choice {
        kernel: path(&rest.next()?),
        // Several are for microcode first, which is not for guests; the last one is the system's.
        initrd: initrd.and_then(|words| words.into_iter().skip(1).next_back()).map(|w| path(&w)),
        command_line: rest.filter(|word| !word.contains('$')).collect::<Vec<_>>().join(" "),
    })
}

/// Without GRUB's name of the file system: `($root)/boot/vmlinuz`.
fn path(word: &str) -> String {
    let bare = match word.split_once(')') {
        Some((device, rest)) if device.starts_with('(') => rest,
        _ => word,
    };
    format!("/{}", bare.trim_start_matches('/'))
}

/// The words of a line, without quotation marks; none of a comment.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut any) = (String::new(), None, false);
    let mut letters = line.trim().chars();
    while let Some(c) = letters.next() {
        match (quote, c) {
            (Some(mark), c) if c == mark => quote = None,
            (Some('"') | None, '\\') => word.extend(letters.next()),
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (None, '#') if word.is_empty() && !any => break,
            (None, c) if c.is_whitespace() => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (None, c) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Debian's grub-mkconfig writes it, shortened.
    const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  load_env
fi
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux $menuentry_id_option 'gnulinux-simple-9c' {
	load_video
	insmod gzio
	search --no-floppy --fs-uuid --set=root 9cd1
	echo	'Loading Linux 6.1.0-31-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-31-amd64 root=UUID=9cd1 ro  quiet "dyndbg=file a.c +p" $extra
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-31-amd64
}
submenu 'Advanced options' {
	menuentry 'older' {
		linux	/boot/vmlinuz-6.1.0-9-amd64 root=UUID=9cd1 ro single
		initrd	/boot/initrd.img-6.1.0-9-amd64
	}
}
"#;

    #[test]
    fn the_first_entry_of_debian_s_is_taken() {
        let choice = default_entry(DEBIAN).unwrap();
        assert_eq!(choice.kernel, "/boot/vmlinuz-6.1.0-31-amd64");
        assert_eq!(choice.initrd.as_deref(), Some("/boot/initrd.img-6.1.0-31-amd64"));
        assert_eq!(choice.command_line, "root=UUID=9cd1 ro quiet dyndbg=file a.c +p");
    }

    #[test]
    fn devices_and_further_initrds_are_left_out() {
        let text =
            "linuxefi ($root)/vmlinuz a=b\n# initrd /no\ninitrdefi /ucode.img (hd0)/initrd\n";
        let choice = default_entry(text).unwrap();
        assert_eq!((&*choice.kernel, choice.initrd.as_deref()), ("/vmlinuz", Some("/initrd")));
        let none = default_entry("linux /a\n}\nmenuentry x {\ninitrd /b\n}").unwrap();
        assert_eq!((&*none.kernel, none.initrd), ("/a", None));
        assert_eq!(default_entry("menuentry 'linux' {\n echo linux\n}\nlinux\n"), None);
    }

    proptest! {
        #[test]
        fn noise_is_read_to_its_end(text in "[ -~\n\t\\\\'\"$#(){}]{0,200}") {
            default_entry(&format!("linux {text}\ninitrd {text}"));
        }
    }
}
