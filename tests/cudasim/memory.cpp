/*
 * memory.cpp - device and pinned memory.
 *
 * Each device's memory is a piece of address space that may be touched only while a kernel, a copy or
 * a library call runs: the host that dereferences a device address faults, and is told so.  Around
 * every allocation lies a red zone: poisoned for AddressSanitizer, and without it a pattern that is
 * looked at when the allocation is freed.  Memory is full of NaN when it comes and when it goes.
 */
#include "sim.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#ifdef CUDASIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

namespace {

constexpr size_t ALIGN = 256, RED = 512, PAGE = 4096;
constexpr unsigned char PATTERN = 0xa5;

struct memory_of_device {
    char *base = nullptr;
    size_t reserved = 0, top = 0; /* top: pages from there on were never used */
    size_t held = 0;
    std::map<char *, size_t> live; /* address -> bytes asked for */
};

/* Never destroyed: LeakSanitizer looks after the destructors have run. */
std::recursive_mutex &lock = *new std::recursive_mutex;
memory_of_device (&devices)[MAX_DEVICES] = *new memory_of_device[1][MAX_DEVICES];
std::map<char *, size_t> &pinned = *new std::map<char *, size_t>;
int accesses;
thread_local int device;
struct sigaction before[2]; /* SIGSEGV, SIGBUS */

void poison(char *p, size_t bytes)
{
#ifdef CUDASIM_ASAN
    __asan_poison_memory_region(p, bytes);
#else
    memset(p, PATTERN, bytes);
#endif
}

void unpoison(char *p, size_t bytes)
{
#ifdef CUDASIM_ASAN
    __asan_unpoison_memory_region(p, bytes);
#else
    (void)p, (void)bytes;
#endif
}

size_t padded(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

void protect()
{
    for (memory_of_device &m : devices)
        if (m.top && mprotect(m.base, m.top, accesses ? PROT_READ | PROT_WRITE : PROT_NONE)) {
            perror("cudasim: mprotect");
            abort();
        }
}

/* ---- faults ------------------------------------------------------------------------------------- */

void explain(const char *address)
{
    for (memory_of_device &m : devices) {
        if (!m.base || address < m.base || address >= m.base + m.reserved) continue;
        fprintf(stderr, "cudasim: %s device memory at %p",
                accesses ? "a kernel touches unallocated" : "host access to",
                (const void *)address);
        auto next = m.live.upper_bound(const_cast<char *>(address));
        if (next != m.live.begin() && lock.try_lock()) {
            --next;
            fprintf(stderr, ", %zu bytes from the start of an allocation of %zu",
                    (size_t)(address - next->first), next->second);
            lock.unlock();
        }
        fputc('\n', stderr);
    }
    if (in_guard_page(address))
        fprintf(stderr, "cudasim: a CUDA thread overflows its stack (KD_SIM_STACK_KB)\n");
}

/* Explains, and lets the access fault again before who handled it until now. */
void on_fault(int number, siginfo_t *info, void *)
{
    explain((const char *)info->si_addr);
    sigaction(number, &before[number == SIGBUS], nullptr);
}

void watch_faults()
{
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
}

/* A stack for the handler, since the one that overflowed has no room for it. */
void give_signal_stack()
{
    static thread_local char memory[1 << 16];
    stack_t now;
    if (sigaltstack(nullptr, &now) || !(now.ss_flags & SS_DISABLE)) return;
    const stack_t own = { memory, 0, sizeof memory };
    sigaltstack(&own, nullptr);
}

/* As LeakSanitizer, which does not know this memory, does of the heap. */
void report_leaks()
{
#ifdef CUDASIM_ASAN
    size_t count = 0, bytes = 0;
    for (const memory_of_device &m : devices)
        for (const auto &allocation : m.live) count++, bytes += allocation.second;
    if (count == 0 && pinned.empty()) return;
    fprintf(stderr, "cudasim: %zu device allocations (%zu bytes) and %zu pinned ones not freed\n",
            count, bytes, pinned.size());
    _exit(23);
#endif
}

/* ---- allocation --------------------------------------------------------------------------------- */

memory_of_device *open_device(int index)
{
    memory_of_device &m = devices[index];
    if (m.base) return &m;
    static bool first = true;
    if (first) {
        watch_faults();
        atexit(report_leaks);
        first = false;
    }
    m.reserved = 2 * config().memory + ((size_t)64 << 20);
    void *base =
        mmap(nullptr, m.reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    m.base = (char *)base;
    return &m;
}

/* The first gap of `bytes` and red zones on both sides. */
char *find_gap(memory_of_device &m, size_t bytes)
{
    char *at = m.base + RED;
    for (const auto &allocation : m.live) {
        if (allocation.first >= at + bytes + RED) break;
        at = allocation.first + padded(allocation.second) + RED;
    }
    return at + bytes + RED <= m.base + m.reserved ? at : nullptr;
}

void count_bytes(int64_t change)
{
    const uint64_t now = counted.bytes += (uint64_t)change;
    uint64_t most = counted.most_bytes;
    while (most < now && !counted.most_bytes.compare_exchange_weak(most, now)) continue;
}

char *allocate(int index, size_t bytes)
{
    const std::lock_guard<std::recursive_mutex> hold(lock);
    memory_of_device *m = open_device(index);
    if (!m || bytes > config().memory || m->held + bytes > config().memory) return nullptr;
    char *p = find_gap(*m, padded(bytes));
    if (!p) return nullptr;
    const size_t end = (size_t)(p - m->base) + padded(bytes) + RED;
    m->top = std::max(m->top, (end + PAGE - 1) / PAGE * PAGE);
    m->live[p] = bytes;
    m->held += bytes;
    const access open;
    protect(); /* of what is new at the top */
    poison(p - RED, RED);
    unpoison(p, bytes);
    memset(p, 0xff, bytes);
    poison(p + bytes, padded(bytes) - bytes + RED);
    return p;
}

void check_red_zones(const char *p, size_t bytes)
{
#ifdef CUDASIM_ASAN
    (void)p, (void)bytes;
#else
    const size_t after = padded(bytes) - bytes + RED;
    for (size_t i = 0; i < RED + after; i++) {
        const char *at = i < RED ? p - 1 - i : p + bytes + (i - RED);
        if (*(const unsigned char *)at == PATTERN) continue;
        fprintf(stderr,
                "cudasim: out of bounds: %s an allocation of %zu bytes was written, %td bytes from "
                "its start\n",
                at < p ? "before" : "behind", bytes, at - p);
        abort();
    }
#endif
}

memory_of_device *owner_of(const void *p)
{
    for (memory_of_device &m : devices)
        if (m.base && (const char *)p >= m.base && (const char *)p < m.base + m.reserved) return &m;
    return nullptr;
}

bool live(const void *p)
{
    const std::lock_guard<std::recursive_mutex> hold(lock);
    const memory_of_device *m = owner_of(p);
    return m && m->live.count((char *)p);
}

} // namespace

access::access()
{
    const std::lock_guard<std::recursive_mutex> hold(lock);
    give_signal_stack();
    if (accesses++ == 0) protect();
}

access::~access()
{
    const std::lock_guard<std::recursive_mutex> hold(lock);
    if (--accesses == 0) protect();
}

place place_of(const void *p)
{
    const std::lock_guard<std::recursive_mutex> hold(lock);
    if (owner_of(p)) return place::DEVICE;
    auto next = pinned.upper_bound((char *)p);
    if (next == pinned.begin()) return place::PAGEABLE;
    --next;
    return (char *)p < next->first + next->second ? place::PINNED : place::PAGEABLE;
}

bool inside_allocation(const void *p, size_t bytes)
{
    const std::lock_guard<std::recursive_mutex> hold(lock);
    memory_of_device *m = owner_of(p);
    if (!m) return false;
    auto next = m->live.upper_bound((char *)p);
    if (next == m->live.begin()) return false;
    --next;
    return (char *)p + bytes <= next->first + next->second;
}

void free_now(void *p)
{
    const std::lock_guard<std::recursive_mutex> hold(lock);
    memory_of_device *m = owner_of(p);
    const size_t bytes = m->live[(char *)p];
    const access open;
    check_red_zones((char *)p, bytes);
    memset(p, 0xff, bytes);
#ifdef CUDASIM_ASAN
    poison((char *)p, bytes);
#endif
    m->live.erase((char *)p);
    m->held -= bytes;
    count_bytes(-(int64_t)bytes);
}

int current_device() { return device; }

int device_of(const void *p) { return (int)(owner_of(p) - devices); }

} // namespace simt

extern "C" {

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    SIM_CALL_OR(cudaErrorMemoryAllocation);
    if (!out) return simt::answer(cudaErrorInvalidValue);
    if (const cudaError_t error = simt::forbidden_in_capture()) return simt::answer(error);
    simt::counted.allocations++;
    *out = nullptr;
    if (bytes == 0) return cudaSuccess;
    *out = simt::allocate(simt::device, bytes);
    if (!*out) return simt::answer(cudaErrorMemoryAllocation);
    simt::count_bytes((int64_t)bytes);
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    SIM_CALL();
    if (!p) return cudaSuccess;
    if (const cudaError_t error = simt::forbidden_in_capture()) return simt::answer(error);
    if (!simt::live(p)) return simt::answer(cudaErrorInvalidValue);
    simt::finish_device(simt::device_of(p)); /* as CUDA does, before the memory goes */
    simt::counted.frees++;
    simt::free_now(p);
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **out, size_t bytes, cudaStream_t stream)
{
    if (!simt::stream_of(stream)) return simt::answer(cudaErrorInvalidResourceHandle);
    return cudaMalloc(out, bytes);
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream)
{
    SIM_CALL();
    if (!p) return cudaSuccess;
    if (!simt::live(p)) return simt::answer(cudaErrorInvalidValue);
    simt::counted.frees++;
    return simt::answer(simt::enqueue(stream, simt::node::LIBRARY, [p] { simt::free_now(p); }));
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    SIM_CALL_OR(cudaErrorMemoryAllocation);
    if (const cudaError_t error = simt::forbidden_in_capture()) return simt::answer(error);
    *out = nullptr;
    if (posix_memalign(out, simt::ALIGN, bytes ? bytes : 1))
        return simt::answer(cudaErrorMemoryAllocation);
    memset(*out, 0xff, bytes);
    simt::counted.host_allocations++;
    const std::lock_guard<std::recursive_mutex> hold(simt::lock);
    simt::pinned[(char *)*out] = bytes ? bytes : 1;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes) { return cudaHostAlloc(out, bytes, 0); }

cudaError_t cudaFreeHost(void *p)
{
    SIM_CALL();
    if (!p) return cudaSuccess;
    if (const cudaError_t error = simt::forbidden_in_capture()) return simt::answer(error);
    simt::finish_device(simt::device);
    const std::lock_guard<std::recursive_mutex> hold(simt::lock);
    if (!simt::pinned.erase((char *)p)) return simt::answer(cudaErrorInvalidValue);
    simt::counted.host_frees++;
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    SIM_CALL();
    const std::lock_guard<std::recursive_mutex> hold(simt::lock);
    *total = simt::config().memory;
    *available = *total - simt::devices[simt::device].held;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *out, const void *p)
{
    SIM_CALL();
    *out = {};
    const simt::place place = simt::place_of(p);
    out->device = -1;
    if (place == simt::place::PAGEABLE) return cudaSuccess;
    out->type = place == simt::place::DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    out->device = 0;
    if (place == simt::place::DEVICE)
        out->device = simt::device_of(p);
    else
        out->hostPointer = const_cast<void *>(p);
    out->devicePointer = const_cast<void *>(p);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    SIM_CALL();
    *count = simt::config().devices;
    return *count ? cudaSuccess : simt::answer(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int index)
{
    SIM_CALL();
    if (index < 0 || index >= simt::config().devices) return simt::answer(cudaErrorInvalidDevice);
    simt::device = index;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *index)
{
    SIM_CALL();
    *index = simt::device;
    return cudaSuccess;
}

} // extern "C"
