#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 1 where tests count branches: there each object can be refused its memory. */
#ifndef KD_ARENA_CHUNK
#define KD_ARENA_CHUNK (16 * 1024)
#endif

enum { ALIGN = 16, CHUNK_BYTES = KD_ARENA_CHUNK };

typedef struct chunk {
    struct chunk *next;
    size_t used, capacity;
} chunk;

struct kd_arena {
    chunk *chunks;
};

_Static_assert(sizeof(chunk) <= 2 * ALIGN, "a chunk's data begins at 2 * ALIGN");

kd_status kd_arena_create(kd_arena **arena)
{
    *arena = calloc(1, sizeof **arena);
    return *arena ? KD_OK : kd_fail(KD_ENOMEM, "arena: no memory");
}

void kd_arena_destroy(kd_arena *arena)
{
    if (!arena) return;
    for (chunk *c = arena->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(arena);
}

kd_status kd_arena_alloc(void **out, kd_arena *arena, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) return kd_fail(KD_ENOMEM, "arena: no memory for %zu bytes", bytes);
    const size_t need = kd_round_up(bytes ? bytes : 1, ALIGN);
    chunk *c = arena->chunks;
    if (!c || c->capacity - c->used < need) {
        const size_t capacity = need > CHUNK_BYTES ? need : CHUNK_BYTES;
        c = calloc(1, 2 * ALIGN + capacity);
        if (!c) return kd_fail(KD_ENOMEM, "arena: no memory for %zu bytes", bytes);
        c->capacity = capacity;
        /* A large object gets a chunk of its own behind the one that still has room. */
        if (need > CHUNK_BYTES && arena->chunks) {
            c->next = arena->chunks->next;
            arena->chunks->next = c;
        } else {
            c->next = arena->chunks;
            arena->chunks = c;
        }
    }
    *out = (char *)c + 2 * ALIGN + c->used;
    c->used += need;
    return KD_OK;
}

kd_status kd_arena_array(void **out, kd_arena *arena, int64_t count, size_t size)
{
    int64_t bytes;
    if (count < 0 || !kd_mul_i64(&bytes, count, (int64_t)size))
        return kd_fail(KD_ENOMEM, "arena: %lld objects of %zu bytes", (long long)count, size);
    return kd_arena_alloc(out, arena, (size_t)bytes);
}

kd_status kd_arena_string(const char **out, kd_arena *arena, const char *text)
{
    const size_t bytes = strlen(text) + 1;
    void *copy = NULL;
    KD_TRY(kd_arena_alloc(&copy, arena, bytes));
    memcpy(copy, text, bytes);
    *out = copy;
    return KD_OK;
}

kd_status kd_arena_format(const char **out, kd_arena *arena, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    void *text = NULL;
    const kd_status status = kd_arena_alloc(&text, arena, (size_t)(n < 0 ? 0 : n) + 1);
    if (status == KD_OK) {
        vsnprintf(text, (size_t)(n < 0 ? 0 : n) + 1, fmt, again);
        *out = text;
    }
    va_end(again);
    return status;
}
