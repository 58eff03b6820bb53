#include "oracle/attention.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

enum { MAX_DOCUMENTS = 16 };

typedef struct attention_case {
    const char *name;
    int64_t heads, groups, d;
    bool causal;
    int64_t window;
    double softcap;
    kd_dtype dtype;
    bool cross;  /* keys of other lengths, in tensors of their own; else one fused q, k, v */
    double size; /* of q and k; 0: 1 */
} attention_case;

static const int32_t query_lengths[] = { 0, 1, 2, 63, 0, 64, 65, 130, 3, 70, 0 };
static const int32_t key_lengths[] = { 5, 0, 67, 63, 0, 1, 200, 64, 2, 129, 0 };
enum { DOCUMENTS = KD_COUNT(query_lengths), STRANGERS = 3 }; /* rows before and after */

typedef struct operands {
    kd_tensor cu_q, cu_k, q, k, v, o, lse, dout, dq, dk, dv;
    int64_t longest;
} operands;

/* q, k, v (or their gradients) as views of one buffer, or three padded ones. */
static void make_qkv(kd_tensor *q, kd_tensor *k, kd_tensor *v, test_bench *bench,
                     const attention_case *c, int64_t nq, int64_t nk, bool fill)
{
    const double size = fill ? (c->size > 0 ? c->size : 1) : 0;
    if (!c->cross) {
        const kd_tensor fused =
            test_tensor(bench, c->dtype, KD_SHAPE(nq, (c->heads + 2 * c->groups) * c->d), 3);
        *q = test_heads(&fused, 0, c->heads, c->d);
        *k = test_heads(&fused, c->heads, c->groups, c->d);
        *v = test_heads(&fused, c->heads + c->groups, c->groups, c->d);
    } else {
        *q = test_tensor(bench, c->dtype, KD_SHAPE(nq, c->heads, c->d), 1);
        *k = test_tensor(bench, c->dtype, KD_SHAPE(nk, c->groups, c->d), 5);
        *v = test_tensor(bench, c->dtype, KD_SHAPE(nk, c->groups, c->d), 0);
    }
    if (!fill) return;
    test_fill(bench, q, -size, size);
    test_fill(bench, k, -size, size);
    test_fill(bench, v, -1, 1);
}

static operands make_operands(test_bench *bench, const attention_case *c)
{
    operands x = { .cu_q = test_offsets(bench, query_lengths, DOCUMENTS, STRANGERS) };
    x.cu_k = c->cross ? test_offsets(bench, key_lengths, DOCUMENTS, STRANGERS) : x.cu_q;
    const int64_t nq = (int64_t)test_get(&x.cu_q, DOCUMENTS) + STRANGERS;
    const int64_t nk = (int64_t)test_get(&x.cu_k, DOCUMENTS) + STRANGERS;
    make_qkv(&x.q, &x.k, &x.v, bench, c, nq, nk, true);
    make_qkv(&x.dq, &x.dk, &x.dv, bench, c, nq, nk, false);
    x.o = test_tensor(bench, c->dtype, KD_SHAPE(nq, c->heads, c->d), 2);
    x.dout = test_filled(bench, c->dtype, KD_SHAPE(nq, c->heads, c->d), 0, -1, 1);
    x.lse = test_tensor(bench, KD_F32, KD_SHAPE(c->heads, nq), 7);
    x.longest = c->cross ? 200 : 130;
    return x;
}

static float scale_of(const attention_case *c) { return (float)(1 / sqrt((double)c->d)); }

static kd_status forward(kd_exec *exec, const attention_case *c, const operands *x)
{
    return KD_RUN(exec, attention, .o = &x->o, .lse = &x->lse, .q = &x->q, .k = &x->k, .v = &x->v,
                  .cu_q = &x->cu_q, .cu_k = &x->cu_k, .scale = scale_of(c), .causal = c->causal,
                  .window = c->window, .softcap = (float)c->softcap);
}

static kd_status backward(kd_exec *exec, const attention_case *c, const operands *x)
{
    return KD_RUN(exec, attention_backward, .dq = &x->dq, .dk = &x->dk, .dv = &x->dv,
                  .dout = &x->dout, .o = &x->o, .lse = &x->lse, .q = &x->q, .k = &x->k, .v = &x->v,
                  .cu_q = &x->cu_q, .cu_k = &x->cu_k, .scale = scale_of(c), .causal = c->causal,
                  .window = c->window, .softcap = (float)c->softcap);
}

