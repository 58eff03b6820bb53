/* Rows of the ops of a layer, with the bytes that each must move and the operations of its products. */
#include "bench/rows.h"

/* Rows that move whole tensors of N D elements: `n` of them. */
#define MOVES(name, n)                                                                             \
    static bench_work work_##name(const bench_shape *s)                                            \
    {                                                                                              \
        return (bench_work){ .bytes = (n)*element(s) * product(s, 2) };                            \
    }
MOVES(two, 2)
MOVES(three, 3)
MOVES(five, 5)

/* ---- products --------------------------------------------------------------------------------- */

static bench_work work_matmul(const bench_shape *s)
{
    const double m = (double)s->dim[0], n = (double)s->dim[1], k = (double)s->dim[2];
    return (bench_work){ .bytes = element(s) * (m * k + k * n + m * n), .flops = 2 * m * n * k };
}

/* y = x W^T, as a layer has it. */
static void open_matmul(bench_run *r, int set)
{
    const int64_t m = r->shape->dim[0], n = r->shape->dim[1], k = r->shape->dim[2];
    const kd_tensor *w = values(r, set, KD_SHAPE(n, k), 2);
    kd_tensor *turned = &r->tensor[set][r->count[set]++];
    *turned = kd_tensor_transposed(w);
    ARGS(r, set, matmul, .y = result(r, set, KD_SHAPE(m, n)),
         .a = values(r, set, KD_SHAPE(m, k), 1), .b = turned);
}

static bench_work work_matmul_add(const bench_shape *s)
{
    const double m = (double)s->dim[0], n = (double)s->dim[1], k = (double)s->dim[2];
    return (bench_work){ .bytes = element(s) * (m * k + k * n) + 8 * m * n,
                         .flops = 2 * m * n * k };
}

/* The pre-activation is written beside its GELU. */
static bench_work work_matmul_gelu(const bench_shape *s)
{
    bench_work work = work_matmul(s);
    work.bytes += element(s) * product(s, 2);
    return work;
}

static void open_matmul_gelu(bench_run *r, int set)
{
    const int64_t m = r->shape->dim[0], n = r->shape->dim[1], k = r->shape->dim[2];
    const kd_tensor *w = values(r, set, KD_SHAPE(n, k), 2);
    kd_tensor *turned = &r->tensor[set][r->count[set]++];
    *turned = kd_tensor_transposed(w);
    ARGS(r, set, matmul_gelu, .y = result(r, set, KD_SHAPE(m, n)),
         .pre = result(r, set, KD_SHAPE(m, n)), .a = values(r, set, KD_SHAPE(m, k), 1), .b = turned,
         .bias = values(r, set, KD_SHAPE(n), 3));
}

/* dW += dy^T x, in f32. */
static void open_matmul_add(bench_run *r, int set)
{
    const int64_t m = r->shape->dim[0], n = r->shape->dim[1], k = r->shape->dim[2];
    const kd_tensor *dy = values(r, set, KD_SHAPE(k, m), 1);
    kd_tensor *turned = &r->tensor[set][r->count[set]++];
    *turned = kd_tensor_transposed(dy);
    ARGS(r, set, matmul_add, .y = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(m, n)), .a = turned,
         .b = values(r, set, KD_SHAPE(k, n), 2));
}

static const bench_shape products[] = {
    { BENCH_QUICK, "", KD_F32, { 65, 33, 40 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 4096, 4096 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 768, 768 } },
    { BENCH_GPU, "", KD_F32, { 4096, 4096, 4096 } },
    { BENCH_CPU, "", KD_F32, { 1024, 576, 576 } },
    { BENCH_CPU, "", KD_BF16, { 1024, 576, 576 } },
    { BENCH_CPU, "", KD_F32, { 256, 49152, 576 } },
};

/* ---- e4m3 ------------------------------------------------------------------------------------- */

static bench_work work_quantise(const bench_shape *s)
{
    return (bench_work){ .bytes = (element(s) + 1) * product(s, 2) };
}

static void open_quantise(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, quantise, .y = kd_bench_zeros(r, set, KD_F8_E4M3, shape),
         .scale = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(shape.dim[0])),
         .x = values(r, set, shape, 1));
}

