/* cluster.cpp - clusters of blocks: their barrier, and each other's shared memory. */
#include "sim.h"

namespace simt {

unsigned cluster_rank() { return self->home->rank; }

unsigned cluster_size() { return (unsigned)team.blocks.size(); }

/* ---- the barrier: all threads of the cluster that have not exited ------------------------------- */

void release_cluster()
{
    for (thread &t : team.threads)
        if (t.home && t.state == AT_CLUSTER) make_ready(t);
    team.cluster_waiting = 0;
    team.cluster.count++;
}

void cluster_arrive(site s)
{
    thread &me = *self;
    if (me.cluster_arrived) trap("cluster barrier: arrives twice without a wait", s);
    me.cluster_arrived = true;
    me.cluster_generation = team.cluster.count;
    me.where = s;
    release(team.cluster.now());
    if (++team.cluster_waiting == team.alive) release_cluster();
}

void cluster_wait(site s)
{
    thread &me = *self;
    if (!me.cluster_arrived) trap("cluster barrier: waits without having arrived", s);
    me.where = s;
    if (me.cluster_generation == team.cluster.count) wait_in(AT_CLUSTER);
    me.cluster_arrived = false;
    acquire(&team.cluster.object[me.cluster_generation & 1]);
}

void cluster_thread_exits(thread &t)
{
    if (t.cluster_arrived && t.cluster_generation == team.cluster.count) team.cluster_waiting--;
    if (team.cluster_waiting && team.cluster_waiting == team.alive) release_cluster();
}

/* ---- distributed shared memory ------------------------------------------------------------------ */

void *cluster_map(const void *shared, unsigned rank, site s)
{
    if (rank >= team.blocks.size()) trap("mapa: the cluster has no block of that rank", s);
    block &mine = *self->home, &theirs = team.blocks[rank];
    if (theirs.exited == theirs.threads)
        trap("mapa: the block of that rank has exited, its shared memory is gone", s);
    const char *p = (const char *)shared;
    if (p >= mine.dynamic.data && p < mine.dynamic.data + mine.dynamic.bytes)
        return theirs.dynamic.data + (p - mine.dynamic.data);
    for (int id : mine.used) {
        const shared_piece &piece = mine.pieces[(size_t)id];
        if (p >= piece.data && p < piece.data + piece.bytes)
            return shared_piece_of(theirs, id, piece.bytes) + (p - piece.data);
    }
    trap("mapa: not an address in this block's shared memory", s);
}

} // namespace simt
