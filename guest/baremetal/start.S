/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the boot loader jumps: 32-bit protected mode, no paging, interrupts off, no stack. */
    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002            /* magic number, no flags, checksum */
    .long 0
    .long -0x1badb002

    .text
    .globl _start
_start:
    cld
    movl $stack_end, %esp
    lgdt gdt_pointer            /* the loader's descriptors may be gone */
    ljmp $8, $1f
1:  movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    call guest_main
2:  cli
    hlt
    jmp 2b

    .section .rodata
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff    /* 8: code, 4 GiB from 0 */
    .quad 0x00cf92000000ffff    /* 16: data, 4 GiB from 0 */
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .bss
    .balign 16
    .skip 16384
stack_end:

    .section .note.GNU-stack, "", @progbits
