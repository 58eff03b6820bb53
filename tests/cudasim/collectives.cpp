/*
 * collectives.cpp - where threads of a block or of a warp meet, and what is said of those that cannot.
 *
 * The last lane to come computes the results of all: right for every mask, with no double buffering,
 * and it sees whether all lanes are at the same call with the same mask.
 */
#include "sim.h"

#include <cstdio>
#include <cstdlib>

namespace simt {

/* ---- messages ----------------------------------------------------------------------------------- */

void say_where(const thread &t)
{
    const uint3 b = t.home->at;
    fprintf(stderr, "  thread (%u,%u,%u) of block (%u,%u,%u)", t.at.x, t.at.y, t.at.z, b.x, b.y,
            b.z);
}

void trap(const char *what, site s)
{
    fprintf(stderr, "cudasim: %s", what);
    if (s.line) fprintf(stderr, " at %s:%d", s.file, s.line);
    fputc('\n', stderr);
    if (self) {
        say_where(*self);
        fputc('\n', stderr);
    }
    abort();
}

/* ---- warps -------------------------------------------------------------------------------------- */

unsigned lane() { return (unsigned)self->index & 31; }

/* The own lane alone: a legal answer, and the one that shows code that relies on convergence. */
unsigned activemask() { return 1u << lane(); }

namespace {

uint64_t combine(op o, uint64_t so_far, uint64_t value, int lane, bool first)
{
    const unsigned a = (unsigned)so_far, b = (unsigned)value;
    if (o == BALLOT) return (first ? 0 : so_far) | value << lane;
    if (first) return value;
    switch (o) {
    case ANY:
    case ROR: return so_far | value;
    case ALL:
    case RAND_: return so_far & value;
    case RXOR: return so_far ^ value;
    case RADD: return a + b;
    case RMINS: return (int)a < (int)b ? a : b;
    case RMAXS: return (int)a > (int)b ? a : b;
    case RMINU: return a < b ? a : b;
    case RMAXU: return a > b ? a : b;
    default: return 0;
    }
}

uint64_t lanes_that_match(const thread *warp, unsigned mask, uint64_t value)
{
    uint64_t same = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && warp[i].value == value) same |= 1ull << i;
    return same;
}

void give_results(thread *warp, op o, unsigned mask)
{
    if (o == FN) {
        void *args[32] = {};
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) args[i] = (void *)warp[i].value;
        self->fn(args, mask);
        return;
    }
    constexpr uint64_t POISON =
        0x7fc0dead7fc0deadull; /* NaN, for readers of a lane not in the mask */
    uint64_t all = 0;
    bool first = true;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) {
            all = combine(o, all, warp[i].value, i, first);
            first = false;
        }
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) {
            thread &t = warp[i];
            t.result = o == SHFL    ? (mask >> t.arg & 1 ? warp[t.arg].value : POISON)
                       : o == MATCH ? lanes_that_match(warp, mask, t.value)
                                    : all;
        }
}

void check_lanes(const thread *warp, op o, unsigned mask, site s)
{
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 &&
            (warp[i].mask != mask || warp[i].op != o || warp[i].where.line != s.line))
            trap("warp collective: lanes of one mask are at different collectives", s);
}

} // namespace

uint64_t warp(op o, unsigned mask, uint64_t value, int arg, site s)
{
    thread &me = *self;
    lanes &w = *me.warp;
    thread *all = &me - (me.index & 31);
    const unsigned bit = 1u << (me.index & 31);
    mask &= w.exists;
    if (!(mask & bit)) trap("warp collective: the calling lane is not in its own mask", s);
    if (mask & w.exited) trap("warp collective: a lane of the mask has exited", s);
    me.op = o;
    me.mask = mask;
    me.value = value;
    me.arg = arg;
    me.where = s;
    char *object = w.barrier.now();
    if (o == SYNCWARP) release(object);
    w.arrived |= bit;
    if ((w.arrived & mask) == mask) {
        check_lanes(all, o, mask, s);
        give_results(all, o, mask);
        if (o == SYNCWARP) w.barrier.count++;
        w.arrived &= ~mask;
        const bool goes_last = config().schedule == RANDOM && random_number() & 1;
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1 && (&all[i] != &me || goes_last)) make_ready(all[i]);
        if (goes_last) wait_in(READY);
    } else {
        wait_in(AT_WARP);
    }
    if (o == SYNCWARP) acquire(object); /* shuffles order no memory, neither do they in CUDA */
    return me.result;
}

void warp_fn(unsigned mask, void *arg, void (*fn)(void **, unsigned), site s)
{
    self->fn = fn;
    warp(FN, mask, (uint64_t)arg, 0, s);
}

/* ---- blocks ------------------------------------------------------------------------------------- */

void release_block(block &b)
{
    const site *first = nullptr;
    for (thread &t : team.threads) {
        if (t.home != &b || t.state != AT_BLOCK) continue;
        if (!first) first = &t.where;
        if (t.where.line != first->line || strcmp(t.where.file, first->file)) {
            fprintf(stderr, "cudasim: __syncthreads at line %d meets one at line %d\n", first->line,
                    t.where.line);
            say_where(t);
            fputc('\n', stderr);
            abort();
        }
        make_ready(t);
    }
    b.result = b.votes;
    b.waiting = 0;
    b.barrier.count++;
}

int barrier(bop how, int predicate, site s)
{
    block &b = *self->home;
    if (b.waiting == 0) {
        b.how = how;
        b.votes = how == BAND;
    }
    if (how == BCOUNT) b.votes += !!predicate;
    if (how == BOR) b.votes |= !!predicate;
    if (how == BAND) b.votes &= !!predicate;
    self->where = s;
    self->state = AT_BLOCK;
    char *object = b.barrier.now();
    release(object);
    if (++b.waiting == b.threads - b.exited) release_block(b);
    wait_in(READY);
    acquire(object);
    return b.result; /* nobody can be through the next barrier before all have left this one */
}

} // namespace simt
