/* attention_backward on a GPU, against the CPU. */
#include "support/parity.h"

#include <float.h>
#include <math.h>

enum { STACK = 64 << 20, DOCUMENTS = 11, STRANGERS = 3 }; /* rows before and after all documents */

typedef struct backward_case {
    const char *name;
    int64_t heads, groups, d;
    bool causal;
    int64_t window;
    double softcap, size; /* size of q and k; 0: 1 */
    bool cross;           /* keys of other lengths */
    bool small;           /* the short documents alone */
    int64_t pad;          /* elements after each row */
    bool overflow;        /* the scores of a document are all -inf, of finite operands */
} backward_case;

static const int32_t query_lengths[DOCUMENTS] = { 0, 1, 2, 63, 0, 64, 65, 130, 3, 70, 0 };
static const int32_t key_lengths[DOCUMENTS] = { 5, 0, 67, 63, 0, 1, 140, 64, 2, 129, 0 };
static const int32_t short_queries[DOCUMENTS] = { 0, 1, 2, 17, 0, 5, 33, 0, 3, 1, 0 };
static const int32_t short_keys[DOCUMENTS] = { 2, 0, 31, 17, 0, 1, 40, 7, 2, 1, 0 };

typedef struct operands {
    kd_tensor cu_q, cu_k, q, k, v, o, lse, dout, dq, dk, dv;
    double length; /* of the longest sum */
} operands;

/* q and o are views of one buffer, k and v of another. */
static operands make_operands(test_bench *bench, const backward_case *c, kd_dtype dtype)
{
    operands x = { 0 };
    x.cu_q = test_offsets(bench, c->small ? short_queries : query_lengths, DOCUMENTS, STRANGERS);
    if (c->cross)
        x.cu_k = test_offsets(bench, c->small ? short_keys : key_lengths, DOCUMENTS, STRANGERS);
    else
        x.cu_k = x.cu_q;
    const int64_t nq = (int64_t)test_get(&x.cu_q, DOCUMENTS) + STRANGERS;
    const int64_t nk = (int64_t)test_get(&x.cu_k, DOCUMENTS) + STRANGERS;
    const kd_tensor qo = test_tensor(bench, dtype, KD_SHAPE(nq, 2 * c->heads * c->d), c->pad);
    const kd_tensor kv = test_tensor(bench, dtype, KD_SHAPE(nk, 2 * c->groups * c->d), c->pad);
    const double size = c->size > 0 ? c->size : 1;
    x.q = test_heads(&qo, 0, c->heads, c->d);
    x.o = test_heads(&qo, c->heads, c->heads, c->d);
    x.k = test_heads(&kv, 0, c->groups, c->d);
    x.v = test_heads(&kv, c->groups, c->groups, c->d);
    test_fill(bench, &x.q, -size, size);
    test_fill(bench, &x.k, -size, size);
    test_fill(bench, &x.v, -1, 1);
    if (c->overflow)
        for (int64_t row = (int64_t)test_get(&x.cu_q, 6); row < test_get(&x.cu_q, 7); row++) {
            test_set(&x.q, row * c->heads * c->d, 1e20);
            test_set(&x.k, row * c->groups * c->d, -1e20);
        }
    x.dout = test_filled(bench, dtype, KD_SHAPE(nq, c->heads, c->d), 2 * c->pad, -1, 1);
    x.dq = test_tensor(bench, dtype, KD_SHAPE(nq, c->heads, c->d), c->pad);
    x.dk = test_tensor(bench, dtype, KD_SHAPE(nk, c->groups, c->d), c->pad);
    x.dv = test_tensor(bench, dtype, KD_SHAPE(nk, c->groups, c->d), 0);
    x.lse = test_tensor(bench, KD_F32, KD_SHAPE(c->heads, nq), 7);
    x.length = (double)(c->d + 200 * c->heads / c->groups);
    return x;
}

