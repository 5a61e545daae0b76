# A boot sector: reads the second sector of the drive that it comes from, of a floppy too, by the
# BIOS, writes its text to the first serial port, and turns the machine off.
#
# cc -m32 -nostdlib -static -no-pie -Wl,-Ttext=0x7c00,--oformat=binary -DNAME='"..."'

    .code16
    .text
    .globl _start
_start:
    ljmp $0, $start
start:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $0x0201, %ax             # read one sector
    mov $0x7e00, %bx
    mov $0x0002, %cx             # cylinder 0, sector 2
    mov $0, %dh                  # head 0; the drive is in DL
    int $0x13
    jc off
    mov $0x7e00, %si
    mov $0x3f8, %dx
1:  lodsb
    test %al, %al
    jz off
    out %al, %dx
    jmp 1b
off:                             # SLP_TYP 5 and SLP_EN in PM1a_CNT
    mov $0x604, %dx
    mov $(5 << 10 | 1 << 13), %ax
    out %ax, %dx
2:  hlt
    jmp 2b
    .org 510
    .word 0xaa55
    .ascii "started from "
    .asciz NAME
    .org 1440 * 1024
    .section .note.GNU-stack, "", @progbits