static oracle_attention oracle_of(test_bench *bench, const attention_case *c, const operands *x)
{
    return (oracle_attention){ .nq = x->q.shape[0],
                               .nk = x->k.shape[0],
                               .heads = c->heads,
                               .groups = c->groups,
                               .d = c->d,
                               .documents = DOCUMENTS,
                               .cu_q = x->cu_q.data,
                               .cu_k = x->cu_k.data,
                               .q = test_doubles(bench, &x->q),
                               .k = test_doubles(bench, &x->k),
                               .v = test_doubles(bench, &x->v),
                               .scale = scale_of(c),
                               .softcap = c->softcap,
                               .causal = c->causal,
                               .window = c->window };
}

/* The scratch that a plan over untouchable operands counts. */
static size_t planned_bytes(test_bench *bench, const attention_case *c, const operands *x,
                            kd_status (*run)(kd_exec *, const attention_case *, const operands *))
{
    kd_stack stack;
    kd_exec exec = test_planning(bench, &stack);
    const operands fake = { .cu_q = test_untouchable(&x->cu_q),
                            .cu_k = test_untouchable(&x->cu_k),
                            .q = test_untouchable(&x->q),
                            .k = test_untouchable(&x->k),
                            .v = test_untouchable(&x->v),
                            .o = test_untouchable(&x->o),
                            .lse = test_untouchable(&x->lse),
                            .dout = test_untouchable(&x->dout),
                            .dq = test_untouchable(&x->dq),
                            .dk = test_untouchable(&x->dk),
                            .dv = test_untouchable(&x->dv) };
    test_ok(run(&exec, c, &fake));
    return stack.peak;
}

/* Runs on exactly the planned scratch. */
static void run_planned(test_bench *bench, const attention_case *c, const operands *x,
                        kd_status (*run)(kd_exec *, const attention_case *, const operands *))
{
    const size_t capacity = bench->stack.capacity, planned = planned_bytes(bench, c, x, run);
    cr_assert_leq(planned, capacity, "scratch of %zu bytes", planned);
    memset(bench->stack.base, 0xff, planned);
    bench->stack.capacity = planned;
    test_ok(run(&bench->exec, c, x));
    bench->stack.capacity = capacity;
}

static void check(test_bench *bench, const attention_case *c)
{
    const int mark = test_mark(bench);
    const operands x = make_operands(bench, c);
    const oracle_attention a = oracle_of(bench, c, &x);
    /* Scores have a standard deviation of size^2 / 3, and their errors are errors of the weights. */
    const double size = c->size > 0 ? c->size : 1, scale = size * size;
    const double length = (double)(c->d + x.longest * c->heads / c->groups);

    run_planned(bench, c, &x, forward);
    double *o = test_zeros(bench, a.nq * a.heads * a.d), *lse = test_zeros(bench, a.nq * a.heads);
    oracle_attention_forward(o, lse, &a);
    test_near(&x.o, o, scale, length, "%s: o", c->name);
    test_near(&x.lse, lse, scale, length, "%s: lse", c->name);

    run_planned(bench, c, &x, backward);
    double *dq = test_zeros(bench, a.nq * a.heads * a.d);
    double *dk = test_zeros(bench, a.nk * a.groups * a.d);
    double *dv = test_zeros(bench, a.nk * a.groups * a.d);
    oracle_attention_backward(dq, dk, dv, test_doubles(bench, &x.dout), test_doubles(bench, &x.o),
                              &a);
    test_near(&x.dq, dq, scale, length, "%s: dq", c->name);
    test_near(&x.dk, dk, scale, length, "%s: dk", c->name);
    test_near(&x.dv, dv, scale, length, "%s: dv", c->name);
    test_release(bench, mark);
}

