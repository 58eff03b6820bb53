/* attention on a GPU, against the CPU. */
#include "support/parity.h"

#include <float.h>
#include <math.h>

enum {
    STACK = 64 << 20,
    STRANGERS = 3,
    MAX_DOCUMENTS = 12
}; /* rows before and after all documents */

/* Lengths end at the first below zero. */
typedef struct lengths {
    int32_t q[MAX_DOCUMENTS], k[MAX_DOCUMENTS];
} lengths;

/* Around the 16 rows of a product, the 32 and 64 keys of a tile and the 128 queries of a block;
 * several documents in a block and blocks in a document; documents of no query, no key, neither. */
static const lengths alike = { { 1, 15, 0, 16, 17, 63, 64, 65, -1 },
                               { 1, 15, 0, 16, 17, 63, 64, 65 } },
                     long_one = { { 3, 127, 129, -1 }, { 3, 127, 129 } },
                     cross = { { 0, 1, 2, 63, 0, 64, 33, 130, 3, 0, -1 },
                               { 5, 0, 67, 63, 0, 1, 200, 31, 2, 0 } },
                     one_short = { { 63, -1 }, { 63 } }, one_query = { { 1, -1 }, { 300 } };

typedef struct attention_case {
    const char *name;
    int64_t heads, groups, d;
    const lengths *documents;
    bool causal;
    int64_t window;
    double softcap, size; /* size of q and k; 0: 1 */
    int64_t pad;          /* elements after each row: not a multiple of 8: no aligned rows */
} attention_case;

typedef struct operands {
    kd_tensor cu_q, cu_k, q, k, v, o, lse;
    int64_t longest;
} operands;

static kd_tensor offsets(test_bench *bench, const int32_t *list)
{
    int count = 0;
    while (count < MAX_DOCUMENTS && list[count] >= 0) count++;
    return test_offsets(bench, list, count, STRANGERS);
}

/* q, k and v are views of one buffer where all have the same rows, else q and o, and k and v.
 * Rows of no document are NaN. */
static operands make_operands(test_bench *bench, const attention_case *c, kd_dtype dtype)
{
    operands x = { .cu_q = offsets(bench, c->documents->q),
                   .cu_k = offsets(bench, c->documents->k) };
    const int64_t documents = x.cu_q.shape[0] - 1, pad = c->pad, heads = c->heads,
                  groups = c->groups;
    x.cu_k = kd_tensor_slice(&x.cu_k, 0, 0, documents + 1);
    const int64_t nq = (int64_t)test_get(&x.cu_q, documents) + STRANGERS;
    const int64_t nk = (int64_t)test_get(&x.cu_k, documents) + STRANGERS;
    for (int64_t i = 0; i < documents; i++) x.longest = kd_max_i64(x.longest, c->documents->k[i]);
    if (nq == nk) {
        const kd_tensor all =
            test_tensor(bench, dtype, KD_SHAPE(nq, (heads + 2 * groups) * c->d), pad);
        x.q = test_heads(&all, 0, heads, c->d);
        x.k = test_heads(&all, heads, groups, c->d);
        x.v = test_heads(&all, heads + groups, groups, c->d);
        x.o = test_tensor(bench, dtype, KD_SHAPE(nq, heads, c->d), 2 * pad);
    } else {
        const kd_tensor qo = test_tensor(bench, dtype, KD_SHAPE(nq, 2 * heads * c->d), pad);
        const kd_tensor kv = test_tensor(bench, dtype, KD_SHAPE(nk, 2 * groups * c->d), 3 * pad);
        x.q = test_heads(&qo, 0, heads, c->d);
        x.o = test_heads(&qo, heads, heads, c->d);
        x.k = test_heads(&kv, 0, groups, c->d);
        x.v = test_heads(&kv, groups, groups, c->d);
    }
    const double size = c->size > 0 ? c->size : 1;
    test_fill(bench, &x.q, -size, size);
    test_fill(bench, &x.k, -size, size);
    test_fill(bench, &x.v, -1, 1);
    const kd_tensor *in[] = { &x.q, &x.k, &x.v };
    for (int i = 0; i < KD_COUNT(in); i++) {
        const int64_t rows = in[i]->shape[0];
        const kd_tensor before = kd_tensor_slice(in[i], 0, 0, STRANGERS);
        const kd_tensor after = kd_tensor_slice(in[i], 0, rows - STRANGERS, STRANGERS);
        test_fill_constant(&before, NAN);
        test_fill_constant(&after, NAN);
    }
    x.lse = test_tensor(bench, KD_F32, KD_SHAPE(heads, nq), 7);
    return x;
}

