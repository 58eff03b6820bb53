/* relation and relation_lse on a GPU, against the CPU. */
#include "support/parity.h"

#include <float.h>
#include <math.h>

enum { STACK = 64 << 20, DOCUMENTS = 9, STRANGERS = 3 }; /* rows before and after all documents */

typedef struct relation_case {
    const char *name;
    int64_t heads, groups, d, teacher_groups, teacher_d;
    kd_relation relation; /* T 0: 1 */
    bool self;            /* b is a, and db is da */
    bool weighted;        /* some rows of weight 0 among others */
    bool value;           /* without gradients */
    bool small;           /* the short documents alone */
    double size;          /* of the operands; 0: 1 */
    int64_t pad;          /* elements after each row */
} relation_case;

static const int32_t lengths[DOCUMENTS] = { 0, 1, 2, 63, 0, 65, 130, 3, 0 };
static const int32_t short_lengths[DOCUMENTS] = { 1, 0, 17, 33, 0, 5, 1, 3, 0 };

typedef struct operands {
    kd_tensor cu, a, b, teacher_a, teacher_b, lse, teacher_lse, weight, scale, loss, da, db;
} operands;

/* a and b as parts of one fused buffer, as a layer has them. */
static void make_pair(kd_tensor *a, kd_tensor *b, test_bench *bench, kd_dtype dtype, int64_t rows,
                      const relation_case *c, bool teacher, double size)
{
    const int64_t d = teacher ? c->teacher_d : c->d;
    const int64_t groups = teacher ? c->teacher_groups : c->groups;
    const kd_tensor fused =
        test_tensor(bench, dtype, KD_SHAPE(rows, (c->heads + groups) * d), c->pad);
    *a = test_heads(&fused, 0, c->heads, d);
    *b = c->self ? *a : test_heads(&fused, c->heads, groups, d);
    test_fill(bench, &fused, -size, size);
}

static operands make_operands(test_bench *bench, const relation_case *c, kd_dtype dtype,
                              kd_dtype teacher_dtype)
{
    operands x = { .cu = test_tensor(bench, KD_I32, KD_SHAPE(DOCUMENTS + 1), 0) };
    int32_t at = STRANGERS;
    for (int i = 0; i <= DOCUMENTS; i++) {
        test_set(&x.cu, i, at);
        if (i < DOCUMENTS) at += c->small ? short_lengths[i] : lengths[i];
    }
    const int64_t n = at + STRANGERS;
    const double size = c->size > 0 ? c->size : 1;
    make_pair(&x.a, &x.b, bench, dtype, n, c, false, size);
    make_pair(&x.teacher_a, &x.teacher_b, bench, teacher_dtype, n, c, true, size);
    if (!c->value) {
        make_pair(&x.da, &x.db, bench, dtype, n, c, false, 0.01);
        x.scale = test_filled(bench, KD_F32, KD_SHAPE(1), 0, 0.5, 0.6);
    }
    x.lse = test_tensor(bench, KD_F32, KD_SHAPE(c->heads, n), 7);
    x.teacher_lse = test_tensor(bench, KD_F32, KD_SHAPE(c->heads, n), 1);
    x.loss = test_tensor(bench, KD_F32, KD_SHAPE(n), 0);
    if (c->weighted) {
        x.weight = test_filled(bench, KD_F32, KD_SHAPE(n), 0, 0, 2);
        for (int64_t row = 0; row < n; row += 3) test_set(&x.weight, row, 0);
    }
    return x;
}

static kd_relation relation_of(const relation_case *c)
{
    kd_relation r = c->relation;
    if (r.temperature == 0) r.temperature = 1;
    r.student.scale = (float)(1 / sqrt((double)c->d));
    r.teacher.scale = (float)(1 / sqrt((double)c->teacher_d));
    return r;
}

static kd_relation_lse_args lse_of(const relation_case *c, const operands *x, bool teacher)
{
    const kd_relation r = relation_of(c);
    return (kd_relation_lse_args){ .lse = teacher ? &x->teacher_lse : &x->lse,
                                   .a = teacher ? &x->teacher_a : &x->a,
                                   .b = teacher ? &x->teacher_b : &x->b,
                                   .cu = &x->cu,
                                   .scores = teacher ? r.teacher : r.student,
                                   .temperature = r.temperature,
                                   .causal = r.causal,
                                   .window = r.window };
}

