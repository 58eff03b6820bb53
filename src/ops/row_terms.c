/* The row terms: what row_list.h says of each, and their functions over a block of classes. */
#include "ops/row_block.h"

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

const kd_row_type kd_row_types[KD_ROW_COUNT] = {
#define KD_ROW(term, ...) { #term, __VA_ARGS__ },
#include "ops/row_list.h"
#undef KD_ROW
};

static inline kd_row_class class_at(const block *restrict b, int i)
{
    return (kd_row_class){ b->log_q[i], b->q[i],   b->log_p[i], b->p[i], b->live[i],
                           b->label[i], b->top[i], b->z[i],     b->t[i] };
}

#define KD_ROW(term, ...)                                                                          \
    static void add_sums_##term(double sums[2], const block *restrict b, kd_row_stats stats)       \
    {                                                                                              \
        alignas(64) float a_of[BLOCK], b_of[BLOCK];                                                \
        for (int i = 0; i < BLOCK; i++) {                                                          \
            const kd_row_sums share = kd_row_##term##_sums(class_at(b, i), stats);                 \
            a_of[i] = share.a;                                                                     \
            b_of[i] = share.b;                                                                     \
        }                                                                                          \
        sums[0] += sum_block(a_of);                                                                \
        sums[1] += sum_block(b_of);                                                                \
    }                                                                                              \
    static void add_gradient_##term(float *restrict gradient, const block *restrict b,             \
                                    kd_row_stats stats, float factor)                              \
    {                                                                                              \
        for (int i = 0; i < BLOCK; i++) {                                                          \
            const float g = kd_row_##term##_gradient(class_at(b, i), stats);                       \
            gradient[i] += b->live[i] == 0.0f ? 0.0f : factor * g;                                 \
        }                                                                                          \
    }
#include "ops/row_list.h"
#undef KD_ROW

const kd_row_functions kd_row_functions_of[KD_ROW_COUNT] = {
#define KD_ROW(term, ...) { add_sums_##term, kd_row_##term##_value, add_gradient_##term },
#include "ops/row_list.h"
#undef KD_ROW
};
