// The code that drives a blank process (x86-64): one system call, or a loop over
// records, each ending in int3. Position independent, uses no stack.
// A record: number, six arguments, flags, answer (struct PuppetRecord in puppet.h).
    .section .rodata
    .balign 16
    .globl baton_puppet_begin, baton_puppet_single, baton_puppet_loop, baton_puppet_spin, baton_puppet_end
baton_puppet_begin:
baton_puppet_single:
    syscall
    int3

// rbx: records, r12: how many, r13: the kept answer.
baton_puppet_loop:
1:  test %r12, %r12
    jz 9f
    mov (%rbx), %rax
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    mov 48(%rbx), %r9
    mov 56(%rbx), %r14
    test $1, %r14                  // kKeptIsFirst
    jz 2f
    mov %r13, %rdi
2:  test $2, %r14                  // kKeptIsFifth
    jz 3f
    mov %r13, %r8
3:  syscall
    mov %rax, 64(%rbx)
    test $4, %r14                  // kKeepAnswer
    jz 4f
    mov %rax, %r13
4:  test $8, %r14                  // kMayFail
    jnz 5f
    cmp $-4095, %rax
    jae 9f
5:  add $72, %rbx
    dec %r12
    jmp 1b
9:  int3

baton_puppet_spin:
    jmp baton_puppet_spin
baton_puppet_end:
    .section .note.GNU-stack,"",@progbits