static const attention_case cases[] = {
    { .name = "causal", .heads = 3, .groups = 3, .d = 64, .causal = true },
    { .name = "both ways", .heads = 2, .groups = 2, .d = 64 },
    { .name = "grouped", .heads = 6, .groups = 2, .d = 32, .causal = true },
    { .name = "one key head", .heads = 6, .groups = 1, .d = 16, .causal = true },
    { .name = "head size 1", .heads = 2, .groups = 2, .d = 1, .causal = true },
    { .name = "head size 33", .heads = 2, .groups = 1, .d = 33, .causal = true },
    { .name = "head size 256", .heads = 2, .groups = 1, .d = 256, .causal = true },
    { .name = "cross", .heads = 4, .groups = 2, .d = 24, .cross = true },
    { .name = "cross causal", .heads = 4, .groups = 2, .d = 24, .cross = true, .causal = true },
    { .name = "window 1", .heads = 2, .groups = 1, .d = 8, .causal = true, .window = 1 },
    { .name = "window 5", .heads = 2, .groups = 1, .d = 8, .causal = true, .window = 5 },
    { .name = "window 64", .heads = 2, .groups = 1, .d = 8, .causal = true, .window = 64 },
    { .name = "window 90", .heads = 2, .groups = 1, .d = 8, .window = 90, .cross = true },
    { .name = "window 7 both ways", .heads = 2, .groups = 1, .d = 8, .window = 7 },
    { .name = "window 3 cross causal",
      .heads = 2,
      .groups = 1,
      .d = 40,
      .causal = true,
      .window = 3,
      .cross = true },
    { .name = "softcap",
      .heads = 2,
      .groups = 1,
      .d = 64,
      .causal = true,
      .softcap = 1.5,
      .size = 2 },
    { .name = "softcap 50", .heads = 2, .groups = 1, .d = 64, .cross = true, .softcap = 50 },
    { .name = "peaked", .heads = 2, .groups = 1, .d = 64, .causal = true, .size = 10 },
};

Test(attention, agrees_with_double)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    for (int dtype = 0; dtype < 2; dtype++)
        for (int i = 0; i < KD_COUNT(cases); i++) {
            attention_case c = cases[i];
            c.dtype = dtype ? KD_BF16 : KD_F32;
            check(&bench, &c);
        }
    test_close(&bench);
}

/* ---- the oracle itself ------------------------------------------------------------------------ */

typedef struct scalar_loss {
    oracle_attention a;
    const double *dout;
    double *o, *lse;
} scalar_loss;

static double loss(void *context)
{
    scalar_loss *s = context;
    oracle_attention_forward(s->o, s->lse, &s->a);
    double sum = 0;
    for (int64_t i = 0; i < s->a.nq * s->a.heads * s->a.d; i++) sum += s->o[i] * s->dout[i];
    return sum;
}

Test(attention, oracle_gradient_is_that_of_its_value)
{
    static const int32_t cu_q[] = { 0, 3, 3, 7 }, cu_k[] = { 0, 2, 4, 9 };
    enum { NQ = 8, NK = 9, H = 4, G = 2, D = 3 };
    for (int form = 0; form < 8; form++) {
        double q[NQ * H * D], k[NK * G * D], v[NK * G * D], dout[NQ * H * D], o[NQ * H * D],
            lse[NQ * H], dq[NQ * H * D], dk[NK * G * D], dv[NK * G * D];
        test_bench random = { .seed = 7 + (uint64_t)form };
        for (int i = 0; i < NQ * H * D; i++) q[i] = 4 * test_uniform(&random) - 2;
        for (int i = 0; i < NQ * H * D; i++) dout[i] = 2 * test_uniform(&random) - 1;
        for (int i = 0; i < NK * G * D; i++) k[i] = 4 * test_uniform(&random) - 2;
        for (int i = 0; i < NK * G * D; i++) v[i] = 2 * test_uniform(&random) - 1;
        scalar_loss s = { .dout = dout, .o = o, .lse = lse };
        s.a = (oracle_attention){ .nq = NQ,
                                  .nk = NK,
                                  .heads = H,
                                  .groups = G,
                                  .d = D,
                                  .documents = 3,
                                  .cu_q = cu_q,
                                  .cu_k = cu_k,
                                  .q = q,
                                  .k = k,
                                  .v = v,
                                  .scale = 0.7,
                                  .softcap = form & 1 ? 1.3 : 0,
                                  .causal = form & 2,
                                  .window = form & 4 ? 2 : 0 };
        (void)loss(&s);
        oracle_attention_backward(dq, dk, dv, dout, o, &s.a);
        test_gradient(loss, &s, q, NQ * H * D, dq, "form %d: q", form);
        test_gradient(loss, &s, k, NK * G * D, dk, "form %d: k", form);
        test_gradient(loss, &s, v, NK * G * D, dv, "form %d: v", form);
    }
}

