/*
 * shared.cpp - shared memory: a heap block of exactly its size for each variable of each thread block,
 * full of NaN when the block begins, so that AddressSanitizer sees what lies beyond it.
 */
#include "sim.h"

#include <cstdlib>
#ifdef CUDASIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

namespace {

enum { ALIGN = 128, STATIC_LIMIT = 48 << 10, MOST_VARIABLES = 8192, MOST_USED = 64 };

std::atomic<int> variables;

char *nan_filled(size_t bytes)
{
    void *p;
    if (posix_memalign(&p, ALIGN, bytes)) trap("no memory for shared memory", nowhere);
    memset(p, 0xff, bytes);
    return (char *)p;
}

} // namespace

int shared_id()
{
    const int id = variables++;
    if (id >= MOST_VARIABLES) trap("too many variables in shared memory", nowhere);
    return id;
}

/* A thread of another block may be the first to ask: what happens here is ordered for all. */
char *shared_piece_of(block &b, int id, size_t bytes)
{
    shared_piece &piece = b.pieces[(size_t)id];
    if (piece.data) {
        acquire(&b.shared_sync);
        return piece.data;
    }
    if (b.used.size() == MOST_USED) trap("too many variables in shared memory", nowhere);
    b.used.push_back(id);
    piece = { nan_filled(bytes), bytes };
    b.shared_bytes += bytes;
    if (b.shared_bytes > STATIC_LIMIT) trap("more than 48 KiB of static shared memory", nowhere);
    if (b.shared_bytes + b.dynamic.bytes > (size_t)most_shared())
        trap("static and dynamic shared memory are more than a block may have", nowhere);
    release(&b.shared_sync);
    return piece.data;
}

void *shared_get(int id, size_t bytes) { return shared_piece_of(*self->home, id, bytes); }

void *dyn_smem(size_t align)
{
    char *data = self->home->dynamic.data;
    if (!data) trap("dynamic shared memory is used and the launch gave none", nowhere);
    if ((size_t)data % align) trap("dynamic shared memory is not aligned so", nowhere);
    return data;
}

void shared_open(block &b, size_t dynamic_bytes)
{
    b.pieces.resize(MOST_VARIABLES); /* now: a fiber shall not allocate what another frees */
    b.used.reserve(MOST_USED);
    b.shared_bytes = 0;
    b.dynamic = {};
    if (dynamic_bytes) b.dynamic = { nan_filled(dynamic_bytes), dynamic_bytes };
}

/* Others of the cluster may still hold its address, wrongly. */
void shared_retire(block &b)
{
    const auto spoil = [](const shared_piece &piece) {
        if (!piece.data) return;
        memset(piece.data, 0xff, piece.bytes);
#ifdef CUDASIM_ASAN
        __asan_poison_memory_region(piece.data, piece.bytes);
#endif
    };
    for (int id : b.used) spoil(b.pieces[(size_t)id]);
    spoil(b.dynamic);
}

void shared_close(block &b)
{
    for (int id : b.used) {
        shared_piece &piece = b.pieces[(size_t)id];
#ifdef CUDASIM_ASAN
        __asan_unpoison_memory_region(piece.data, piece.bytes);
#endif
        free(piece.data);
        piece = {};
    }
    b.used.clear();
    b.shared_bytes = 0;
    if (!b.dynamic.data) return;
#ifdef CUDASIM_ASAN
    __asan_unpoison_memory_region(b.dynamic.data, b.dynamic.bytes);
#endif
    memset(b.dynamic.data, 0xff, b.dynamic.bytes); /* for the next block */
}

} // namespace simt
