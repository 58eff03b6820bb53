/*
 * row_loss_terms.cuh - row terms over a unit of a row: which of them a kernel is compiled for, their
 * sums and their gradients, all from src/ops/rows.
 */
#ifndef KD_ROW_LOSS_TERMS_CUH
#define KD_ROW_LOSS_TERMS_CUH

#include "common/row_softmax.cuh"

#define KD_ROW_FN        static __device__ __forceinline__
#define KD_ROW_LOG(x)    logf(x)
#define KD_ROW_EXP(x)    kd_exp2((x)*KD_LOG2_E)
#define KD_ROW_ABS(x)    fabsf(x)
#define KD_ROW_DIV(x, y) ((x)*kd_reciprocal(y))
#define KD_ROW_BRANCHES  1

#include "ops/rows/cross_entropy.h"
#include "ops/rows/dkd.h"
#include "ops/rows/forward_kl.h"
#include "ops/rows/hard_distillation.h"
#include "ops/rows/jsd.h"
#include "ops/rows/logit_mse.h"
#include "ops/rows/reverse_kl.h"
#include "ops/rows/skew_kl.h"
#include "ops/rows/skew_reverse_kl.h"
#include "ops/rows/soft_cross_entropy.h"
#include "ops/rows/total_variation.h"
#include "ops/rows/z_loss.h"

namespace {

/* ---- which terms ------------------------------------------------------------------------------ */

/* In place of a kind: any terms without extras (kd_row_extra), told at run time; no second term; any
 * terms at all. */
enum { ANY = -1, NONE = -2, EXTRAS = -3 };

constexpr bool reads_teacher(int kind)
{
    switch (kind) {
#define KD_ROW(term, teacher, ...)                                                                 \
    case KD_ROW_##term:                                                                            \
        return teacher;
#include "ops/row_list.h"
#undef KD_ROW
    default: return false;
    }
}

constexpr kd_row_need need_of(int kind)
{
    switch (kind) {
#define KD_ROW(term, teacher, label, sums, ...)                                                    \
    case KD_ROW_##term:                                                                            \
        return sums;
#include "ops/row_list.h"
#undef KD_ROW
    default: return KD_SUMS_NEVER;
    }
}

__device__ __forceinline__ kd_row_extra extra_of(int kind)
{
    switch (kind) {
#define KD_ROW(term, teacher, label, sums, extra, ...)                                             \
    case KD_ROW_##term:                                                                            \
        return extra;
#include "ops/row_list.h"
#undef KD_ROW
    default: return KD_EXTRA_NONE;
    }
}

/* The terms of one instantiation.  One of named terms has none that reads extras. Of two, the second reads no teacher. */
template <int FIRST, int SECOND> struct Set {
    static constexpr bool fixed = FIRST >= 0, extras = FIRST == EXTRAS;
    static constexpr int terms = !fixed ? KD_MAX_ROW_TERMS : SECOND == NONE ? 1 : 2;
    static constexpr int unroll = fixed ? terms : 1;
    static constexpr bool teacher = !fixed || reads_teacher(FIRST);
    static constexpr bool always =
        need_of(FIRST) == KD_SUMS_ALWAYS || need_of(SECOND) == KD_SUMS_ALWAYS;
    /* Sums and gradient take one sweep in clean rows, of which a sweep of their own knows more. */
    static constexpr bool clean = fixed && !always;
    /* Sweeps for sums or gradient have registers left for a unit under way. */
    static constexpr bool ahead = fixed && FIRST != KD_ROW_jsd && FIRST != KD_ROW_skew_kl &&
                                  FIRST != KD_ROW_skew_reverse_kl &&
                                  !(FIRST == KD_ROW_reverse_kl && SECOND != NONE);
    /* Threads of a block, so that two of 512 or one of 1024 have what registers they need. */
    static constexpr int threads = extras                                              ? 256
                                   : !fixed || (FIRST == KD_ROW_jsd && SECOND != NONE) ? 512
                                                                                       : 1024;
    static __device__ __forceinline__ int kind(int j, int told)
    {
        return !fixed ? told : j == 0 ? FIRST : SECOND;
    }
};

/* ---- one unit at one temperature --------------------------------------------------------------- */

struct Classes {
    float log_q[KD_UNIT], q[KD_UNIT], log_p[KD_UNIT], p[KD_UNIT], live[KD_UNIT];
    float z[KD_UNIT], t[KD_UNIT];
    int label, top; /* which of them is the row's label, or the teacher's first; any other: none */
};

/* In a CLEAN row nothing is dead, and what fills up the last unit is finite and has probability 0. */
constexpr float LOWEST = -1e30f;

template <bool CLEAN>
__device__ __forceinline__ void fill_side(float (&log_x)[KD_UNIT], float (&x)[KD_UNIT],
                                          float (&live)[KD_UNIT], const float (&z)[KD_UNIT],
                                          const kd_side &side, const kd_softmax &softmax)
{
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++) {
        const float from_max = z[i] - side.max, tempered = from_max * softmax.inv_t;
        const bool dead = !CLEAN && tempered == -INFINITY;
        log_x[i] = dead ? side.dead : tempered - side.log_sum;
        x[i] = kd_exp2(fmaf(from_max, softmax.scale, -side.log2_sum));
        live[i] = dead ? 0.0f : 1.0f;
    }
}

