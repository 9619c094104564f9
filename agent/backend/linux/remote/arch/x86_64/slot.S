// The injected code of x86-64 (see ../arch.h). Position independent; touches no
// vector state; the thread's own stack pointer stays in place until the end, so
// that a signal handler that gets in between finds the program's own stack.
    .section .rodata
    .balign 16
    .globl baton_slot_begin, baton_slot_single, baton_slot_loop, baton_slot_behind_marker
    .globl baton_slot_data, baton_slot_end
baton_slot_begin:

// One call: the registers hold it already.
baton_slot_single:
    syscall
    mov %rax, %r15
    jmp 3f

// rbx: records, r12: how many, r13: stop at the first error, r14: performed.
baton_slot_loop:
1:  test %r12, %r12
    jz 2f
    mov (%rbx), %rax
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    mov 48(%rbx), %r9
    syscall
    mov %rax, (%rbx)
    inc %r14
    dec %r12
    add $56, %rbx
    cmp $-4095, %rax
    jb 1b
    test %r13, %r13
    jz 1b
2:  mov %r14, %r15

// The marker, and behind it the way back.
3:  mov 80f(%rip), %rax
    mov 81f(%rip), %rdi
    mov 82f(%rip), %rsi
    syscall
baton_slot_behind_marker:
    lea 83f(%rip), %rsp
    popfq
    mov 84f(%rip), %rsp
    mov $14, %eax                  // rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8)
    mov $2, %edi
    lea 85f(%rip), %rsi
    mov $0, %edx
    mov $8, %r10d
    syscall
    mov 87f(%rip), %rbx
    mov 88f(%rip), %rcx
    mov 89f(%rip), %rdx
    mov 90f(%rip), %rsi
    mov 91f(%rip), %rdi
    mov 92f(%rip), %rbp
    mov 93f(%rip), %r8
    mov 94f(%rip), %r9
    mov 95f(%rip), %r10
    mov 96f(%rip), %r11
    mov 97f(%rip), %r12
    mov 98f(%rip), %r13
    mov 99f(%rip), %r14
    mov 100f(%rip), %r15
    mov 101f(%rip), %rax
    jmp *86f(%rip)
    .balign 8
baton_slot_data:                   // in the order of struct SlotData in x86_64.cc
80: .quad 0                        // marker
81: .quad 0
82: .quad 0
83: .quad 0                        // eflags
84: .quad 0                        // rsp
85: .quad 0                        // signal mask
86: .quad 0                        // rip
87: .quad 0                        // rbx
88: .quad 0                        // rcx
89: .quad 0                        // rdx
90: .quad 0                        // rsi
91: .quad 0                        // rdi
92: .quad 0                        // rbp
93: .quad 0                        // r8
94: .quad 0                        // r9
95: .quad 0                        // r10
96: .quad 0                        // r11
97: .quad 0                        // r12
98: .quad 0                        // r13
99: .quad 0                        // r14
100: .quad 0                       // r15
101: .quad 0                       // rax
    .quad 0                        // when it was filled
baton_slot_end:
    .section .note.GNU-stack,"",@progbits
