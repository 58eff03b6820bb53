/*
 * buckets.c - the gradient slab cut into runs that are reduced while the backward pass goes on.
 *
 * Parameters lie in the slab in the order of their declaration, mostly by ascending block, and
 * backward finishes blocks in descending order; so runs are gathered from the end of the slab.  A run
 * waits for the lowest of its blocks, which keeps any order of declaration right.
 */
#include "dist/dist.h"

static int lower(int a, int b) { return a < b ? a : b; }

/* What is left before the last cut and is too small joins the run after it. */
static void join_remainder(kd_buckets *buckets, int64_t min_elements)
{
    if (buckets->count < 2) return;
    const struct kd_bucket *last = &buckets->items[buckets->count - 1];
    if (last->end - last->begin >= min_elements) return;
    struct kd_bucket *into = &buckets->items[buckets->count - 2];
    into->begin = last->begin;
    into->first_block = lower(into->first_block, last->first_block);
    buckets->count--;
}

kd_status kd_buckets_create(kd_buckets *buckets, kd_arena *arena, kd_comm *comm,
                            const kd_slab *slab, int64_t min_elements)
{
    const kd_params *params = &slab->params;
    if (!slab->trainable)
        return kd_fail(KD_EINVAL, "buckets: found a frozen slab, expected a trainable one");
    *buckets = (kd_buckets){ .comm = comm, .slab = slab, .arena = arena };
    KD_TRY(KD_ARENA_ARRAY(&buckets->items, arena, params->trained));
    int64_t end = params->elements;
    for (int last = params->trained - 1, i = last; i >= 0; i--) {
        const kd_param *p = &params->items[i];
        const bool border = i == 0 || params->items[i - 1].block != p->block;
        if (!border || (i > 0 && end - p->offset < min_elements)) continue;
        int first_block = p->block;
        for (int j = i; j <= last; j++) first_block = lower(first_block, params->items[j].block);
        buckets->items[buckets->count++] = (struct kd_bucket){ p->offset, end, first_block };
        end = p->offset;
        last = i - 1;
    }
    join_remainder(buckets, min_elements);
    return KD_OK;
}

kd_status kd_buckets_ready(kd_buckets *buckets, kd_exec *exec, int block)
{
    for (int i = 0; i < buckets->count; i++) {
        const struct kd_bucket *b = &buckets->items[i];
        if (b->first_block != block || b->begin == b->end) continue;
        const kd_tensor part =
            kd_tensor_slice(&buckets->slab->gradients, 0, b->begin, b->end - b->begin);
        KD_TRY(buckets->comm->type->all_reduce(buckets->comm, exec, &part));
    }
    return KD_OK;
}