template <bool CLEAN>
__device__ __forceinline__ void fill_classes(Classes &c, const float (&z)[KD_UNIT],
                                             const float (&t)[KD_UNIT], const kd_softmax &softmax)
{
    float unused[KD_UNIT];
    fill_side<CLEAN>(c.log_q, c.q, c.live, z, softmax.student, softmax);
    fill_side<CLEAN>(c.log_p, c.p, unused, t, softmax.teacher, softmax);
#pragma unroll
    for (int i = 0; i < KD_UNIT; i++) {
        c.z[i] = z[i];
        c.t[i] = t[i];
    }
}

__device__ __forceinline__ kd_row_class class_at(const Classes &c, int i)
{
    return { c.log_q[i],
             c.q[i],
             c.log_p[i],
             c.p[i],
             c.live[i],
             i == c.label ? 1.0f : 0.0f,
             i == c.top ? 1.0f : 0.0f,
             c.z[i],
             c.t[i] };
}

template <bool ALL>
__device__ __forceinline__ void add_sums(float &a, float &b, int kind, const Classes &c,
                                         const kd_row_stats &stats)
{
    float a_of[KD_UNIT] = {}, b_of[KD_UNIT] = {};
    switch (kind) {
#define KD_ROW(term, teacher, label, sums, extra, ...)                                             \
    case KD_ROW_##term:                                                                            \
        if constexpr (ALL || extra == KD_EXTRA_NONE) {                                             \
            _Pragma("unroll") for (int i = 0; i < KD_UNIT; i++)                                    \
            {                                                                                      \
                const kd_row_sums share = kd_row_##term##_sums(class_at(c, i), stats);             \
                a_of[i] = share.a;                                                                 \
                b_of[i] = share.b;                                                                 \
            }                                                                                      \
        }                                                                                          \
        break;
#include "ops/row_list.h"
#undef KD_ROW
    default: return;
    }
    a += kd_unit_sum(a_of);
    b += kd_unit_sum(b_of);
}

template <bool ALL>
__device__ __forceinline__ void add_gradient(float (&gradient)[KD_UNIT], int kind, const Classes &c,
                                             const kd_row_stats &stats, float scale)
{
    switch (kind) {
#define KD_ROW(term, teacher, label, sums, extra, ...)                                             \
    case KD_ROW_##term:                                                                            \
        if constexpr (ALL || extra == KD_EXTRA_NONE) {                                             \
            _Pragma("unroll") for (int i = 0; i < KD_UNIT; i++)                                    \
            {                                                                                      \
                const float g = kd_row_##term##_gradient(class_at(c, i), stats);                   \
                gradient[i] += c.live[i] == 0.0f ? 0.0f : scale * g;                               \
            }                                                                                      \
        }                                                                                          \
        break;
#include "ops/row_list.h"
#undef KD_ROW
    default: return;
    }
}

__device__ __forceinline__ float value_of(int kind, const kd_row_stats &stats)
{
    switch (kind) {
#define KD_ROW(term, ...)                                                                          \
    case KD_ROW_##term:                                                                            \
        return kd_row_##term##_value(stats);
#include "ops/row_list.h"
#undef KD_ROW
    default: return NAN;
    }
}

} // namespace

#endif
