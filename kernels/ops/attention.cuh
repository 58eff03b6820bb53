/*
 * attention.cuh - what the kernels of attention share: who sees whom, and a head's rows.
 *
 * Documents, causality and window come to this: a query row sees one interval of key rows, and a key
 * row is seen by one interval of query rows.  kd_attention_seen finds the interval of every row once, so
 * that no other kernel knows of documents, and a tile may lie across several of them.
 */
#ifndef KD_ATTENTION_CUH
#define KD_ATTENTION_CUH

#include "common/launch.cuh"

constexpr int KD_MAX_HEAD = 256; /* elements of a head; the op's check asks for it */

/* Rows [begin, end) of the other side, counted in the whole tensor; none: { 0, 0 }.  Both ends ascend
 * with the rows that see something.  begin < 0: the offsets are no documents, and whatever is computed
 * of the row is NaN. */
struct kd_seen {
    int32_t begin, end;
};

/* Rows of the other side that some of a few rows see, and that all of them see. */
struct kd_reach {
    int32_t begin, end, all_begin, all_end;
};

/* Of rows first to last - 1; the whole warp calls. */
__device__ __forceinline__ kd_reach kd_reach_of(const kd_seen *seen, int first, int last)
{
    kd_reach r = { INT32_MAX, 0, 0, INT32_MAX };
    for (int row = first + (int)threadIdx.x % KD_WARP; row < last; row += KD_WARP) {
        const kd_seen one = seen[row];
        if (one.begin < one.end) {
            r.begin = min(r.begin, one.begin);
            r.end = max(r.end, one.end);
        }
        r.all_begin = max(r.all_begin, one.begin);
        r.all_end = min(r.all_end, one.end);
    }
    return { __reduce_min_sync(KD_ALL_LANES, r.begin), __reduce_max_sync(KD_ALL_LANES, r.end),
             __reduce_max_sync(KD_ALL_LANES, r.all_begin),
             __reduce_min_sync(KD_ALL_LANES, r.all_end) };
}

/* Rows of [N, H, d] with elements side by side. */
template <class T> struct kd_heads {
    T *data;
    int64_t row, head; /* strides */

    __device__ __forceinline__ T *at(int64_t r, int64_t h) const
    {
        return data + r * row + h * head;
    }
};

template <class T> inline kd_heads<T> kd_heads_of(const kd_tensor *t)
{
    return { (T *)t->data, t->stride[0], t->stride[1] };
}

/* The operands that a backward shares with its forward. */
inline kd_attention_args kd_attention_forward_of(const kd_attention_backward_args *args)
{
    kd_attention_args forward = {};
    forward.o = args->o;
    forward.lse = args->lse;
    forward.q = args->q;
    forward.k = args->k;
    forward.v = args->v;
    forward.cu_q = args->cu_q;
    forward.cu_k = args->cu_k;
    forward.scale = args->scale;
    forward.causal = args->causal;
    forward.window = args->window;
    forward.softcap = args->softcap;
    return forward;
}

extern "C" {
/* Takes `seen` (a kd_seen per row) from the stack and, unless planning, fills it: what the queries see,
 * or what sees the keys. */
KD_MUST_CHECK kd_status kd_attention_seen(kd_tensor *seen, kd_exec *exec,
                                          const kd_attention_args *args, bool of_keys);

/* Any head size, alignment and element type; attention_plain.cu. */
KD_MUST_CHECK kd_status kd_attention_plain(kd_exec *exec, const kd_attention_args *args);
KD_MUST_CHECK kd_status kd_attention_backward_plain(kd_exec *exec,
                                                    const kd_attention_backward_args *args);
}

#endif