static kd_attention_args arguments(const attention_case *c, const operands *x)
{
    return (kd_attention_args){ .o = &x->o,
                                .lse = &x->lse,
                                .q = &x->q,
                                .k = &x->k,
                                .v = &x->v,
                                .cu_q = &x->cu_q,
                                .cu_k = &x->cu_k,
                                .scale = (float)(1 / sqrt((double)c->d)),
                                .causal = c->causal,
                                .window = c->window,
                                .softcap = (float)c->softcap };
}

/*
 * Scores have a standard deviation of size^2 / 3, or are of the size of the softcap, whose tanh is
 * within 3e-7, and their errors are errors of the weights.  In bf16 the weights are rounded too: by
 * up to 2^-9 of themselves, so o, a mean of values up to 1, by up to 2^-9.  lse does not know of
 * that, so it is compared once more, without.
 */
static void check(parity *p, const attention_case *c, kd_dtype dtype)
{
    const int mark = test_mark(&p->bench);
    const operands x = make_operands(&p->bench, c, dtype);
    const kd_attention_args args = arguments(c, &x);
    const char *name = parity_name("%s, %s", c->name, kd_dtype_name(dtype));
    const double size = c->size > 0 ? c->size : 1, length = (double)(c->d + x.longest);
    const double scale = size * size + 3 * c->softcap;
    const double rounded = dtype == KD_BF16 ? 0x1p-9 / FLT_EPSILON / sqrt(length) : 0;
    parity_run(p, KD_OP_attention, &args, scale + rounded, length, name);
    const double *lse = test_doubles(&p->bench, &x.lse);
    test_ok(parity_run_gpu(p, KD_OP_attention, &args));
    test_near(&x.lse, lse, scale, length, "%s: lse", name);
    test_release(&p->bench, mark);
}

static const attention_case cases[] = {
    { "causal", 2, 2, 64, .documents = &alike, .causal = true },
    { "both ways", 2, 2, 64, .documents = &alike },
    { "several blocks", 1, 1, 64, .documents = &long_one, .causal = true },
    { "head size 8", 2, 1, 8, .documents = &alike, .causal = true },
    { "grouped", 6, 3, 32, .documents = &alike, .causal = true },
    { "one key head", 8, 1, 16, .documents = &alike, .causal = true },
    { "head size 40", 1, 1, 40, .documents = &alike },
    { "head size 72", 1, 1, 72, .documents = &cross, .causal = true },
    { "head size 96", 2, 1, 96, .documents = &alike, .causal = true, .pad = 8 },
    { "head size 128", 2, 1, 128, .documents = &cross, .causal = true },
    { "head size 136", 1, 1, 136, .documents = &cross },
    { "head size 192", 1, 1, 192, .documents = &alike, .causal = true },
    { "head size 256", 1, 1, 256, .documents = &cross, .causal = true },
    { "cross", 4, 2, 24, .documents = &cross, .pad = 8 },
    { "cross causal", 4, 2, 24, .documents = &cross, .causal = true },
    { "one key less than a tile", 1, 1, 64, .documents = &one_short },
    { "one query", 2, 1, 64, .documents = &one_query, .causal = true },
    { "window 1", 2, 1, 16, .documents = &alike, .causal = true, .window = 1 },
    { "window 5", 2, 1, 16, .documents = &alike, .causal = true, .window = 5 },
    { "window 64", 1, 1, 16, .documents = &long_one, .causal = true, .window = 64 },
    { "window 90 both ways", 2, 1, 16, .documents = &cross, .window = 90 },
    { "window 3 cross causal", 2, 1, 16, .documents = &cross, .causal = true, .window = 3 },
    { "softcap", 1, 1, 64, .documents = &alike, .causal = true, .softcap = 1.5, .size = 2 },
    { "softcap 50", 2, 1, 64, .documents = &cross, .softcap = 50 },
    { "peaked", 1, 1, 64, .documents = &alike, .causal = true, .size = 10 },
    { "steep", 1, 1, 64, .documents = &long_one, .size = 40 },
    { "head size 33", 2, 1, 33, .documents = &alike, .causal = true },
    { "rows not aligned", 2, 1, 16, .documents = &alike, .causal = true, .pad = 3 },
};

