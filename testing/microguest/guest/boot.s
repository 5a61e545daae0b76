# Entries. PVH: 32-bit protected mode without paging, EBX at the start info. The Linux 64-bit
# protocol: long mode with low memory mapped to itself, RSI at boot_params.

.section .note.Xen, "a", @note
.align 4
.long 4, 4, 18                  # name length, descriptor length, XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long start32

.section .boot, "ax"
.code32
.global start32
start32:
    mov esp, offset boot_stack_end
    mov esi, ebx
    mov edi, 1
    # The low 4 GiB mapped to themselves by 2 MiB pages.
    mov eax, offset page_directories
    or eax, 3
    mov ecx, 0
1:  mov [page_directory_pointers + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jne 1b
    mov eax, 0x83
    mov ecx, 0
2:  mov [page_directories + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 2b
    mov eax, offset page_directory_pointers
    or eax, 3
    mov [page_map], eax
    call long_mode
    push 8
    mov eax, offset entered
    push eax
    retf

# Turns long mode on; the caller goes on in compatibility mode.
long_mode:
    mov eax, offset page_map
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620               # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100               # LME
    wrmsr
    mov eax, cr0
    and eax, 0xfffffffb         # EM
    or eax, 0x80000023          # PG, NE, MP... PE
    mov cr0, eax
    lgdt [gdt_pointer]
    ret

.code64
.global start64
start64:
    cli
    xor edi, edi
    lea rsp, [rip + boot_stack_end]
    mov rax, cr4
    or rax, 0x600
    mov cr4, rax
    lgdt [rip + gdt_pointer]
    push 8
    lea rax, [rip + entered]
    push rax
    retfq
entered:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor ebp, ebp
    mov rsp, offset boot_stack_end
    call guest_main
0:  cli
    hlt
    jmp 0b

# Application processors start here: copied to 0x8000, entered in real mode.
.section .rodata, "a"
.global trampoline
trampoline:
.code16
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x0f, 0x01, 0x16      # lgdt [trampoline_gdt]
    .word 0x8000 + trampoline_gdt - trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea            # jmp 24:trampoline32
    .long 0x8000 + trampoline32 - trampoline
    .word 24
.align 8
trampoline_gdt:
    .word 31
    .long gdt
.code32
trampoline32:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    # One after the other: the boot processor waits for each.
    mov esp, offset application_stack_end
    mov eax, offset long_mode
    call eax
    push 8
    mov eax, offset application_entered
    push eax
    retf
.global trampoline_end
trampoline_end:

.section .text
.code64
application_entered:
    mov rsp, offset application_stack_end
    call application_main
0:  cli
    hlt
    jmp 0b

# What compiled code takes for granted.
.global memset, memcpy, memmove, memcmp, bcmp
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
memmove:
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx
    jae memcpy
    mov rax, rdi
    mov rcx, rdx
    lea rdi, [rdi + rdx - 1]
    lea rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
memcmp:
bcmp:
    xor ecx, ecx
3:  cmp rcx, rdx
    je 4f
    movzx eax, byte ptr [rdi + rcx]
    movzx r8d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r8d
    je 3b
    ret
4:  xor eax, eax
    ret

# Vectors 0 to 31 end the guest; the others are noted in last_vector, and counted.
.altmacro
.macro stub number
vector_\number:
.if \number < 32
    mov edi, \number
    mov rsi, rsp
    and rsp, -16
    call exception
.else
    mov dword ptr [rip + last_vector], \number
    lock inc dword ptr [rip + vector_counts + 4 * \number]
    iretq
.endif
.align 32
.endm
.align 32
.global vectors
vectors:
.set n, 0
.rept 256
    stub %n
    .set n, n + 1
.endr

.section .data
.align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 8: 64-bit code
    .quad 0x00cf93000000ffff    # 16: data
    .quad 0x00cf9b000000ffff    # 24: 32-bit code
gdt_pointer:
    .word 31
    .quad gdt

.section .bss
.align 4096
page_map: .skip 4096
page_directory_pointers: .skip 4096
page_directories: .skip 4 * 4096
.skip 65536
boot_stack_end:
.skip 16384
application_stack_end:
.global last_vector, vector_counts
last_vector: .skip 8
vector_counts: .skip 4 * 256