static kd_relation_args arguments(const relation_case *c, const operands *x)
{
    const bool kl = c->relation.kind == KD_RELATION_KL;
    return (kd_relation_args){ .loss = &x->loss,
                               .da = &x->da,
                               .db = &x->db,
                               .a = &x->a,
                               .b = &x->b,
                               .teacher_a = &x->teacher_a,
                               .teacher_b = &x->teacher_b,
                               .lse = kl ? &x->lse : NULL,
                               .teacher_lse = kl ? &x->teacher_lse : NULL,
                               .cu = &x->cu,
                               .weight = &x->weight,
                               .scale = &x->scale,
                               .relation = relation_of(c) };
}

/*
 * Scores have a standard deviation of size^2 / 3; a divergence has the errors of two of them and of two
 * log-sum-exps, a squared difference those of two times their size.  Tensor cores take ds rounded to
 * bf16, a relative 2^-9 of each term: ds of a row, without the factors behind, sum up to 2 in absolute
 * value for the KL and to twice the scores' difference for the MSE, and heads of a group are
 * independent.  What is there before (0.01), and between launches, is rounded too.
 */
static double scale_of_errors(const relation_case *c, kd_dtype dtype, double length)
{
    const kd_relation r = relation_of(c);
    const double size = c->size > 0 ? c->size : 1, t = (double)r.temperature;
    const double mse = r.kind == KD_RELATION_MSE ? size * size / t : 1;
    const double f32 = 4 * size * size * mse;
    if (dtype == KD_F32) return f32;
    const double factor = (r.t_squared ? t : 1 / t) * 0.6;
    const double group = c->self ? 2 : sqrt((double)(c->heads / c->groups));
    const double ds = factor * (double)r.student.scale / (double)c->heads * mse * size * group;
    return f32 + 0x1p-8 * (0.01 + ds) / FLT_EPSILON / sqrt(length);
}

static void check(parity *p, const relation_case *c, kd_dtype dtype, kd_dtype teacher_dtype)
{
    const int mark = test_mark(&p->bench);
    const operands x = make_operands(&p->bench, c, dtype, teacher_dtype);
    const double length = (double)(kd_max_i64(c->d, c->teacher_d) + 130 * c->heads / c->groups);
    const char *names[] = { kd_dtype_name(dtype), kd_dtype_name(teacher_dtype) };
    for (int teacher = 0; teacher < 2; teacher++) {
        const kd_relation_lse_args args = lse_of(c, &x, teacher);
        const double size = c->size > 0 ? c->size : 1;
        parity_run(p, KD_OP_relation_lse, &args, size * size, length,
                   parity_name("%s, lse %d, %s, %s", c->name, teacher, names[0], names[1]));
    }
    const kd_relation_args args = arguments(c, &x);
    parity_run(p, KD_OP_relation, &args, scale_of_errors(c, dtype, length), length,
               parity_name("%s, %s, %s", c->name, names[0], names[1]));
    test_release(&p->bench, mark);
}

#define KL  .relation.kind = KD_RELATION_KL
#define MSE .relation.kind = KD_RELATION_MSE
#define SIZES(r, rb, width, rtb, teacher_width)                                                    \
    .heads = r, .groups = rb, .d = width, .teacher_groups = rtb, .teacher_d = teacher_width

static const relation_case cases[] = {
    { "causal", SIZES(2, 2, 64, 2, 64), KL, .relation.causal = true },
    { "both ways", SIZES(2, 2, 16, 2, 64), KL, .small = true },
    { "one key head", SIZES(4, 1, 16, 2, 32), KL, .relation.causal = true, .weighted = true },
    { "unlike groups", SIZES(6, 3, 16, 2, 8), KL, .relation.causal = true, .small = true },
    { "self", SIZES(2, 2, 32, 2, 64), KL, .self = true, .weighted = true },
    { "self, wide", SIZES(1, 1, 128, 1, 96), KL, .self = true, .small = true },
    { "value", SIZES(2, 1, 32, 2, 24), KL, .value = true },
    { "head size 1", SIZES(2, 2, 1, 1, 5), KL, .relation.causal = true, .small = true, .pad = 1 },
    { "head size 256", SIZES(2, 1, 256, 1, 8), KL, .relation.causal = true, .small = true },
    { "head size 192", SIZES(2, 1, 24, 1, 192), KL, .pad = 8, .small = true },
    { "window 5", SIZES(2, 1, 8, 2, 8), KL, .relation.causal = true, .relation.window = 5 },
    { "window 90", SIZES(2, 1, 8, 2, 8), KL, .relation.window = 90 },
    { "softcap, T 2", SIZES(2, 1, 32, 2, 40), KL, .relation.student.softcap = 1.5f,
      .relation.temperature = 2, .relation.t_squared = true, .size = 2, .small = true },
    { "softcap of the teacher", SIZES(2, 1, 32, 2, 40), KL, .relation.teacher.softcap = 1.5f,
      .small = true },
    { "peaked", SIZES(1, 1, 64, 1, 64), KL, .relation.causal = true, .size = 8, .small = true },
    { "scores", SIZES(2, 1, 40, 2, 24), MSE, .relation.causal = true, .weighted = true },
    { "scores, softcap, T", SIZES(2, 2, 16, 1, 64), MSE, .relation.student.softcap = 1,
      .relation.temperature = 0.5f, .small = true },
    { "scores of values", SIZES(2, 2, 9, 2, 64), MSE, .self = true, .small = true },
    { "scores, floor", SIZES(2, 2, 16, 2, 8), MSE, .relation.floor = -0.5f, .size = 2,
      .small = true },
    { "scores, pairs", SIZES(2, 2, 16, 2, 8), MSE, .relation.pairs = 128, .small = true },
};