static bench_work work_matmul_scaled(const bench_shape *s)
{
    const double m = (double)s->dim[0], n = (double)s->dim[1], k = (double)s->dim[2];
    return (bench_work){ .bytes = m * k + k * n + element(s) * m * n, .flops = 2 * m * n * k };
}

static void open_matmul_scaled(bench_run *r, int set)
{
    const int64_t m = r->shape->dim[0], n = r->shape->dim[1], k = r->shape->dim[2];
    const kd_tensor *w = kd_bench_filled(r, set, KD_F8_E4M3, KD_SHAPE(n, k), -1, 1, 2);
    kd_tensor *turned = &r->tensor[set][r->count[set]++];
    *turned = kd_tensor_transposed(w);
    ARGS(r, set, matmul_scaled, .y = result(r, set, KD_SHAPE(m, n)),
         .a = kd_bench_filled(r, set, KD_F8_E4M3, KD_SHAPE(m, k), -1, 1, 1), .b = turned,
         .a_scale = kd_bench_filled(r, set, KD_F32, KD_SHAPE(m), 0.5, 1, 3),
         .b_scale = kd_bench_filled(r, set, KD_F32, KD_SHAPE(n), 0.5, 1, 4));
}

/* In place again and again: by 1, so that nothing overflows. */
static bench_work work_rescale(const bench_shape *s)
{
    return (bench_work){ .bytes = 2 * element(s) * product(s, 2) };
}

static void open_rescale(bench_run *r, int set)
{
    const int64_t rows = r->shape->dim[0], columns = r->shape->dim[1];
    ARGS(r, set, rescale, .y = values(r, set, KD_SHAPE(rows, columns), 1),
         .row = kd_bench_filled(r, set, KD_F32, KD_SHAPE(rows), 1, 1, 2),
         .column = kd_bench_filled(r, set, KD_F32, KD_SHAPE(columns), 1, 1, 3));
}

static const bench_shape scaled_products[] = {
    { BENCH_QUICK, "", KD_BF16, { 65, 48, 32 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 4096, 4096 } },
    { BENCH_GPU, "", KD_BF16, { 8192, 768, 768 } },
    { BENCH_CPU, "", KD_BF16, { 1024, 576, 576 } },
};

/* ---- norms ------------------------------------------------------------------------------------ */

static bench_work work_norm(const bench_shape *s)
{
    const bool residual = strcmp(s->variant, "residual") == 0;
    return (bench_work){ .bytes = (residual ? 4 : 2) * element(s) * product(s, 2) };
}

/* "add" takes the gradient of the residual in, too. */
static bench_work work_norm_backward(const bench_shape *s)
{
    const bool add = strcmp(s->variant, "add") == 0;
    return (bench_work){ .bytes = (add ? 4 : 3) * element(s) * product(s, 2) };
}

static void open_rms_norm(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1];
    const bool residual = is(r, "residual");
    const kd_shape shape = KD_SHAPE(n, d);
    ARGS(r, set, rms_norm, .y = result(r, set, shape),
         .rstd = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n)), .x = values(r, set, shape, 1),
         .weight = values(r, set, KD_SHAPE(d), 2), .eps = 1e-5f,
         .residual = residual ? values(r, set, shape, 3) : NULL,
         .sum = residual ? result(r, set, shape) : NULL);
}

static void open_rms_norm_backward(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1];
    const kd_shape shape = KD_SHAPE(n, d);
    ARGS(r, set, rms_norm_backward, .dx = result(r, set, shape),
         .dweight = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(d)), .dy = values(r, set, shape, 1),
         .x = values(r, set, shape, 2),
         .rstd = kd_bench_filled(r, set, KD_F32, KD_SHAPE(n), 0.5, 2, 3),
         .weight = values(r, set, KD_SHAPE(d), 4),
         .add = is(r, "add") ? values(r, set, shape, 5) : NULL);
}

static void open_layer_norm(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1];
    const bool residual = is(r, "residual");
    const kd_shape shape = KD_SHAPE(n, d);
    ARGS(r, set, layer_norm, .y = result(r, set, shape),
         .mean = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n)),
         .rstd = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n)), .x = values(r, set, shape, 1),
         .weight = values(r, set, KD_SHAPE(d), 2), .bias = values(r, set, KD_SHAPE(d), 3),
         .eps = 1e-5f, .residual = residual ? values(r, set, shape, 4) : NULL,
         .sum = residual ? result(r, set, shape) : NULL);
}

