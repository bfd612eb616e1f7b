/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A firmware that is the whole guest of `outboard check --client` (see
 * tests/conformance/test-check-qemu.py): it uses the device in slot 4 as a driver does, resets the
 * machine, uses it again and halts. No BIOS and no stack, so that a machine takes no time to start.
 * The device: BAR 0 is 8 KiB, the second page of it only reached by messages, and there are the
 * MSI-X table and its PBA; the capability is at 0x40.
 */
    .set CONFIG, 0x80002000         /* bus 0, slot 4 */
    .set BAR, 0xe0000000
    .set MESSAGES, BAR + 0x1100     /* between the table and the PBA */
    .set BEEN_HERE, 0x500           /* memory outlives a reset of the machine */
    .set MAGIC, 0x6f626f62

    .macro config offset, value, write, data
    movl $CONFIG + (\offset & ~3), %eax
    movw $0xcf8, %dx
    outl %eax, %dx
    movl $\value, %eax
    movw $0xcfc + (\offset & 3), %dx
    \write \data, %dx
    .endm

    .text
    .code32
    .globl _start
_start:
    movw $16, %ax
    movw %ax, %ds
    config 0x10, BAR, outl, %eax
    config 0x04, 7, outw, %ax       /* I/O, memory, bus master */
    movl MESSAGES, %ebx
    movl %ebx, MESSAGES
    movl MESSAGES, %ebx
    movl BAR, %ebx                  /* without a message, where it is mapped */
    movl %ebx, BAR

    movl $BAR + 0x1000, %edi
1:  movl $0xfee00000, (%edi)        /* each vector: to processor 0, unmasked */
    movl $0, 4(%edi)
    movl $0x40, 8(%edi)
    movl $0, 12(%edi)
    addl $16, %edi
    cmpl $BAR + 0x1040, %edi
    jne 1b
    config 0x42, 0x8000, outw, %ax  /* MSI-X on */
    movl MESSAGES, %ebx
    config 0x42, 0, outw, %ax
    movl MESSAGES, %ebx

    cmpl $MAGIC, BEEN_HERE
    je 2f
    movl $MAGIC, BEEN_HERE
    movb $6, %al
    movw $0xcf9, %dx
    outb %al, %dx
2:  cli
    hlt
    jmp 2b

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff        /* 8: code, 4 GiB from 0 */
    .quad 0x00cf92000000ffff        /* 16: data, 4 GiB from 0 */
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .code16
protect:
    lgdtl %cs:gdt_pointer - _start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $_start

    .org 0xfff0                     /* where the processor begins, at 0xfffffff0 */
    .byte 0xe9                      /* jmp protect, over the end of the segment: not all assemblers */
    .word protect - _start + 0x10000 - 0xfff3
    .org 0x10000

    .section .note.GNU-stack, "", @progbits
