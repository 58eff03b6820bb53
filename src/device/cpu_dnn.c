/*
 * Matrix products of the host by oneDNN's C API, version 2 (Debian 12 ships 2.6.3); the only file
 * that knows it.
 *
 * A shape's first sight makes the primitive and its memory objects; every later run only hands over
 * pointers, with scratch from the exec's stack.  What the library itself takes and gives back within
 * a call cannot be avoided by this API: six or seven list nodes, 264 to 272 bytes in all, and for
 * views with padded rows ("gemm:jit") its packing buffers.  Nothing is kept.
 *
 * The library does not live through a heap that refuses it: its objects' operator new answers NULL to
 * constructors that do not look (a crash), its containers throw through C (the end of the process).  So
 * room is asked for before it makes anything, and KD_ENOMEM is the answer where there is none.  The list
 * nodes of a call cannot be had in advance.
 *
 * Numerics: products of f32 or bf16 pairs summed in f32, rounded once into y; accumulation is a sum
 * post-op, so `y + ab` is rounded once too.  Same number of threads, same bits.
 *
 * Where oneDNN has only its reference loops for bf16 (processors without AVX-512: a thousand times
 * slower), operands are widened to f32 in scratch.
 */
#include "device/device.h"

#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if DNNL_VERSION_MAJOR != 2
#error "cpu_dnn.c is written for the C API of oneDNN 2"
#endif

/* Past this many primitives the cache starts afresh.  Planned work stays far below; what may come
 * here is a program that sees a new number of rows with every call. */
enum { MAX_PRODUCTS = 1024, BUCKETS = 256, MAX_ARGS = 5 };

/* More than a primitive takes: 72 kB of heap and 1.3 MB of mappings for its code (bf16 on AVX-512). */
enum { ROOM_BYTES = 2 << 20 };

/* What a primitive is made for; compared as bytes, so it has no padding.  A threaded primitive's
 * scratch fits the number of threads it was made for. */
typedef struct product_key {
    int64_t batch, m, k, n;
    int64_t stride[3][2]; /* y, a, b */
    int64_t apart[3]; /* elements from one matrix of the batch to the next; 0 of a batch of one */
    int32_t dtype, y_dtype, bias_dtype;
    int32_t accumulate, biased, threads;
} product_key;

typedef struct product product;
struct product {
    product_key key;
    product *next;
    bool widen; /* no primitive: oneDNN has no fast one for this element type */
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[MAX_ARGS]; /* y, a, b, scratch, bias */
    int arg_count;
    int64_t scratch_bytes;
};

struct kd_dnn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    product *buckets[BUCKETS];
    int count;
};

static kd_status dnn_fail(dnnl_status_t failure, const char *call)
{
    static const char *const names[] = { "success",       "out of memory", "invalid arguments",
                                         "unimplemented", "iterator ends", "runtime error",
                                         "not required" };
    const int i = (int)failure;
    return kd_fail(failure == dnnl_out_of_memory ? KD_ENOMEM : KD_EDEVICE, "oneDNN: %s: %s", call,
                   i >= 0 && i < KD_COUNT(names) ? names[i] : "unknown failure");
}

