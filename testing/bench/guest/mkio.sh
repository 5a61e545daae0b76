#!/bin/sh
# mkio.sh BINARY OUT.cpio: what is put behind the default guest's initramfs, whose modules it needs:
# BINARY, and the script that runs it.
set -e
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
mkdir "$d/bin"
cp "$1" "$d/bin/gbench"; cp io.sh "$d/bin/io-bench"; chmod 755 "$d"/bin/*
case $2 in /*) o=$2;; *) o=$PWD/$2;; esac
(cd "$d" && find bin -type f | cpio -o -H newc --quiet > "$o")
