#include "support/interpose.h"

#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifdef __GLIBC__

#include <errno.h>
#include <execinfo.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* Where a sanitizer's heap stands before the C library's already, the linker turns the calls of our own
 * objects aside (--wrap, tests/CMakeLists.txt); what libraries ask for is not seen there. */
#ifdef SANITIZED
#define OURS(name) __wrap_##name
#define REAL(name) __real_##name
#else
/* glibc's own, under the names that it exports for this. */
#define OURS(name)           name
#define REAL(name)           __libc_##name
#define __libc_aligned_alloc __libc_memalign
#endif

extern void *REAL(malloc)(size_t bytes);
extern void *REAL(calloc)(size_t count, size_t bytes);
extern void *REAL(realloc)(void *memory, size_t bytes);
extern void *REAL(aligned_alloc)(size_t align, size_t bytes);
extern void REAL(free)(void *memory);

void *OURS(malloc)(size_t bytes);
void *OURS(calloc)(size_t count, size_t bytes);
void *OURS(realloc)(void *old, size_t bytes);
void *OURS(aligned_alloc)(size_t align, size_t bytes);
void OURS(free)(void *memory);

static atomic_llong live_bytes, live_blocks, calls, library_calls, aligned_bytes;

/* ---- who asks --------------------------------------------------------------------------------- */

/* kd is C: libstdc++ takes memory for libdnnl alone. */
static const char *const libraries[] = { "libdnnl", "libstdc++", "libgomp", "libomp" };

enum { MAX_RANGES = 16 };
static struct {
    uintptr_t begin, end;
} ranges[MAX_RANGES];
static int range_count;
static pthread_once_t ranges_found = PTHREAD_ONCE_INIT;

static int add_ranges(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size, (void)context;
    bool wanted = false;
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++)
        wanted |= strstr(info->dlpi_name, libraries[i]) != NULL;
    if (!wanted) return 0;
    for (int i = 0; i < info->dlpi_phnum && range_count < MAX_RANGES; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        ranges[range_count].begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        ranges[range_count].end = ranges[range_count].begin + info->dlpi_phdr[i].p_memsz;
        range_count++;
    }
    return 0;
}

static void find_ranges(void) { dl_iterate_phdr(add_ranges, NULL); }

static bool is_library(const void *caller)
{
    for (int i = 0; i < range_count; i++)
        if ((uintptr_t)caller >= ranges[i].begin && (uintptr_t)caller < ranges[i].end) return true;
    return false;
}

/* ---- refusing --------------------------------------------------------------------------------- */

/* A site is told by what called next, not by the whole way from main. */
enum { FRAMES = 20, OWN_FRAMES = 3, SITE_FRAMES = OWN_FRAMES + 6 };

static test_heap_fault fault;
static atomic_bool armed;
static atomic_llong asked;
static void *refused_by[FRAMES];
static int refused_frames;

static uint64_t site_of(void)
{
    void *frames[SITE_FRAMES];
    const int count = backtrace(frames, SITE_FRAMES);
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (int i = OWN_FRAMES; i < count; i++) hash = (hash ^ (uintptr_t)frames[i]) * 1099511628211u;
    return hash;
}

/* Whether this call gets nothing.  One branch where nothing is armed: there the suites of a step count
 * what they time. */
static bool refuses(const void *caller)
{
    if (!atomic_load_explicit(&armed, memory_order_relaxed)) return false;
    if (is_library(caller)) return false;
    const long long at = atomic_fetch_add(&asked, 1);
    if (fault.sites && at < fault.room) fault.sites[at] = site_of();
    if (fault.at < 0 || at < fault.at || (at > fault.at && !fault.for_good)) return false;
    if (at == fault.at) refused_frames = backtrace(refused_by, FRAMES);
    errno = ENOMEM;
    return true;
}

