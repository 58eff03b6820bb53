/*
 * async.cpp - copies that a kernel starts and waits for later: cp.async, and cp.async.bulk with
 * mbarriers.  Until the wait their destination is NaN, and their source is read at the wait, so that
 * who comes too early or changes the source too soon is found.
 */
#include "sim.h"

#ifdef CUDASIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

/* ---- cp.async ----------------------------------------------------------------------------------- */

void cp_async(void *to, const void *from, unsigned bytes, site s)
{
    if (bytes != 4 && bytes != 8 && bytes != 16) trap("cp.async: not 4, 8 or 16 bytes", s);
    if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) trap("cp.async: misaligned address", s);
    memset(to, 0xff, bytes);
    self->loads.push_back({ to, from, bytes, self->load_group, s });
}

void cp_commit() { self->load_group++; }

void cp_wait(unsigned keep)
{
    size_t kept = 0;
    for (const async_copy &c : self->loads)
        if (c.group + keep < self->load_group)
            memcpy(c.to, c.from, c.bytes);
        else
            self->loads[kept++] = c;
    self->loads.resize(kept);
}

/* ---- mbarriers ---------------------------------------------------------------------------------- */

namespace {

/* What the 64 bits hold.  `valid` tells an initialised barrier from memory that is NaN or zero. */
struct mbarrier {
    uint64_t valid : 2, phase : 1, expected : 20, pending : 20;
    int64_t bytes : 21; /* announced and not yet arrived; may be less than 0 for a time */
};
static_assert(sizeof(mbarrier) == 8, "an mbarrier has 8 bytes");
enum { VALID = 1 };

mbarrier &barrier_at(uint64_t *p, site s)
{
    if ((uintptr_t)p % 8) trap("mbarrier: misaligned address", s);
    mbarrier &b = *reinterpret_cast<mbarrier *>(p);
    if (b.valid != VALID) trap("mbarrier: not initialised", s);
    return b;
}

/* ThreadSanitizer: one object per phase, two in turn (struct generation). */
void *sync_object(uint64_t *p, unsigned phase) { return (char *)p + (phase & 1); }

void complete_if_done(mbarrier &b, uint64_t *p)
{
    if (b.pending || b.bytes) return;
    b.phase ^= 1;
    b.pending = b.expected;
    for (thread &t : team.threads)
        if (t.home && t.state == AT_MBARRIER && t.awaited == p) make_ready(t);
}

void arrive(uint64_t *p, int64_t bytes, site s)
{
    mbarrier &b = barrier_at(p, s);
    if (b.pending == 0) trap("mbarrier: more arrivals than it was initialised for", s);
    release(sync_object(p, b.phase));
    b.bytes += bytes;
    b.pending--;
    complete_if_done(b, p);
}

/* Not memcpy, which ThreadSanitizer would take for an access by the thread that happens to wait. */
void copy_unseen(void *to, const void *from, unsigned bytes)
{
    volatile uint64_t *t = (volatile uint64_t *)to;
    const volatile uint64_t *f = (const volatile uint64_t *)from;
    for (unsigned i = 0; i < bytes / 8; i++) t[i] = f[i];
}

void fill_unseen(void *to, unsigned bytes)
{
    volatile uint64_t *t = (volatile uint64_t *)to;
    for (unsigned i = 0; i < bytes / 8; i++) t[i] = UINT64_MAX;
}

void check_bulk(const void *to, const void *from, unsigned bytes, site s)
{
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) trap("cp.async.bulk: misaligned address", s);
    if (bytes % 16) trap("cp.async.bulk: not a multiple of 16 bytes", s);
#ifdef CUDASIM_ASAN
    if (__asan_region_is_poisoned((void *)from, bytes))
        trap("cp.async.bulk: the source is out of bounds", s);
    if (__asan_region_is_poisoned((void *)to, bytes))
        trap("cp.async.bulk: the destination is out of bounds", s);
#endif
}

void finish_load(pending_load &slot)
{
    const pending_load l = slot;
    slot.barrier = nullptr;
    team.loading--;
    copy_unseen(l.to, l.from, l.bytes);
    mbarrier &b = *reinterpret_cast<mbarrier *>(l.barrier);
    b.bytes -= l.bytes;
    complete_if_done(b, l.barrier);
}

} // namespace

void mbarrier_init(uint64_t *p, unsigned arrivals, site s)
{
    if ((uintptr_t)p % 8) trap("mbarrier: misaligned address", s);
    if (arrivals == 0 || arrivals >= 1u << 20) trap("mbarrier: bad number of arrivals", s);
    mbarrier b = {};
    b.valid = VALID;
    b.expected = b.pending = arrivals;
    memcpy(p, &b, sizeof b);
}

void mbarrier_inval(uint64_t *p, site s)
{
    barrier_at(p, s);
    memset(p, 0xff, sizeof *p);
}

void mbarrier_arrive(uint64_t *p, site s) { arrive(p, 0, s); }

void mbarrier_arrive_expect_tx(uint64_t *p, unsigned bytes, site s) { arrive(p, bytes, s); }

void mbarrier_expect_tx(uint64_t *p, unsigned bytes, site s)
{
    mbarrier &b = barrier_at(p, s);
    b.bytes += bytes;
}

bool mbarrier_try_wait(uint64_t *p, unsigned parity, site s)
{
    const mbarrier &b = barrier_at(p, s);
    const auto done = [&] { return b.phase != (parity & 1); };
    for (pending_load &l : team.loads)
        if (!done() && l.barrier == p) finish_load(l);
    if (!done()) {
        self->awaited = p;
        self->where = s;
        wait_in(AT_MBARRIER);
    }
    if (!done()) return false;
    acquire(sync_object(p, parity));
    return true;
}

/* ---- cp.async.bulk ------------------------------------------------------------------------------ */

void bulk_load(void *shared, const void *from, unsigned bytes, uint64_t *p, site s)
{
    check_bulk(shared, from, bytes, s);
    barrier_at(p, s);
    fill_unseen(shared, bytes);
    for (pending_load &l : team.loads)
        if (!l.barrier) {
            l = { shared, from, bytes, p };
            team.loading++;
            return;
        }
    trap("cp.async.bulk: too many loads under way for the emulator", s);
}

bool bulk_progress()
{
    if (team.loading == 0) return false;
    const size_t slots = std::size(team.loads);
    const size_t start = config().schedule == RANDOM ? random_number() % slots : 0;
    for (size_t i = 0; i < slots; i++) {
        pending_load &l = team.loads[(start + i) % slots];
        if (!l.barrier) continue;
        finish_load(l);
        return true;
    }
    return false;
}

void bulk_store(void *to, const void *shared, unsigned bytes, site s)
{
    check_bulk(to, shared, bytes, s);
    fill_unseen(to, bytes);
    self->stores.push_back({ to, shared, bytes, self->store_group, s });
}

void bulk_commit() { self->store_group++; }

void bulk_wait(unsigned keep)
{
    size_t kept = 0;
    for (const async_copy &c : self->stores)
        if (c.group + keep < self->store_group)
            copy_unseen(c.to, c.from, c.bytes);
        else
            self->stores[kept++] = c;
    self->stores.resize(kept);
}

void bulk_wait_read(unsigned keep) { bulk_wait(keep); }

void bulk_thread_exits(thread &t)
{
    if (!t.stores.empty())
        trap("a thread exits while its bulk store still reads shared memory", t.stores[0].where);
}

} // namespace simt
