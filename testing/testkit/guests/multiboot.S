# A kernel that is started by Multiboot, in either version: says on the first serial port what it
# was told, and turns the machine off.
#
# cc -m32 -nostdlib -static -no-pie -Wl,-Ttext-segment=0x100000 [-DVERSION=2]

#ifndef VERSION
#define VERSION 1
#endif

    .text
    .globl _start
#if VERSION == 2
    .balign 8
header:
    .long 0xe85250d6, 0, end - header, -(0xe85250d6 + end - header)
    .word 0, 0
    .long 8
end:
#else
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)
#endif

_start:
    mov $stack, %esp
    mov %ebx, %ebp
#if VERSION == 2
    cmp $0x36d76289, %eax
    jne fail
    add $8, %ebp                 # the first tag
tag:
    mov (%ebp), %eax
    test %eax, %eax
    jz off
    cmp $1, %eax                 # command line
    jne 1f
    lea 8(%ebp), %esi
    call line
1:  cmp $3, %eax                 # module
    jne 2f
    mov 8(%ebp), %esi
    call line
2:  mov 4(%ebp), %ecx
    add $7, %ecx
    and $-8, %ecx
    add %ecx, %ebp
    jmp tag
#else
    cmp $0x2badb002, %eax
    jne fail
    mov 16(%ebp), %esi
    call line
    cmpl $1, 20(%ebp)            # modules
    jne fail
    mov 24(%ebp), %esi
    mov (%esi), %esi
    call line
    jmp off
#endif

fail:
    mov $failure, %esi
    call line
off:                             # SLP_TYP 5 and SLP_EN in PM1a_CNT
    mov $0x604, %dx
    mov $(5 << 10 | 1 << 13), %ax
    out %ax, %dx
halt:
    cli
    hlt
    jmp halt

# The text at ESI, to its zero, and the end of the line.
line:
    push %eax
    mov $0x3f8, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  mov $'\n', %al
    out %al, %dx
    pop %eax
    ret

failure:
    .asciz "FAILED"

    .bss
    .balign 16
    .skip 4096
stack:
    .section .note.GNU-stack, "", @progbits