static void open_layer_norm_backward(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], d = r->shape->dim[1];
    const kd_shape shape = KD_SHAPE(n, d);
    ARGS(r, set, layer_norm_backward, .dx = result(r, set, shape),
         .dweight = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(d)),
         .dbias = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(d)), .dy = values(r, set, shape, 1),
         .x = values(r, set, shape, 2),
         .mean = kd_bench_filled(r, set, KD_F32, KD_SHAPE(n), -1, 1, 3),
         .rstd = kd_bench_filled(r, set, KD_F32, KD_SHAPE(n), 0.5, 2, 4),
         .weight = values(r, set, KD_SHAPE(d), 5),
         .add = is(r, "add") ? values(r, set, shape, 6) : NULL);
}

static const bench_shape norms[] = {
    { BENCH_QUICK, "residual", KD_F32, { 5, 48 } },
    { BENCH_GPU, "", KD_BF16, { 16384, 768 } },
    { BENCH_GPU, "residual", KD_BF16, { 16384, 2048 } },
    { BENCH_GPU, "", KD_BF16, { 16384, 4096 } },
    { BENCH_CPU, "", KD_F32, { 1024, 576 } },
    { BENCH_CPU, "residual", KD_BF16, { 1024, 576 } },
};

static const bench_shape norms_backward[] = {
    { BENCH_QUICK, "add", KD_F32, { 5, 48 } },      { BENCH_GPU, "", KD_BF16, { 16384, 768 } },
    { BENCH_GPU, "add", KD_BF16, { 16384, 2048 } }, { BENCH_GPU, "", KD_BF16, { 16384, 4096 } },
    { BENCH_CPU, "", KD_F32, { 1024, 576 } },       { BENCH_CPU, "add", KD_BF16, { 1024, 576 } },
};

/* ---- activations and positions ---------------------------------------------------------------- */

static void open_swiglu(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, swiglu, .y = result(r, set, shape), .gate = values(r, set, shape, 1),
         .up = values(r, set, shape, 2));
}

static void open_swiglu_backward(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, swiglu_backward, .dgate = result(r, set, shape), .dup = result(r, set, shape),
         .dy = values(r, set, shape, 1), .gate = values(r, set, shape, 2),
         .up = values(r, set, shape, 3));
}

static void open_gelu(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, gelu, .y = result(r, set, shape), .x = values(r, set, shape, 1),
         .tanh_form = is(r, "tanh"));
}

static void open_gelu_backward(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, gelu_backward, .dx = result(r, set, shape), .dy = values(r, set, shape, 1),
         .x = values(r, set, shape, 2), .tanh_form = is(r, "tanh"));
}

static void open_relu(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, relu, .y = result(r, set, shape), .x = values(r, set, shape, 1));
}

static void open_relu_backward(bench_run *r, int set)
{
    const kd_shape shape = KD_SHAPE(r->shape->dim[0], r->shape->dim[1]);
    ARGS(r, set, relu_backward, .dx = result(r, set, shape), .dy = values(r, set, shape, 1),
         .x = values(r, set, shape, 2));
}

static const bench_shape wide[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 48 } },
    { BENCH_GPU, "", KD_BF16, { 16384, 8192 } },
    { BENCH_CPU, "", KD_F32, { 1024, 1536 } },
    { BENCH_CPU, "", KD_BF16, { 1024, 1536 } },
};

static const bench_shape gelus[] = {
    { BENCH_QUICK, "tanh", KD_F32, { 5, 48 } },     { BENCH_GPU, "tanh", KD_BF16, { 16384, 3072 } },
    { BENCH_GPU, "erf", KD_BF16, { 16384, 3072 } }, { BENCH_CPU, "tanh", KD_F32, { 1024, 3072 } },
    { BENCH_CPU, "erf", KD_F32, { 1024, 3072 } },
};

static bench_work work_rope(const bench_shape *s)
{
    return (bench_work){ .bytes = 2 * element(s) * product(s, 3) };
}

