#include "support/interpose.h"

#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#if defined(__GLIBC__) && !defined(SANITIZED)

#include <errno.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* glibc's own, under the names that it exports for this. */
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *memory, size_t bytes);
extern void *__libc_memalign(size_t align, size_t bytes);
extern void __libc_free(void *memory);

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

void *malloc(size_t bytes) { return given(__libc_malloc(bytes), CALLER); }
void *calloc(size_t count, size_t bytes) { return given(__libc_calloc(count, bytes), CALLER); }
void *memalign(size_t align, size_t bytes) { return given(__libc_memalign(align, bytes), CALLER); }

void *aligned_alloc(size_t align, size_t bytes)
{
    atomic_fetch_add(&aligned_bytes, (long long)bytes);
    return given(__libc_memalign(align, bytes), CALLER);
}

int posix_memalign(void **out, size_t align, size_t bytes)
{
    void *memory = given(__libc_memalign(align, bytes), CALLER);
    if (!memory) return ENOMEM;
    *out = memory;
    return 0;
}

void *realloc(void *old, size_t bytes)
{
    const long long before = old ? (long long)malloc_usable_size(old) : 0;
    void *memory = __libc_realloc(old, bytes);
    if (!memory && bytes) return NULL; /* `old` is as it was */
    if (old) {
        atomic_fetch_sub(&live_bytes, before);
        atomic_fetch_sub(&live_blocks, 1);
    }
    return given(memory, CALLER);
}

void free(void *memory)
{
    taken(memory);
    __libc_free(memory);
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

#else

bool test_heap_read(test_heap *heap)
{
    *heap = (test_heap){ 0 };
    return false;
}

#endif