static kd_attention_backward_args arguments(const backward_case *c, const operands *x)
{
    return (kd_attention_backward_args){ .dq = &x->dq,
                                         .dk = &x->dk,
                                         .dv = &x->dv,
                                         .dout = &x->dout,
                                         .o = &x->o,
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
 * Scores have a standard deviation of size^2 / 3, and their errors are errors of the weights.  Tensor
 * cores take weights p and gradients ds rounded to bf16: a relative 2^-9 of each term; the terms of
 * a row of dq, scaled, sum up to at most max |dp - delta| |k| / sqrt(d), about 2 size, those of dk
 * and dv to that for each head of the group, where they are independent.
 */
static double scale_of_errors(const backward_case *c, const operands *x, kd_dtype dtype)
{
    const double size = c->size > 0 ? c->size : 1, f32 = size * size;
    if (dtype == KD_F32) return f32;
    const double group = (double)(c->heads / c->groups);
    return f32 + 0x1p-8 * size * sqrt(group) / FLT_EPSILON / sqrt(x->length);
}

static void check(parity *p, const backward_case *c, kd_dtype dtype)
{
    const int mark = test_mark(&p->bench);
    const operands x = make_operands(&p->bench, c, dtype);
    const kd_attention_backward_args args = arguments(c, &x);
    test_ok(KD_RUN(&p->bench.exec, attention, .o = &x.o, .lse = &x.lse, .q = &x.q, .k = &x.k,
                   .v = &x.v, .cu_q = &x.cu_q, .cu_k = &x.cu_k, .scale = args.scale,
                   .causal = c->causal, .window = c->window, .softcap = args.softcap));
    const char *name = parity_name("%s, %s", c->name, kd_dtype_name(dtype));
    parity_run(p, KD_OP_attention_backward, &args, scale_of_errors(c, &x, dtype), x.length, name);
    test_release(&p->bench, mark);
}

static const backward_case cases[] = {
    { "causal", 3, 3, 64, .causal = true },
    { "both ways", 2, 2, 16, .small = true },
    { "grouped", 6, 3, 32, .causal = true },
    { "parts of a group", 6, 2, 16, .causal = true },
    { "uneven parts", 5, 1, 32, .pad = 8 },
    { "parts, above 128", 3, 1, 136, .causal = true, .small = true },
    { "one key head", 6, 1, 16, .causal = true, .small = true },
    { "head size 1", 2, 2, 1, .causal = true, .small = true },
    { "head size 33", 2, 1, 33, .causal = true, .pad = 3 },
    { "head size 256", 2, 1, 256, .causal = true, .small = true },
    { "cross", 4, 2, 24, .cross = true },
    { "cross causal", 4, 2, 24, .cross = true, .causal = true },
    { "window 1", 2, 1, 8, .causal = true, .window = 1 },
    { "window 5", 2, 1, 8, .causal = true, .window = 5, .pad = 1 },
    { "window 64", 2, 1, 8, .causal = true, .window = 64 },
    { "window 90", 2, 1, 8, .window = 90, .cross = true },
    { "window 7 both ways", 2, 1, 8, .window = 7 },
    { "window 3 cross causal", 2, 1, 40, .causal = true, .window = 3, .cross = true },
    { "window without end", 2, 1, 8, .window = INT64_MAX / 4, .small = true },
    { "softcap", 2, 1, 64, .causal = true, .softcap = 1.5, .size = 2, .small = true },
    { "softcap 50", 2, 1, 64, .softcap = 50, .cross = true },
    { "peaked", 2, 1, 64, .causal = true, .size = 10, .small = true },
    { "overflow", 1, 1, 64, .causal = true, .small = true, .overflow = true },
    { "head size 96", 2, 1, 96, .causal = true, .small = true, .cross = true },
    { "head size 128", 2, 1, 128, .causal = true, .pad = 8 },
    { "head size 192", 2, 2, 192, .small = true },
};

Test(attention_backward, agrees_with_the_cpu)
{
    parity p;
    parity_open(&p, STACK);
    for (int i = 0; i < KD_COUNT(cases); i++) {
        check(&p, &cases[i], KD_F32);
        check(&p, &cases[i], KD_BF16);
    }
    parity_close(&p);
}

/* No query, no key, no document. */
Test(attention_backward, nothing_to_do)
{
    parity p;
    parity_open(&p, STACK);
    const backward_case c = { "empty", 2, 1, 8, .small = true, .cross = true };
    for (int form = 0; form < 4; form++)
        for (int dtype = 0; dtype < 2; dtype++) {
            const int mark = test_mark(&p.bench);
            operands x = make_operands(&p.bench, &c, dtype ? KD_BF16 : KD_F32);
            kd_tensor *of_queries[] = { &x.q, &x.o, &x.dout, &x.dq },
                      *of_keys[] = { &x.k, &x.v, &x.dk, &x.dv };
            test_fill_constant(&x.o, 0);
            test_fill_constant(&x.lse, -INFINITY);
            test_fill_constant(&x.cu_q, 0);
            test_fill_constant(&x.cu_k, 0);
            for (int i = 0; i < 4; i++) {
                if (form & 1) *of_queries[i] = kd_tensor_slice(of_queries[i], 0, 0, 0);
                if (form & 2) *of_keys[i] = kd_tensor_slice(of_keys[i], 0, 0, 0);
            }
            if (form & 1) x.lse = kd_tensor_slice(&x.lse, 1, 0, 0);
            const kd_attention_backward_args args = arguments(&c, &x);
            parity_run(&p, KD_OP_attention_backward, &args, 1, 1, parity_name("form %d", form));
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}

/* Offsets that are none leave NaN, and no byte outside the operands is touched. */
Test(attention_backward, bad_offsets_give_nan)
{
    static const struct {
        int at, value;
    } bad[] = { { 0, -1 }, { 4, -1 }, { 5, 1 << 30 }, { DOCUMENTS, 1 << 30 }, { 6, 2 } };
    parity p;
    parity_open(&p, STACK);
    const backward_case c = { "bad", 2, 1, 32, .causal = true, .cross = true, .small = true };
    for (int i = 0; i < KD_COUNT(bad); i++)
        for (int form = 0; form < 4; form++) {
            const int mark = test_mark(&p.bench);
            const operands x = make_operands(&p.bench, &c, form & 1 ? KD_BF16 : KD_F32);
            const kd_attention_backward_args args = arguments(&c, &x);
            test_fill(&p.bench, &x.o, -1, 1);
            test_fill(&p.bench, &x.lse, 1, 2);
            test_set(form & 2 ? &x.cu_k : &x.cu_q, bad[i].at, bad[i].value);
            test_ok(parity_run_gpu(&p, KD_OP_attention_backward, &args));
            const kd_tensor *out[] = { &x.dq, &x.dk, &x.dv };
            for (int t = 0; t < 3; t++)
                for (int64_t e = 0; e < kd_tensor_elements(out[t]); e++)
                    cr_assert(isnan(test_get(out[t], e)), "offset %d, form %d: gradient %d, %lld",
                              i, form, t, (long long)e);
            test_release(&p.bench, mark);
        }
    parity_close(&p);
}
