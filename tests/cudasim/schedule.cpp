/*
 * schedule.cpp - which CUDA thread runs next.
 *
 * A grid runs on the OS thread that launched it, gang after gang (a cluster, or a single block); a
 * thread runs until it has to wait.  One grid at a time: ranks on several OS threads take turns.
 */
#include "sim.h"

#include <cstdio>
#include <cstdlib>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

gang &team = *new gang; /* never destroyed: LeakSanitizer looks after the destructors have run */
thread *self;

namespace {

std::mutex &one_grid = *new std::mutex;
const std::function<void()> *body;
uint64_t random_state, launched;
char began, ended; /* what ThreadSanitizer orders the fibers of a gang by */

/* ---- those who can run: a ring ------------------------------------------------------------------ */

struct {
    std::vector<int> at;
    size_t first, count;
} &ready = *new std::remove_reference_t<decltype(ready)>;

size_t ready_slot(size_t i)
{
    i += ready.first;
    return i < ready.at.size() ? i : i - ready.at.size();
}

thread *next_ready()
{
    while (ready.count == 0)
        if (!bulk_progress()) return nullptr;
    if (config().schedule == REVERSE)
        return &team.threads[(size_t)ready.at[ready_slot(--ready.count)]];
    if (config().schedule == RANDOM)
        std::swap(ready.at[ready_slot(random_number() % ready.count)], ready.at[ready.first]);
    thread *t = &team.threads[(size_t)ready.at[ready.first]];
    ready.first = ready_slot(1);
    ready.count--;
    return t;
}

/* ---- switching ---------------------------------------------------------------------------------- */

void become(thread *t)
{
    self = t;
    threadIdx = t->at;
    blockIdx = t->home->at;
}

/* From the stack of a thread that waits or has ended to the next that can run, or back to run_gang. */
void leave(stack *from)
{
    thread *next = next_ready();
    if (!next) {
        fiber_jump(from, nullptr, 0);
        return;
    }
    if (!next->stack) next->stack = stack_for(next->index);
    if (next->stack == from) return;
    become(next);
    fiber_jump(from, next->stack, next->index);
}

void thread_exits(thread &t)
{
    bulk_thread_exits(t);
    t.state = DONE;
    team.alive--;
    cluster_thread_exits(t);
    t.warp->exited |= 1u << t.index % 32;
    block &b = *t.home;
    b.exited++;
    if (b.waiting && b.waiting == b.threads - b.exited) release_block(b);
    if (b.exited == b.threads && team.blocks.size() > 1) shared_retire(b);
}

/* What a stack runs: one thread after another. */
void entry()
{
    fiber_begin(self->stack);
    for (;;) {
        acquire(&began);
        (*body)();
        stack *mine = self->stack;
        thread_exits(*self);
        release(&ended);
        self->stack = nullptr;
        thread *next = next_ready();
        if (stacks_move_on && next && !next->stack) {
            next->stack = mine; /* so a kernel without barriers needs one stack and no jump */
            become(next);
            continue;
        }
        stack_done(mine);
        if (!next) {
            fiber_jump(mine, nullptr, 0);
        } else {
            if (!next->stack) next->stack = stack_for(next->index);
            become(next);
            fiber_jump(mine, next->stack, next->index);
        }
    }
}

/* ---- gangs -------------------------------------------------------------------------------------- */

void report_deadlock()
{
    static const char *const places[] = { "nowhere",       "nowhere",           "a warp collective",
                                          "__syncthreads", "a cluster barrier", "an mbarrier" };
    fprintf(stderr, "cudasim: deadlock, in which\n");
    int said = 0;
    for (const thread &t : team.threads) {
        if (!t.home || t.state == DONE || said++ >= 8) continue;
        say_where(t);
        fprintf(stderr, " waits in %s at %s:%d", places[t.state], t.where.file, t.where.line);
        if (t.state == AT_WARP) fprintf(stderr, ", mask %08x", t.mask);
        fputc('\n', stderr);
    }
    abort();
}

void form_gang(dim3 threads, dim3 cluster, size_t shared)
{
    const int count = (int)(threads.x * threads.y * threads.z), padded = (count + 31) / 32 * 32;
    const size_t blocks = (size_t)cluster.x * cluster.y * cluster.z;
    team.size = cluster;
    team.block_threads = count;
    team.blocks.resize(blocks);
    team.threads.resize(blocks * (size_t)padded);
    team.warps.assign(blocks * (size_t)padded / 32, lanes{});
    ready.at.resize(blocks * (size_t)count);
    for (size_t i = 0; i < team.threads.size(); i++) {
        thread &t = team.threads[i];
        const unsigned linear = (unsigned)(i % (size_t)padded);
        t.index = (int)i;
        t.home = (int)linear < count ? &team.blocks[i / (size_t)padded] : nullptr;
        t.warp = &team.warps[i / 32];
        t.at = { linear % threads.x, linear / threads.x % threads.y,
                 linear / (threads.x * threads.y) };
        if (t.home) t.warp->exists |= 1u << i % 32;
    }
    for (block &b : team.blocks) shared_open(b, shared);
}

/* `first`: where the cluster's first block is in the grid. */
void run_gang(dim3 first)
{
    for (size_t i = 0; i < team.blocks.size(); i++) {
        block &b = team.blocks[i];
        const unsigned rank = (unsigned)i;
        b.rank = rank;
        b.at = { first.x + rank % team.size.x, first.y + rank / team.size.x % team.size.y,
                 first.z + rank / (team.size.x * team.size.y) };
        b.threads = team.block_threads;
        b.exited = b.waiting = 0;
    }
    for (lanes &w : team.warps) w.arrived = w.exited = 0;
    ready.first = ready.count = 0;
    team.alive = team.cluster_waiting = 0;
    for (thread &t : team.threads) {
        if (!t.home) continue;
        t.stack = nullptr;
        t.loads.clear();
        t.stores.clear();
        t.load_group = t.store_group = 0;
        t.cluster_arrived = false;
        t.cluster_generation = team.cluster.count;
        make_ready(t);
        t.state = NEW;
        team.alive++;
    }
    release(&began);
    leave(nullptr);
    self = nullptr;
    acquire(&ended);
    if (team.alive) report_deadlock();
    if (bulk_progress()) trap("blocks end while a bulk load to them is under way", nowhere);
}

/* The order of the clusters. */
std::vector<unsigned> order_of(size_t count)
{
    std::vector<unsigned> order(count);
    for (size_t i = 0; i < count; i++)
        order[i] = (unsigned)(config().schedule == REVERSE ? count - 1 - i : i);
    if (config().schedule == RANDOM)
        for (size_t i = count; i > 1; i--) std::swap(order[i - 1], order[random_number() % i]);
    return order;
}

} // namespace