Test(attention, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, STACK);
    for (int i = 0; i < KD_COUNT(cases); i++) check(&p, &cases[i], KD_BF16);
    for (int i = 0; i < KD_COUNT(cases); i += 3) check(&p, &cases[i], KD_F32);
    parity_close(&p);
}

/* No query, no key, no document. */
Test(attention, nothing_to_do)
{
    parity p;
    parity_open(&p, STACK);
    const attention_case c = { "empty", 2, 1, 32, .documents = &cross };
    for (int form = 0; form < 8; form++) {
        const int mark = test_mark(&p.bench);
        operands x = make_operands(&p.bench, &c, form & 4 ? KD_BF16 : KD_F32);
        test_fill_constant(&x.cu_q, 0);
        test_fill_constant(&x.cu_k, 0);
        if (form & 1) {
            x.q = kd_tensor_slice(&x.q, 0, 0, 0);
            x.o = kd_tensor_slice(&x.o, 0, 0, 0);
            x.lse = kd_tensor_slice(&x.lse, 1, 0, 0);
        }
        if (form & 2) {
            x.k = kd_tensor_slice(&x.k, 0, 0, 0);
            x.v = kd_tensor_slice(&x.v, 0, 0, 0);
        }
        if (form == 7) {
            x.cu_q = kd_tensor_slice(&x.cu_q, 0, 0, 1);
            x.cu_k = kd_tensor_slice(&x.cu_k, 0, 0, 1);
        }
        const kd_attention_args args = arguments(&c, &x);
        parity_run(&p, KD_OP_attention, &args, 1, 1, parity_name("form %d", form));
        test_release(&p.bench, mark);
    }
    parity_close(&p);
}

/* A key that is NaN poisons who sees it and nobody else, in its document and in others. */
Test(attention, nan_in_a_key_reaches_who_sees_it)
{
    enum { DOCUMENT = 7, KEY = 40 };
    parity p;
    parity_open(&p, STACK);
    const attention_case c = { "NaN", 2, 1, 64, .documents = &alike, .causal = true, .window = 20 };
    const operands x = make_operands(&p.bench, &c, KD_BF16);
    const kd_attention_args args = arguments(&c, &x);
    const int64_t bad = (int64_t)test_get(&x.cu_q, DOCUMENT) + KEY;
    test_set(&x.k, bad * c.d + 3, NAN);
    test_ok(parity_run_gpu(&p, KD_OP_attention, &args));
    for (int64_t row = 0; row < x.o.shape[0]; row++) {
        const bool sees = row >= bad && row < bad + c.window;
        for (int64_t head = 0; head < c.heads; head++) {
            const double lse = test_get(&x.lse, head * x.o.shape[0] + row);
            cr_assert_eq(isnan(lse) != 0, sees, "lse of head %lld, row %lld", (long long)head,
                         (long long)row);
            for (int64_t i = 0; i < c.d; i++)
                cr_assert_eq(isnan(test_get(&x.o, (row * c.heads + head) * c.d + i)) != 0, sees,
                             "head %lld, row %lld, element %lld", (long long)head, (long long)row,
                             (long long)i);
        }
    }
    parity_close(&p);
}

/* Offsets that are none leave NaN, and no byte outside the operands is touched. */
Test(attention, bad_offsets_give_nan)
{
    static const struct {
        int at, value;
    } bad[] = { { 0, -1 }, { 4, -1 }, { 5, 1 << 30 }, { 10, 1 << 30 }, { 6, 2 } };
    parity p;
    parity_open(&p, STACK);
    const attention_case c = { "bad", 2, 1, 32, .documents = &cross, .causal = true };
    for (int i = 0; i < KD_COUNT(bad); i++)
        for (int form = 0; form < 4; form++) {
            const int mark = test_mark(&p.bench);
            const operands x = make_operands(&p.bench, &c, form & 1 ? KD_BF16 : KD_F32);
            const kd_attention_args args = arguments(&c, &x);
            test_set(form & 2 ? &x.cu_k : &x.cu_q, bad[i].at, bad[i].value);
            test_ok(parity_run_gpu(&p, KD_OP_attention, &args));
            for (int64_t e = 0; e < kd_tensor_elements(&x.o); e++)
                cr_assert(isnan(test_get(&x.o, e)), "offset %d, form %d: o[%lld]", i, form,
                          (long long)e);
            for (int64_t e = 0; e < kd_tensor_elements(&x.lse); e++)
                cr_assert(isnan(test_get(&x.lse, e)), "offset %d, form %d: lse[%lld]", i, form,
                          (long long)e);
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}
