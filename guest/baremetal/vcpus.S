/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A firmware that is the whole guest of tests/qemu/test-vcpus.py: each of two processors (there must
 * be two) accesses what it is told to, again and again, with interrupts off and nothing else to do.
 * No BIOS and no stack. Processor N has a job in memory, 32 bytes at 0x1000 + 32 * N, that the test
 * writes while it runs:
 */
    .set JOBS, 0x1000
    .set WHAT, 0                    /* 0: nothing; else these bits, */
    .set WRITES, 1                  /* first the number of the round is written, */
    .set READS, 2                   /* then the same is read, */
    .set MEMORY, 4                  /* from memory, not from a port */
    .set ADDRESS, 4
    .set ROUNDS, 8                  /* done so far */
    .set READ, 12                   /* what was read last, */
    .set DIFFERENT, 16              /* and how often it was not the number of the round */
    .set RUNS, 20                   /* the processor is there */

    .set APIC, 0xfee00000
    .set APIC_ID, APIC + 0x20
    .set APIC_COMMAND, APIC + 0x300
    .set INIT_OTHERS, 0xc4500
    .set START_OTHERS, 0xc46f0      /* at 0xf000:0, which is `other` */

    .text
    .code16
other:
    jmp protect

    .code32
    .globl _start
_start:
    movw $16, %ax
    movw %ax, %ds
    movl APIC_ID, %esi
    shrl $24, %esi
    movl %esi, %edi
    shll $5, %edi
    addl $JOBS, %edi
    testl %esi, %esi
    jnz 1f
    movl $0, JOBS + 32 + RUNS
    movl $INIT_OTHERS, APIC_COMMAND
2:  movl $START_OTHERS, APIC_COMMAND /* until it was ready for it */
    cmpl $0, JOBS + 32 + RUNS
    je 2b
1:  movl $1, RUNS(%edi)

round:
    movl WHAT(%edi), %ebx
    testl %ebx, %ebx
    jz idle
    movl ADDRESS(%edi), %edx
    movl ROUNDS(%edi), %ecx
    testl $MEMORY, %ebx
    jnz memory
    testl $WRITES, %ebx
    jz 1f
    movl %ecx, %eax
    outl %eax, %dx
1:  testl $READS, %ebx
    jz done
    inl %dx, %eax
    jmp compare
memory:
    testl $WRITES, %ebx
    jz 1f
    movl %ecx, (%edx)
1:  testl $READS, %ebx
    jz done
    movl (%edx), %eax
compare:
    movl %eax, READ(%edi)
    cmpl %eax, %ecx
    je done
    incl DIFFERENT(%edi)
done:
    incl ROUNDS(%edi)
    jmp round

idle:
    pause
    jmp round

    .balign 8
gdt:                                /* in ROM, so marked as accessed: nobody can do it later */
    .quad 0
    .quad 0x00cf9b000000ffff        /* 8: code, 4 GiB from 0 */
    .quad 0x00cf93000000ffff        /* 16: data, 4 GiB from 0 */
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .code16
protect:
    lgdtl %cs:gdt_pointer - other
    movl $0x11, %eax                /* no paging; caches on */
    movl %eax, %cr0
    ljmpl $8, $_start

    .org 0xfff0                     /* where the first one begins, at 0xfffffff0 */
    .byte 0xea                      /* ljmp $0xf000, $protect, where the same is: not all assemblers */
    .word protect - other, 0xf000
    .org 0x10000

    .section .note.GNU-stack, "", @progbits