Test(relation, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, STACK);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        check(&p, &cases[i], KD_BF16, KD_BF16);
        check(&p, &cases[i], KD_F32, i % 2 ? KD_BF16 : KD_F32);
    }
    check(&p, &cases[1], KD_BF16, KD_F32);
    parity_close(&p);
}

/* No row; rows and no document. */
Test(relation, nothing_to_do)
{
    parity p;
    parity_open(&p, STACK);
    const relation_case c = { "empty", SIZES(2, 1, 8, 2, 8), KL, .small = true };
    for (int form = 0; form < 4; form++) {
        const int mark = test_mark(&p.bench);
        const kd_dtype dtype = form & 1 ? KD_BF16 : KD_F32;
        operands x = make_operands(&p.bench, &c, dtype, dtype);
        kd_tensor *rows[] = { &x.a, &x.b, &x.teacher_a, &x.teacher_b, &x.loss, &x.da, &x.db };
        test_fill_constant(&x.cu, 0);
        test_fill_constant(&x.lse, -INFINITY);
        test_fill_constant(&x.teacher_lse, -INFINITY);
        for (int i = 0; i < KD_COUNT(rows) && form & 2; i++)
            *rows[i] = kd_tensor_slice(rows[i], 0, 0, 0);
        if (form & 2) x.lse = kd_tensor_slice(&x.lse, 1, 0, 0);
        if (form & 2) x.teacher_lse = kd_tensor_slice(&x.teacher_lse, 1, 0, 0);
        const kd_relation_lse_args lse = lse_of(&c, &x, false);
        parity_run(&p, KD_OP_relation_lse, &lse, 1, 1, parity_name("lse, form %d", form));
        const kd_relation_args args = arguments(&c, &x);
        parity_run(&p, KD_OP_relation, &args, 1, 1, parity_name("form %d", form));
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* Offsets that are none leave NaN, and no byte outside the operands is touched. */
Test(relation, bad_offsets_give_nan)
{
    parity p;
    parity_open(&p, STACK);
    const relation_case c = { "bad", SIZES(2, 1, 32, 1, 16), KL, .small = true };
    for (int form = 0; form < 4; form++) {
        const int mark = test_mark(&p.bench);
        const kd_dtype dtype = form & 1 ? KD_BF16 : KD_F32;
        const operands x = make_operands(&p.bench, &c, dtype, dtype);
        test_fill(&p.bench, &x.lse, 1, 2);
        test_fill(&p.bench, &x.teacher_lse, 1, 2);
        test_set(&x.cu, 4, form & 2 ? -1 : 1 << 30);
        const kd_relation_args args = arguments(&c, &x);
        test_ok(parity_run_gpu(&p, KD_OP_relation, &args));
        const kd_relation_lse_args lse = lse_of(&c, &x, false);
        test_ok(parity_run_gpu(&p, KD_OP_relation_lse, &lse));
        const kd_tensor *out[] = { &x.loss, &x.da, &x.db, &x.lse };
        for (int t = 0; t < KD_COUNT(out); t++)
            for (int64_t e = 0; e < kd_tensor_elements(out[t]); e++)
                cr_assert(isnan(test_get(out[t], e)), "form %d: output %d, %lld", form, t,
                          (long long)e);
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}