static void open_rope(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], h = r->shape->dim[1], d = r->shape->dim[2];
    ARGS(r, set, rope, .x = values(r, set, KD_SHAPE(n, h, d), 1),
         .positions = kd_bench_filled(r, set, KD_I32, KD_SHAPE(n), 0, 4096, 2),
         .frequencies = kd_bench_filled(r, set, KD_F32, KD_SHAPE(d / 2), 0, 1, 3), .scale = 1);
}

/* The heads of q and of k in one row, one of k for every four of q. */
static int64_t query_heads(const bench_shape *s) { return s->dim[1] - s->dim[1] / 5; }

static bench_work work_qk_norm_rope_backward(const bench_shape *s)
{
    return (bench_work){ .bytes = 3 * element(s) * product(s, 3) };
}

static void open_qk_norm_rope(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], h = r->shape->dim[1], d = r->shape->dim[2];
    ARGS(r, set, qk_norm_rope, .y = result(r, set, KD_SHAPE(n, h, d)),
         .rstd = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(n, h)),
         .x = values(r, set, KD_SHAPE(n, h, d), 1), .q_weight = values(r, set, KD_SHAPE(d), 2),
         .k_weight = values(r, set, KD_SHAPE(d), 3),
         .positions = kd_bench_filled(r, set, KD_I32, KD_SHAPE(n), 0, 4096, 4),
         .frequencies = kd_bench_filled(r, set, KD_F32, KD_SHAPE(d / 2), 0, 1, 5),
         .heads = query_heads(r->shape), .eps = 1e-6f, .scale = 1);
}

static void open_qk_norm_rope_backward(bench_run *r, int set)
{
    const int64_t n = r->shape->dim[0], h = r->shape->dim[1], d = r->shape->dim[2];
    ARGS(r, set, qk_norm_rope_backward, .dx = result(r, set, KD_SHAPE(n, h, d)),
         .dq_weight = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(d)),
         .dk_weight = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(d)),
         .dy = values(r, set, KD_SHAPE(n, h, d), 1), .x = values(r, set, KD_SHAPE(n, h, d), 2),
         .rstd = kd_bench_filled(r, set, KD_F32, KD_SHAPE(n, h), 0.5, 2, 3),
         .q_weight = values(r, set, KD_SHAPE(d), 4), .k_weight = values(r, set, KD_SHAPE(d), 5),
         .positions = kd_bench_filled(r, set, KD_I32, KD_SHAPE(n), 0, 4096, 6),
         .frequencies = kd_bench_filled(r, set, KD_F32, KD_SHAPE(d / 2), 0, 1, 7),
         .heads = query_heads(r->shape), .scale = 1);
}

static const bench_shape ropes[] = {
    { BENCH_QUICK, "", KD_F32, { 5, 5, 16 } },      { BENCH_GPU, "", KD_BF16, { 16384, 40, 64 } },
    { BENCH_GPU, "", KD_BF16, { 16384, 40, 128 } }, { BENCH_CPU, "", KD_F32, { 1024, 12, 64 } },
    { BENCH_CPU, "", KD_BF16, { 1024, 12, 64 } },
};

/* ---- attention -------------------------------------------------------------------------------- */

/* B documents of T tokens, H heads of d; "gqa8": one key head for eight, "full": not causal. */
static int64_t groups(const bench_shape *s)
{
    return strcmp(s->variant, "gqa8") == 0 ? s->dim[2] / 8 : s->dim[2];
}

static bench_work attention_work(const bench_shape *s, double pairs, double tensors)
{
    const double b = (double)s->dim[0], t = (double)s->dim[1], h = (double)s->dim[2];
    const double d = (double)s->dim[3], seen = strcmp(s->variant, "full") == 0 ? 1 : 0.5;
    const double rows = b * t * d * (h + (double)groups(s)) * element(s);
    return (bench_work){ .bytes = tensors * rows, .flops = pairs * 2 * seen * b * h * t * t * d };
}

static bench_work work_attention(const bench_shape *s) { return attention_work(s, 2, 2); }
static bench_work work_attention_backward(const bench_shape *s) { return attention_work(s, 5, 4); }

typedef struct attention_operands {
    const kd_tensor *q, *k, *v, *o, *lse, *cu;
    float scale;
    bool causal;
} attention_operands;