#define DNN_TRY(call)                                                                              \
    do {                                                                                           \
        const dnnl_status_t dnn_try_ = (call);                                                     \
        if (dnn_try_ != dnnl_success) return dnn_fail(dnn_try_, #call);                            \
    } while (0)

static kd_status ask_for_room(void)
{
    void *volatile room = malloc(ROOM_BYTES); /* else the compiler leaves out the pair */
    if (!room) return kd_fail(KD_ENOMEM, "oneDNN: no memory for a primitive");
    free(room);
    return KD_OK;
}

/* ---- the cache -------------------------------------------------------------------------------- */

static void product_free(product *p)
{
    for (int i = 0; i < p->arg_count; i++) dnnl_memory_destroy(p->args[i].memory);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    free(p);
}

static void forget_all(kd_dnn *dnn)
{
    for (int i = 0; i < BUCKETS; i++)
        for (product *p = dnn->buckets[i], *next; p; p = next) {
            next = p->next;
            product_free(p);
        }
    memset(dnn->buckets, 0, sizeof dnn->buckets);
    dnn->count = 0;
}

void kd_dnn_version(char *text, size_t size)
{
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, size, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
}

kd_status kd_dnn_open(kd_dnn **out)
{
    KD_TRY(ask_for_room());
    kd_dnn *dnn = calloc(1, sizeof *dnn);
    if (!dnn) return kd_fail(KD_ENOMEM, "oneDNN: no memory");
    dnnl_status_t status = dnnl_engine_create(&dnn->engine, dnnl_cpu, 0);
    if (status == dnnl_success)
        status = dnnl_stream_create(&dnn->stream, dnn->engine, dnnl_stream_default_flags);
    if (status != dnnl_success) {
        kd_dnn_close(dnn);
        return dnn_fail(status, "dnnl_stream_create");
    }
    *out = dnn;
    return KD_OK;
}

void kd_dnn_close(kd_dnn *dnn)
{
    if (!dnn) return;
    forget_all(dnn);
    if (dnn->stream) dnnl_stream_destroy(dnn->stream);
    if (dnn->engine) dnnl_engine_destroy(dnn->engine);
    free(dnn);
}

/* ---- making a primitive ----------------------------------------------------------------------- */

static dnnl_data_type_t type_of(int32_t dtype) { return dtype == KD_BF16 ? dnnl_bf16 : dnnl_f32; }

static kd_status add_memory(product *p, kd_dnn *dnn, int kind, const dnnl_memory_desc_t *desc)
{
    dnnl_exec_arg_t *arg = &p->args[p->arg_count];
    DNN_TRY(dnnl_memory_create(&arg->memory, desc, dnn->engine, DNNL_MEMORY_NONE));
    arg->arg = kind;
    p->arg_count++;
    return KD_OK;
}

static kd_status finish_product(product *p, kd_dnn *dnn, const_dnnl_primitive_desc_t pd,
                                const dnnl_memory_desc_t desc[4])
{
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    p->scratch_bytes = (int64_t)dnnl_memory_desc_get_size(scratch);
    DNN_TRY(dnnl_primitive_create(&p->primitive, pd));
    KD_TRY(add_memory(p, dnn, DNNL_ARG_DST, &desc[0]));
    KD_TRY(add_memory(p, dnn, DNNL_ARG_SRC, &desc[1]));
    KD_TRY(add_memory(p, dnn, DNNL_ARG_WEIGHTS, &desc[2]));
    KD_TRY(add_memory(p, dnn, DNNL_ARG_SCRATCHPAD, scratch));
    return p->key.biased ? add_memory(p, dnn, DNNL_ARG_BIAS, &desc[3]) : KD_OK;
}

/* Scratch is the caller's; `accumulate` is a sum post-op. */
static dnnl_status_t make_attributes(dnnl_primitive_attr_t *attr, bool accumulate)
{
    dnnl_status_t status = dnnl_primitive_attr_create(attr);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
    if (status != dnnl_success || !accumulate) return status;
    dnnl_post_ops_t ops;
    status = dnnl_post_ops_create(&ops);
    if (status != dnnl_success) return status;
    status = dnnl_post_ops_append_sum(ops, 1.0f);
    if (status == dnnl_success) status = dnnl_primitive_attr_set_post_ops(*attr, ops);
    dnnl_post_ops_destroy(ops);
    return status;
}

/* desc: y, a, b, bias (all zeros when there is none). */
static dnnl_status_t describe(dnnl_memory_desc_t desc[4], const product_key *key)
{
    const int64_t b = key->batch;
    const dnnl_dims_t dims[4] = {
        { b, key->m, key->n }, { b, key->m, key->k }, { b, key->k, key->n }, { 1, 1, key->n }
    };
    const int32_t dtypes[4] = { key->y_dtype, key->dtype, key->dtype, key->bias_dtype };
    const int first = b > 1 ? 0 : 1; /* a lone product has two dimensions */
    memset(desc, 0, 4 * sizeof *desc);
    for (int i = 0; i < (key->biased ? 4 : 3); i++) {
        const dnnl_dims_t strides = { i < 3 ? key->apart[i] : key->n,
                                      i < 3 ? key->stride[i][0] : key->n,
                                      i < 3 ? key->stride[i][1] : 1 };
        const dnnl_status_t status = dnnl_memory_desc_init_by_strides(
            &desc[i], 3 - first, dims[i] + first, type_of(dtypes[i]), strides + first);
        if (status != dnnl_success) return status;
    }
    return dnnl_success;
}

static bool is_reference(const_dnnl_primitive_desc_t pd)
{
    const char *name = "";
    (void)dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
    return strncmp(name, "ref", 3) == 0;
}

static kd_status make_product(product *p, kd_dnn *dnn)
{
    dnnl_memory_desc_t desc[4];
    DNN_TRY(describe(desc, &p->key));
    dnnl_matmul_desc_t matmul;
    DNN_TRY(dnnl_matmul_desc_init(&matmul, &desc[1], &desc[2], &desc[3], &desc[0]));
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t made = make_attributes(&attr, p->key.accumulate);
    if (made == dnnl_success) made = dnnl_primitive_desc_create(&pd, &matmul, attr, dnn->engine, 0);
    if (attr) dnnl_primitive_attr_destroy(attr);

    const bool missing = made == dnnl_unimplemented || (made == dnnl_success && is_reference(pd));
    p->widen = missing && p->key.dtype == KD_BF16;
    kd_status status = KD_OK;
    if (!p->widen && made == dnnl_success) status = finish_product(p, dnn, pd, desc);
    if (!p->widen && made != dnnl_success) status = dnn_fail(made, "dnnl_primitive_desc_create");
    if (pd) dnnl_primitive_desc_destroy(pd);
    return status;
}

static kd_status find_product(product **out, kd_dnn *dnn, const product_key *key)
{
    product **bucket = &dnn->buckets[kd_hash_key(key, sizeof *key) % BUCKETS];
    for (*out = *bucket; *out; *out = (*out)->next)
        if (memcmp(&(*out)->key, key, sizeof *key) == 0) return KD_OK;
    if (dnn->count == MAX_PRODUCTS) forget_all(dnn);
    KD_TRY(ask_for_room());
    product *p = calloc(1, sizeof *p);
    if (!p) return kd_fail(KD_ENOMEM, "oneDNN: no memory for a primitive");
    p->key = *key;
    const kd_status status = make_product(p, dnn);
    if (status != KD_OK) {
        product_free(p);
        return status;
    }
    p->next = *bucket;
    *bucket = p;
    dnn->count++;
    *out = p;
    return KD_OK;
}

/* ---- running ---------------------------------------------------------------------------------- */

static kd_status make_key(product_key *key, const kd_tensor *y, const kd_tensor *a,
                          const kd_tensor *b, const kd_tensor *bias, bool accumulate)
{
    memset(key, 0, sizeof *key);
    key->batch = 1;
    key->m = a->shape[0], key->k = a->shape[1], key->n = b->shape[1];
    KD_TRY(kd_matrix_strides(key->stride[0], y, "y"));
    KD_TRY(kd_matrix_strides(key->stride[1], a, "a"));
    KD_TRY(kd_matrix_strides(key->stride[2], b, "b"));
    key->dtype = (int32_t)a->dtype;
    key->y_dtype = (int32_t)y->dtype;
    key->accumulate = accumulate;
    key->biased = kd_present(bias);
    key->bias_dtype = key->biased ? (int32_t)bias->dtype : 0;
    key->threads = omp_get_max_threads();
    return KD_OK;
}

/* Copies a matrix between element types, row by row or column by column. */
static kd_status convert_matrix(const kd_tensor *to, const kd_tensor *from, bool by_rows)
{
    const int inner = by_rows ? 1 : 0, outer = 1 - inner;
    for (int64_t i = 0; i < to->shape[outer]; i++) {
        const kd_tensor line = kd_tensor_slice(to, outer, i, 1);
        const kd_tensor source = kd_tensor_slice(from, outer, i, 1);
        KD_TRY(kd_convert(line.data, to->dtype, source.data, from->dtype, to->shape[inner]));
    }
    return KD_OK;
}

/* A dense f32 matrix in scratch with its unit stride where `from` has it; copied when `fill`. */
static kd_status widen(kd_tensor *to, kd_exec *exec, const char *name, const kd_tensor *from,
                       const int64_t stride[2], bool fill)
{
    const bool by_rows = stride[1] == 1;
    const int64_t rows = from->shape[0], columns = from->shape[1];
    KD_TRY(kd_push(to, exec, name, KD_F32,
                   by_rows ? KD_SHAPE(rows, columns) : KD_SHAPE(columns, rows)));
    if (!by_rows) *to = kd_tensor_transposed(to);
    if (!fill || kd_planning(exec)) return KD_OK;
    return convert_matrix(to, from, by_rows);
}

/* The bf16 product as one of f32. */
static kd_status run_widened(kd_dnn *dnn, kd_exec *exec, const product_key *key, const kd_tensor *y,
                             const kd_tensor *a, const kd_tensor *b, const kd_tensor *bias)
{
    kd_tensor wide_y = *y, wide_a, wide_b, wide_bias = { 0 };
    KD_TRY(widen(&wide_a, exec, "matmul.wide_a", a, key->stride[1], true));
    KD_TRY(widen(&wide_b, exec, "matmul.wide_b", b, key->stride[2], true));
    if (key->biased) {
        KD_TRY(kd_push(&wide_bias, exec, "matmul.wide_bias", KD_F32, KD_SHAPE(key->n)));
        if (!kd_planning(exec))
            KD_TRY(kd_convert(wide_bias.data, KD_F32, bias->data, bias->dtype, key->n));
    }
    if (y->dtype != KD_F32)
        KD_TRY(widen(&wide_y, exec, "matmul.wide_y", y, key->stride[0], key->accumulate));
    KD_TRY(kd_dnn_matmul(dnn, exec, &wide_y, &wide_a, &wide_b, &wide_bias, key->accumulate));
    if (y->dtype == KD_F32 || kd_planning(exec)) return KD_OK;
    return convert_matrix(y, &wide_y, key->stride[0][1] == 1);
}

static kd_status execute(kd_dnn *dnn, product *p, const kd_tensor *y, const kd_tensor *a,
                         const kd_tensor *b, const kd_tensor *scratch, const kd_tensor *bias)
{
    void *const handles[MAX_ARGS] = { y->data, a->data, b->data, scratch->data,
                                      p->key.biased ? bias->data : NULL };
    for (int i = 0; i < p->arg_count; i++)
        DNN_TRY(dnnl_memory_set_data_handle(p->args[i].memory, handles[i]));
    DNN_TRY(dnnl_primitive_execute(p->primitive, dnn->stream, p->arg_count, p->args));
    DNN_TRY(dnnl_stream_wait(dnn->stream));
    return KD_OK;
}

/* y = bias for K = 0, where there is nothing to multiply. */
static void fill_rows(const kd_tensor *y, const kd_tensor *bias)
{
    for (int64_t i = 0; i < y->shape[0]; i++)
        for (int64_t j = 0; j < y->shape[1]; j++) {
            float value = 0;
            if (kd_present(bias))
                value = bias->dtype == KD_BF16 ? kd_bf16_to_f32(((const uint16_t *)bias->data)[j])
                                               : ((const float *)bias->data)[j];
            const int64_t at = i * y->stride[0] + j * y->stride[1];
            if (y->dtype == KD_BF16)
                ((uint16_t *)y->data)[at] = kd_f32_to_bf16(value);
            else
                ((float *)y->data)[at] = value;
        }
}

static kd_status run(kd_dnn *dnn, kd_exec *exec, const product_key *key, const kd_tensor *y,
                     const kd_tensor *a, const kd_tensor *b, const kd_tensor *bias)
{
    product *p;
    KD_TRY(find_product(&p, dnn, key));
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_status status;
    if (p->widen) {
        status = run_widened(dnn, exec, key, y, a, b, bias);
    } else {
        kd_tensor scratch = { 0 };
        status = kd_push(&scratch, exec, "matmul.scratch", KD_U8, KD_SHAPE(p->scratch_bytes));
        if (status == KD_OK && !kd_planning(exec))
            status = execute(dnn, p, y, a, b, &scratch, bias);
    }
    kd_stack_release(exec->stack, mark);
    return status;
}

kd_status kd_dnn_matmul(kd_dnn *dnn, kd_exec *exec, const kd_tensor *y, const kd_tensor *a,
                        const kd_tensor *b, const kd_tensor *bias, bool accumulate)
{
    if (y->shape[0] == 0 || y->shape[1] == 0) return KD_OK;
    if (a->shape[1] == 0) {
        if (!accumulate && !kd_planning(exec)) fill_rows(y, bias);
        return KD_OK;
    }
    product_key key;
    KD_TRY(make_key(&key, y, a, b, bias, accumulate));
    /* A bias would stand along rows then, which only the reference loops know; no layer asks. */
    if (key.stride[0][1] != 1 && !key.biased) { /* fast ones write rows: y' = b' a' */
        const kd_tensor yt = kd_tensor_transposed(y), at = kd_tensor_transposed(a),
                        bt = kd_tensor_transposed(b);
        return kd_dnn_matmul(dnn, exec, &yt, &bt, &at, NULL, accumulate);
    }
    return run(dnn, exec, &key, y, a, b, bias);
}

kd_status kd_dnn_matmul_batched(kd_dnn *dnn, kd_exec *exec, const kd_tensor *y, const kd_tensor *a,
                                const kd_tensor *b)
{
    const int64_t batch = y->shape[0];
    if (batch == 0) return KD_OK;
    const kd_tensor y0 = kd_tensor_matrix(y, 0), a0 = kd_tensor_matrix(a, 0),
                    b0 = kd_tensor_matrix(b, 0);
    if (batch == 1) return kd_dnn_matmul(dnn, exec, &y0, &a0, &b0, NULL, false);
    if (kd_tensor_elements(y) == 0) return KD_OK;
    if (a0.shape[1] == 0) { /* nothing to multiply */
        for (int64_t i = 0; i < batch && !kd_planning(exec); i++) {
            const kd_tensor each = kd_tensor_matrix(y, i);
            fill_rows(&each, NULL);
        }
        return KD_OK;
    }
    product_key key;
    KD_TRY(make_key(&key, &y0, &a0, &b0, NULL, false));
    if (key.stride[0][1] != 1) return kd_fail(KD_ENOTSUP, "y: a batch of matrices by columns");
    key.batch = batch;
    key.apart[0] = y->stride[0], key.apart[1] = a->stride[0], key.apart[2] = b->stride[0];
    return run(dnn, exec, &key, y, a, b, NULL);
}