uint64_t random_number()
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545F4914F6CDD1Dull >> 16;
}

void make_ready(thread &t)
{
    t.state = READY;
    ready.at[ready_slot(ready.count++)] = t.index;
}

void wait_in(state s)
{
    if (s != READY) self->state = s;
    leave(self->stack);
}

void run_grid(dim3 grid, dim3 threads, dim3 cluster, size_t shared,
              const std::function<void()> &kernel)
{
    const std::lock_guard<std::mutex> hold(one_grid);
    random_state = (config().seed + 0x9E3779B97F4A7C15ull * ++launched) | 1;
    body = &kernel;
    gridDim = grid;
    blockDim = threads;
    form_gang(threads, cluster, shared);
    fibers_open((int)team.threads.size(), entry);
    const dim3 clusters = { grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z };
    for (unsigned i : order_of((size_t)clusters.x * clusters.y * clusters.z)) {
        const dim3 first = { i % clusters.x * cluster.x, i / clusters.x % clusters.y * cluster.y,
                             i / (clusters.x * clusters.y) * cluster.z };
        run_gang(first);
        for (block &b : team.blocks) shared_close(b);
    }
    for (block &b : team.blocks) {
        free(b.dynamic.data);
        b.dynamic = {};
    }
}

} // namespace simt
