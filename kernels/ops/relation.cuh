/* relation.cuh - what both ways of relation share: who sees whom, and the losses of rows. */
#ifndef KD_RELATION_CUH
#define KD_RELATION_CUH

#include "ops/attention.cuh"

constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

/* From a product of rows to a score in the base of the exponentials (KL), or to the score (MSE):
 * exponent times the product or, with a softcap, times tanh(inner product). */
struct kd_side {
    float inner, exponent;
};

/* The score's scale, softcap and T; `base` is log2 e where scores become exponents of 2. */
inline kd_side kd_side_of(kd_scoring scores, float temperature, float base)
{
    const float cap = scores.softcap, times = base / temperature;
    if (cap > 0) return { scores.scale / cap, cap * times };
    return { 0, scores.scale * times };
}

/* Whether rows of `a` and a card with `shared` bytes of shared memory of a block take the fast way, but for
 * alignment. */
inline bool kd_relation_is_fast(const kd_exec *exec, const kd_tensor *a, size_t shared)
{
    const kd_cuda_limits *limits = kd_cuda_limits_of(exec);
    return a->dtype == KD_BF16 && limits->capability >= 80 && limits->shared >= shared &&
           a->shape[0] < INT32_MAX / 2;
}

/* From the stack: a kd_seen per row; the values [R, N] of every head's row, before weights. */
struct kd_relation_scratch {
    kd_tensor seen_by_queries, seen_by_keys, value;
};

/* f: what loss and gradient are multiplied with. */
inline float kd_relation_factor(const kd_relation *r)
{
    return r->t_squared ? r->temperature * r->temperature : 1;
}

extern "C" {
/* Any head size, alignment and element type; relation_plain.cu. */
KD_MUST_CHECK kd_status kd_relation_lse_plain(kd_exec *exec, const kd_relation_lse_args *args);
KD_MUST_CHECK kd_status kd_relation_plain(kd_exec *exec, const kd_relation_args *args);

/* Takes the scratch of both ways and, unless planning, fills the first two. */
KD_MUST_CHECK kd_status kd_relation_open(kd_relation_scratch *scratch, kd_exec *exec,
                                         const kd_relation_args *args);
/* The losses from scratch->value. */
KD_MUST_CHECK kd_status kd_relation_losses(kd_exec *exec, const kd_relation_args *args,
                                           const kd_relation_scratch *scratch);

/* Who sees whom, as attention asks for it. */
KD_MUST_CHECK kd_status kd_relation_lse_seen(kd_tensor *seen, kd_exec *exec,
                                             const kd_relation_lse_args *args);
}

#endif
