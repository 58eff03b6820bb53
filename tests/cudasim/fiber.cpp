/*
 * fiber.cpp - a stack per CUDA thread, and jumps between them that sanitizers know of.
 *
 * On x86-64 a jump saves the callee-saved registers and swaps the stack pointer; elsewhere, or with
 * CUDASIM_UCONTEXT, swapcontext does (ten times slower: it asks the kernel for the signal mask).
 */
#include "sim.h"

#include <pthread.h>
#include <sys/mman.h>
#ifdef CUDASIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CUDASIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__) || defined(CUDASIM_UCONTEXT)
#define CUDASIM_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt {

struct stack {
    char *base = nullptr;
    size_t size = 0;
    void *fake = nullptr; /* AddressSanitizer's, while the stack is left */
#ifdef CUDASIM_UCONTEXT
    ucontext_t context;
#else
    void *pointer = nullptr;
#endif
};

namespace {

enum { GUARD = 4096 };

/* Never destroyed: LeakSanitizer looks after the destructors have run. */
std::vector<stack *> &all = *new std::vector<stack *>;
std::vector<stack *> &idle = *new std::vector<stack *>;
stack &own = *new stack; /* of the OS thread that runs the grid */
void (*begin)();

#ifdef CUDASIM_TSAN
std::vector<void *> &fibers = *new std::vector<void *>; /* by thread index, as `all` */
void *own_fiber;
#endif

#ifndef CUDASIM_UCONTEXT
extern "C" void cudasim_switch(void **save, void *to);
asm(R"(
.text
.globl cudasim_switch
.type cudasim_switch,@function
cudasim_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size cudasim_switch,.-cudasim_switch
)");
#endif

stack *new_stack()
{
    stack *s = new stack;
    s->size = config().stack;
    char *memory = (char *)mmap(nullptr, s->size + GUARD, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) trap("no memory for the stack of a CUDA thread", nowhere);
    mprotect(memory, GUARD, PROT_NONE);
    s->base = memory + GUARD;
#ifdef CUDASIM_UCONTEXT
    getcontext(&s->context);
    s->context.uc_stack.ss_sp = s->base;
    s->context.uc_stack.ss_size = s->size;
    s->context.uc_link = nullptr;
    makecontext(&s->context, begin, 0);
#else
    void **top = (void **)(s->base + s->size);
    *--top = nullptr; /* so that the stack pointer is 8 modulo 16 on entry, as after a call */
    *--top = (void *)begin;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    s->pointer = top;
#endif
    all.push_back(s);
    return s;
}

/* Asked for once per OS thread: it reads /proc/self/maps, 1.5 ms each time. */
void describe_own_stack()
{
#ifdef CUDASIM_ASAN
    static thread_local void *base;
    static thread_local size_t size;
    if (!base) {
        pthread_attr_t attributes;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &base, &size);
        pthread_attr_destroy(&attributes);
    }
    own.base = (char *)base;
    own.size = size;
#endif
}

} // namespace

void fibers_open(int count, void (*entry)())
{
    begin = entry;
    describe_own_stack();
#ifdef CUDASIM_TSAN
    /* all of them now: nothing may be allocated by a fiber, which would look like a race on the heap */
    own_fiber = __tsan_get_current_fiber();
    while ((int)fibers.size() < count) {
        fibers.push_back(__tsan_create_fiber(0));
        new_stack();
    }
#else
    (void)count;
#endif
}

stack *stack_for(int index)
{
    if (!stacks_move_on) return all[(size_t)index];
    if (idle.empty()) return new_stack();
    stack *s = idle.back();
    idle.pop_back();
    return s;
}

void stack_done(stack *s)
{
    if (stacks_move_on) idle.push_back(s);
}

void fiber_begin(stack *s)
{
    (void)s;
#ifdef CUDASIM_ASAN
    __sanitizer_finish_switch_fiber(s->fake, nullptr, nullptr);
#endif
}

void fiber_jump(stack *from, stack *to, int index)
{
    (void)index;
    if (!from) from = &own;
#ifdef CUDASIM_TSAN
    __tsan_switch_to_fiber(to ? fibers[(size_t)index] : own_fiber, __tsan_switch_to_fiber_no_sync);
#endif
    if (!to) to = &own;
#ifdef CUDASIM_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->base, to->size);
#endif
#ifdef CUDASIM_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    cudasim_switch(&from->pointer, to->pointer);
#endif
    fiber_begin(from);
}

bool in_guard_page(const void *address)
{
    for (const stack *s : all)
        if ((const char *)address >= s->base - GUARD && (const char *)address < s->base)
            return true;
    return false;
}

} // namespace simt