/* ---- promises --------------------------------------------------------------------------------- */

Test(attention, bits_do_not_depend_on_threads)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    const attention_case c = {
        .heads = 6, .groups = 2, .d = 32, .causal = true, .softcap = 20, .dtype = KD_F32
    };
    operands x = make_operands(&bench, &c), first = x;
    for (int threads = 1; threads <= 5; threads += 2) {
        omp_set_num_threads(threads);
        if (threads > 1) {
            x.o = test_tensor(&bench, c.dtype, kd_shape_of(&first.o), 0);
            x.lse = test_tensor(&bench, KD_F32, kd_shape_of(&first.lse), 0);
            make_qkv(&x.dq, &x.dk, &x.dv, &bench, &c, x.q.shape[0], x.k.shape[0], false);
        }
        test_ok(forward(&bench.exec, &c, &x));
        test_ok(backward(&bench.exec, &c, &x));
        test_same_bits(&first.o, &x.o, "o, %d threads", threads);
        test_same_bits(&first.lse, &x.lse, "lse, %d threads", threads);
        test_same_bits(&first.dq, &x.dq, "dq, %d threads", threads);
        test_same_bits(&first.dk, &x.dk, "dk, %d threads", threads);
        test_same_bits(&first.dv, &x.dv, "dv, %d threads", threads);
    }
    test_close(&bench);
}

/* A number that is not finite must be seen, not masked: only rows that see it are poisoned. */
Test(attention, nan_in_a_key_reaches_who_sees_it)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    const attention_case c = { .heads = 1, .groups = 1, .d = 8, .causal = true, .dtype = KD_F32 };
    const operands x = make_operands(&bench, &c);
    const int64_t document = 7, begin = (int64_t)test_get(&x.cu_q, document);
    test_set(&x.k, (begin + 70) * c.d, NAN);
    test_ok(forward(&bench.exec, &c, &x));
    for (int64_t row = 0; row < x.o.shape[0]; row++) {
        const bool sees = row >= begin + 70 && row < begin + query_lengths[document];
        cr_assert_eq(isnan(test_get(&x.o, row * c.d)) != 0, sees, "row %lld", (long long)row);
        cr_assert_eq(isnan(test_get(&x.lse, row)) != 0, sees, "lse %lld", (long long)row);
    }
    test_close(&bench);
}

Test(attention, refuses)
{
    test_bench bench;
    test_open(&bench, 64u << 20);
    const attention_case c = { .heads = 4, .groups = 2, .d = 8, .causal = true, .dtype = KD_F32 };
    const operands x = make_operands(&bench, &c);
    operands bad = x;
    bad.k = kd_tensor_slice(&x.q, 1, 0, 3);
    bad.v = bad.k;
    test_refused(forward(&bench.exec, &c, &bad), KD_EINVAL, "4 heads");
    bad = x;
    bad.v = kd_tensor_slice(&x.v, 0, 0, 5);
    test_refused(forward(&bench.exec, &c, &bad), KD_EINVAL, "v: found");
    bad = x;
    bad.dk = x.q;
    test_refused(backward(&bench.exec, &c, &bad), KD_EINVAL, "dk: found");
    bad = x;
    bad.lse = kd_tensor_slice(&x.lse, 1, 0, 5);
    test_refused(forward(&bench.exec, &c, &bad), KD_EINVAL, "lse: found");
    bad = x;
    bad.cu_k = kd_tensor_slice(&x.cu_q, 0, 0, 3);
    test_refused(forward(&bench.exec, &c, &bad), KD_EINVAL, "cu_k");
    test_set(&x.cu_q, 4, -1);
    test_refused(forward(&bench.exec, &c, &x), KD_EINVAL, "cu_q[4] is -1");
    test_set(&x.cu_q, 4, 100000);
    test_refused(forward(&bench.exec, &c, &x), KD_EINVAL, "cu_q[4] is 100000");
    test_close(&bench);
}