bool test_heap_arm(const test_heap_fault *wanted)
{
    void *frame;
    pthread_once(&ranges_found, find_ranges);
    (void)backtrace(&frame, 1); /* the first one takes memory */
    fault = *wanted;
    refused_frames = 0;
    atomic_store(&asked, 0);
    atomic_store(&armed, true);
    return true;
}

int64_t test_heap_disarm(void)
{
    atomic_store(&armed, false);
    return atomic_load(&asked);
}

void test_heap_print_refused(void)
{
    backtrace_symbols_fd(refused_by, refused_frames, STDERR_FILENO);
}

/* ---- counting --------------------------------------------------------------------------------- */

static void *given(void *memory, const void *caller)
{
    if (!memory) return NULL;
    atomic_fetch_add(&live_bytes, (long long)malloc_usable_size(memory));
    atomic_fetch_add(&live_blocks, 1);
    atomic_fetch_add(is_library(caller) ? &library_calls : &calls, 1);
    return memory;
}

static void taken(void *memory)
{
    if (!memory) return;
    atomic_fetch_sub(&live_bytes, (long long)malloc_usable_size(memory));
    atomic_fetch_sub(&live_blocks, 1);
}

#define CALLER __builtin_return_address(0)

void *OURS(malloc)(size_t bytes)
{
    return refuses(CALLER) ? NULL : given(REAL(malloc)(bytes), CALLER);
}

void *OURS(calloc)(size_t count, size_t bytes)
{
    return refuses(CALLER) ? NULL : given(REAL(calloc)(count, bytes), CALLER);
}

void *OURS(aligned_alloc)(size_t align, size_t bytes)
{
    atomic_fetch_add(&aligned_bytes, (long long)bytes);
    return refuses(CALLER) ? NULL : given(REAL(aligned_alloc)(align, bytes), CALLER);
}

void *OURS(realloc)(void *old, size_t bytes)
{
    if (refuses(CALLER)) return NULL; /* `old` is as it was */
    const long long before = old ? (long long)malloc_usable_size(old) : 0;
    void *memory = REAL(realloc)(old, bytes);
    if (!memory && bytes) return NULL;
    if (old) {
        atomic_fetch_sub(&live_bytes, before);
        atomic_fetch_sub(&live_blocks, 1);
    }
    return given(memory, CALLER);
}

void OURS(free)(void *memory)
{
    taken(memory);
    REAL(free)(memory);
}

#ifdef SANITIZED

char *__wrap_strdup(const char *text);
char *__wrap_strdup(const char *text)
{
    const size_t bytes = strlen(text) + 1;
    char *copy = refuses(CALLER) ? NULL : REAL(malloc)(bytes);
    return copy ? memcpy(copy, text, bytes) : NULL;
}

bool test_heap_read(test_heap *heap)
{
    *heap = (test_heap){ 0 };
    return false;
}

#else

void *memalign(size_t align, size_t bytes)
{
    return refuses(CALLER) ? NULL : given(__libc_memalign(align, bytes), CALLER);
}

int posix_memalign(void **out, size_t align, size_t bytes)
{
    void *memory = refuses(CALLER) ? NULL : given(__libc_memalign(align, bytes), CALLER);
    if (!memory) return ENOMEM;
    *out = memory;
    return 0;
}

bool test_heap_read(test_heap *heap)
{
    pthread_once(&ranges_found, find_ranges);
    *heap = (test_heap){ .live_bytes = atomic_load(&live_bytes),
                         .live_blocks = atomic_load(&live_blocks),
                         .calls = atomic_load(&calls),
                         .library_calls = atomic_load(&library_calls),
                         .aligned_bytes = atomic_load(&aligned_bytes) };
    return true;
}

#endif

#else

bool test_heap_read(test_heap *heap)
{
    *heap = (test_heap){ 0 };
    return false;
}

bool test_heap_arm(const test_heap_fault *fault)
{
    (void)fault;
    return false;
}

int64_t test_heap_disarm(void) { return 0; }
void test_heap_print_refused(void) {}

#endif
