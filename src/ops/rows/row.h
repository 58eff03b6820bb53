/*
 * row.h - what a row-logit term is, for every header of this folder.
 *
 * Student logits z[V], teacher logits t[V'], temperature T; both softmaxes run over the first
 * `classes` columns:
 *
 *     q = softmax(z / T)     p = softmax(t / T)
 *
 * A term x gives, as inline functions of one class or of the row's statistics,
 *
 *     kd_row_x_sums      the class's share of the two sums a and b, from what else is known of the row
 *     kd_row_x_value     the row's value, in nats, from the statistics
 *     kd_row_x_gradient  d value / d(z_j / T) of one class
 *
 * and the includer (ops/row_loss.c, kernels/ops/row_loss.cu) makes of them
 *
 *     loss       =  weight * T^2 * value                   (T^2 where the term asks for it)
 *     d_student +=  weight * scale * T^2 / T * gradient           (exactly 0 for dead classes)
 *
 * Classes at -inf.  A class whose tempered logit (z - max z) / T is -inf is dead: its probability
 * is 0, its gradient exactly 0, and where a divergence needs its logarithm against a probability
 * above 0 it is KD_ROW_LOG_FLOOR, so that value and gradient stay finite; the gradient is that of the
 * value with the dead logits held constant.  A dead class on both sides contributes 0, so a reader
 * may pad a row with -inf.  A row with no live class is not a distribution: NaN.
 *
 * A NaN or +inf logit makes every probability of its row NaN, and no ternary here hides it: tests
 * are written so that NaN takes the arithmetic side.  The includer's part is that in such a row the
 * logarithm of a dead class is NaN too, not the floor.
 *
 * Valid C11 and CUDA C++17; the includer defines first
 *     KD_ROW_FN       function qualifiers, such as `static inline`
 *     KD_ROW_LOG(x)   logarithm of a positive float
 *     KD_ROW_EXP(x)   exponential; 0 at -inf
 *     KD_ROW_ABS(x)   absolute value of a float
 *     KD_ROW_DIV(x, y) quotient of a float by a normal one, within 2 ulp; of the rest, as x / y
 *     KD_ROW_BRANCHES  1 where a branch on a term's option costs less than computing both sides
 * Else branch-free but for ternaries, so that sweeps over classes vectorise.
 */
#ifndef KD_ROW_H
#define KD_ROW_H

#define KD_ROW_LOG_FLOOR (-1e4f)

/* One class of one row at the term's temperature. */
typedef struct kd_row_class {
    float log_q, q; /* student; log_q is the floor where dead */
    float log_p, p; /* teacher; 0 where the term reads none */
    float live;     /* 1, or 0 where the student's class is dead */
    float label;    /* 1 at the row's label, else 0 */
    float top;      /* 1 at the teacher's first largest class, else 0; with KD_EXTRA_TOP */
    float z, t;     /* the logits; with KD_EXTRA_LOGITS and KD_EXTRA_REST */
} kd_row_class;

/* One side of a row without its label's class. */
typedef struct kd_row_rest {
    float max;      /* its largest logit; -inf: no class lives */
    float log_sum;  /* log sum_j exp((z_j - max) / T) */
    float log_mass; /* log of its share of the whole row's probability; floor where none lives */
} kd_row_rest;

typedef struct kd_row_sums {
    float a, b;
} kd_row_sums;

/* One row.  a and b are sums over classes, known to the value, and to the gradient of a term that
 * reads them as row_list.h says; else they may be 0 there. */
typedef struct kd_row_stats {
    float option, option2;
    float inv_t;       /* 1 / T */
    float lse;         /* log sum_j exp(z_j / T) */
    float log_q_label; /* of the label's class; floor where dead, 0 where the row has no label */
    float label_live;  /* 1, or 0 where the label's class is dead */
    float log_p_label; /* the teacher's; with KD_EXTRA_REST, as the next two */
    kd_row_rest rest_q, rest_p;
    float a, b;
} kd_row_stats;

/* A lambda up to this is 0: the mixture is its other part, whatever that is. */
#define KD_ROW_LAMBDA_MIN 1e-20f

/* share * x + (1 - share) * y, but never so small that x / m or y / m leaves the range of a float.
 * Where that bites, x and y are below 1e-36 / share and 1e-36 / (1 - share): nothing in a sum. */
KD_ROW_FN float kd_row_mix(float x, float y, float share)
{
    const float m = share * x + (1.0f - share) * y;
    return m < 1e-36f ? 1e-36f : m;
}

/*
 * log(x / m) of a mixture m, where x / m = 1 + y.  Near 1 the quotient has lost what y still
 * knows, far below 1 it is the other way round; the correction is Kahan's for log1p.
 */
KD_ROW_FN float kd_row_log_ratio(float x, float m, float y)
{
    const float ratio = KD_ROW_DIV(x, m);
    const float sum = 1.0f + y;
    const float lost = KD_ROW_DIV(y - (sum - 1.0f), sum);
    const float far = ratio < 1e-37f ? 1e-37f : ratio;
    const float argument = ratio < 0.5f ? far : sum;
    return KD_ROW_LOG(argument) + (ratio < 0.5f ? 0.0f : lost);
}

#endif