static attention_operands attention_of(bench_run *r, int set)
{
    const int64_t *dim = r->shape->dim, n = dim[0] * dim[1], g = groups(r->shape);
    const kd_shape wide_rows = KD_SHAPE(n, dim[2], dim[3]), narrow = KD_SHAPE(n, g, dim[3]);
    int32_t cu[257];
    for (int64_t i = 0; i <= dim[0]; i++) cu[i] = (int32_t)(i * dim[1]);
    return (attention_operands){ .q = values(r, set, wide_rows, 1),
                                 .k = values(r, set, narrow, 2),
                                 .v = values(r, set, narrow, 3),
                                 .o = result(r, set, wide_rows),
                                 .lse = kd_bench_zeros(r, set, KD_F32, KD_SHAPE(dim[2], n)),
                                 .cu = kd_bench_given(r, set, KD_I32, KD_SHAPE(dim[0] + 1), cu),
                                 .scale = 1 / sqrtf((float)dim[3]),
                                 .causal = !is(r, "full") };
}

static void open_attention(bench_run *r, int set)
{
    const attention_operands a = attention_of(r, set);
    ARGS(r, set, attention, .o = a.o, .lse = a.lse, .q = a.q, .k = a.k, .v = a.v, .cu_q = a.cu,
         .cu_k = a.cu, .scale = a.scale, .causal = a.causal);
}

/* o and lse are what forward gives only in shape; the work does not depend on them. */
static void open_attention_backward(bench_run *r, int set)
{
    const attention_operands a = attention_of(r, set);
    const kd_shape q = kd_shape_of(a.q), k = kd_shape_of(a.k);
    ARGS(r, set, attention_backward, .dq = result(r, set, q), .dk = result(r, set, k),
         .dv = result(r, set, k), .dout = values(r, set, q, 4), .o = a.o,
         .lse = kd_bench_filled(r, set, KD_F32, kd_shape_of(a.lse), 4, 8, 5), .q = a.q, .k = a.k,
         .v = a.v, .cu_q = a.cu, .cu_k = a.cu, .scale = a.scale, .causal = a.causal);
}

static const bench_shape attentions[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 17, 2, 16 } },
    { BENCH_GPU, "", KD_BF16, { 16, 1024, 16, 64 } },
    { BENCH_GPU, "", KD_BF16, { 8, 2048, 16, 128 } },
    { BENCH_GPU, "gqa8", KD_BF16, { 4, 4096, 32, 128 } },
    { BENCH_GPU, "full", KD_BF16, { 8, 2048, 16, 64 } },
    { BENCH_CPU, "", KD_F32, { 4, 256, 9, 64 } },
    { BENCH_CPU, "", KD_BF16, { 4, 256, 9, 64 } },
};

/* ---- the rows --------------------------------------------------------------------------------- */

const bench_row kd_bench_rows_ops[] = {
    OP_ROW(matmul, "MNK", work_matmul, products),
    OP_ROW(matmul_add, "MNK", work_matmul_add, products),
    OP_ROW(matmul_gelu, "MNK", work_matmul_gelu, products),
    OP_ROW(quantise, "ND", work_quantise, wide),
    OP_ROW(matmul_scaled, "MNK", work_matmul_scaled, scaled_products),
    OP_ROW(rescale, "ND", work_rescale, wide),
    OP_ROW(rms_norm, "ND", work_norm, norms),
    OP_ROW(rms_norm_backward, "ND", work_norm_backward, norms_backward),
    OP_ROW(layer_norm, "ND", work_norm, norms),
    OP_ROW(layer_norm_backward, "ND", work_norm_backward, norms_backward),
    OP_ROW(swiglu, "NF", work_three, wide),
    OP_ROW(swiglu_backward, "NF", work_five, wide),
    OP_ROW(gelu, "NF", work_two, gelus),
    OP_ROW(gelu_backward, "NF", work_three, gelus),
    OP_ROW(relu, "NF", work_two, wide),
    OP_ROW(relu_backward, "NF", work_three, wide),
    OP_ROW(rope, "NHd", work_rope, ropes),
    OP_ROW(qk_norm_rope, "NHd", work_rope, ropes),
    OP_ROW(qk_norm_rope_backward, "NHd", work_qk_norm_rope_backward, ropes),
    OP_ROW(attention, "BTHd", work_attention, attentions),
    OP_ROW(attention_backward, "BTHd", work_attention_backward, attentions),
    { 0 },
};
