/*
 * Matrix products of NVIDIA GPUs by cuBLASLt; with cuda_blas_cache.c the only file that knows it.
 *
 * A product's first sight, which is while planning, makes its descriptors and asks the heuristic
 * for algorithms; every later run only hands over pointers, with scratch from the exec's stack.
 *
 * Numerics: f32, bf16 or e4m3 pairs summed in f32 and rounded once into y.  Splits of k are only
 * reduced in f32 and in a step of their own (reduction scheme COMPUTE_TYPE): the others add in y's type
 * or in the order of arrival.  f32 stays f32 unless the device allows TF32.  The heuristic's first answer,
 * which is the same every time, unless the device is tuned (cuda_blas_cache.c).
 */
#include "device/cuda_blas.h"

#include <stdlib.h>

/* Past this many products the table starts afresh, as in cpu_dnn.c. */
enum { MAX_PRODUCTS = 1024, MAX_ALIGNMENT = 256 };

/* What cuBLASLt asks of the addresses of blocks' scales; of vectors of them it says nothing. */
enum { SCALE_ALIGNMENT = 16 };

/* ---- errors ----------------------------------------------------------------------------------- */

static const char *type_name(int32_t type)
{
    return type == CUDA_R_32F ? "f32" : type == CUDA_R_16BF ? "bf16" : "f8_e4m3";
}

static kd_status blas_fail(const kd_blas *blas, const kd_product_key *key, cublasStatus_t failure,
                           const char *call)
{
    static const char table[] = "kd_lt.";
    if (strncmp(call, table, strlen(table)) == 0) call += strlen(table);
    return kd_fail(failure == CUBLAS_STATUS_ALLOC_FAILED ? KD_ENOMEM : KD_EDEVICE,
                   "cuda:%d: %.*s: %s (m %lld n %lld k %lld, %s to %s)", blas->device->index,
                   (int)strcspn(call, "("), call, kd_lt.cublasLtGetStatusName(failure),
                   (long long)key->m, (long long)key->n, (long long)key->k, type_name(key->type),
                   type_name(key->d_type));
}

#define BLAS_TRY(blas, key, call)                                                                  \
    do {                                                                                           \
        const cublasStatus_t blas_try_ = (call);                                                   \
        if (blas_try_ != CUBLAS_STATUS_SUCCESS) return blas_fail((blas), (key), blas_try_, #call); \
    } while (0)

/* ---- the table -------------------------------------------------------------------------------- */

static void product_free(kd_product *p)
{
    if (p->desc) (void)kd_lt.cublasLtMatmulDescDestroy(p->desc);
    if (p->a) (void)kd_lt.cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) (void)kd_lt.cublasLtMatrixLayoutDestroy(p->b);
    if (p->d) (void)kd_lt.cublasLtMatrixLayoutDestroy(p->d);
    free(p);
}

static void forget_all(kd_blas *blas)
{
    for (int i = 0; i < KD_BLAS_BUCKETS; i++)
        for (kd_product *p = blas->buckets[i], *next; p; p = next) {
            next = p->next;
            product_free(p);
        }
    memset(blas->buckets, 0, sizeof blas->buckets);
    blas->count = 0;
}

int kd_blas_version(void) { return (int)kd_lt.cublasLtGetVersion(); }

kd_status kd_blas_open(kd_blas **out, kd_device *device)
{
    KD_TRY(kd_cublaslt_load());
    kd_blas *blas = calloc(1, sizeof *blas);
    if (!blas) return kd_fail(KD_ENOMEM, "cuda:%d: no memory", device->index);
    blas->device = device;
    const cublasStatus_t status = kd_lt.cublasLtCreate(&blas->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        free(blas);
        return kd_fail(KD_EDEVICE, "cuda:%d: cublasLtCreate: %s", device->index,
                       kd_lt.cublasLtGetStatusName(status));
    }
    *out = blas;
    return KD_OK;
}

void kd_blas_close(kd_blas *blas)
{
    if (!blas) return;
    forget_all(blas);
    (void)kd_lt.cublasLtDestroy(blas->handle);
    free(blas);
}

/* ---- making a product ------------------------------------------------------------------------- */

static bool has_pre(const kd_product_key *key) { return key->align_pre != 0; }
static bool has_bias(const kd_product_key *key) { return key->align_bias != 0; }

static cublasStatus_t set_pointer(const kd_product *p, cublasLtMatmulDescAttributes_t attribute,
                                  const void *pointer)
{
    return kd_lt.cublasLtMatmulDescSetAttribute(p->desc, attribute, &pointer, sizeof pointer);
}

/* The heuristic looks at these addresses' alignment and nothing else. */
static const void *aligned_like(int32_t align) { return (const void *)(uintptr_t)align; }

static kd_status describe_epilogue(kd_product *p, const kd_blas *blas)
{
    const kd_product_key *key = &p->key;
    const uint32_t epilogue =
        has_pre(key) ? has_bias(key) ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX
                     : CUBLASLT_EPILOGUE_BIAS;
    if (!has_pre(key) && !has_bias(key)) return KD_OK;
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                  sizeof epilogue));
    if (has_bias(key))
        BLAS_TRY(blas, key,
                 set_pointer(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, aligned_like(key->align_bias)));
    if (!has_pre(key)) return KD_OK;
    BLAS_TRY(
        blas, key,
        set_pointer(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aligned_like(key->align_pre)));
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
                                                  &key->ld_pre, sizeof key->ld_pre));
    return KD_OK;
}

/* A bias of theirs is bf16 whatever y is; without scales they count as 1.
 * CUBLASLT_MATMUL_DESC_FAST_ACCUM stays off: with it a sum is kept in the tensor cores, whose
 * accumulators for eight-bit products have fewer bits than f32. */
static kd_status describe_scales(kd_product *p, const kd_blas *blas)
{
    const int32_t bias_type = CUDA_R_16BF, mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    static const cublasLtMatmulDescAttributes_t modes[] = { CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
                                                            CUBLASLT_MATMUL_DESC_B_SCALE_MODE };
    if (!p->key.scaled) return KD_OK;
    for (int i = 0; i < KD_COUNT(modes); i++)
        BLAS_TRY(blas, &p->key,
                 kd_lt.cublasLtMatmulDescSetAttribute(p->desc, modes[i], &mode, sizeof mode));
    BLAS_TRY(blas, &p->key,
             set_pointer(p, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, aligned_like(SCALE_ALIGNMENT)));
    BLAS_TRY(blas, &p->key,
             set_pointer(p, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, aligned_like(SCALE_ALIGNMENT)));
    if (!has_bias(&p->key)) return KD_OK;
    BLAS_TRY(blas, &p->key,
             kd_lt.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                                                  &bias_type, sizeof bias_type));
    return KD_OK;
}

/* A batch of one is none. */
static kd_status describe_batch(const kd_product *p, const kd_blas *blas)
{
    const kd_product_key *key = &p->key;
    const struct {
        cublasLtMatrixLayout_t layout;
        int64_t apart;
    } matrix[] = { { p->a, key->apart_a }, { p->b, key->apart_b }, { p->d, key->apart_d } };
    const int32_t count = (int32_t)key->batch;
    for (int i = 0; i < KD_COUNT(matrix) && count > 1; i++) {
        BLAS_TRY(blas, key,
                 kd_lt.cublasLtMatrixLayoutSetAttribute(
                     matrix[i].layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
        BLAS_TRY(blas, key,
                 kd_lt.cublasLtMatrixLayoutSetAttribute(matrix[i].layout,
                                                        CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                        &matrix[i].apart, sizeof matrix[i].apart));
    }
    return KD_OK;
}

static kd_status describe(kd_product *p, const kd_blas *blas)
{
    const kd_product_key *key = &p->key;
    const cublasComputeType_t compute =
        key->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const int32_t op_a = key->transposed_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int32_t op_b = key->transposed_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
    const cudaDataType type = (cudaDataType)key->type, d_type = (cudaDataType)key->d_type;
    BLAS_TRY(blas, key, kd_lt.cublasLtMatmulDescCreate(&p->desc, compute, CUDA_R_32F));
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a,
                                                  sizeof op_a));
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b,
                                                  sizeof op_b));
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatrixLayoutCreate(&p->a, type, key->transposed_a ? k : m,
                                              key->transposed_a ? m : k, key->lda));
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatrixLayoutCreate(&p->b, type, key->transposed_b ? n : k,
                                              key->transposed_b ? k : n, key->ldb));
    BLAS_TRY(blas, key, kd_lt.cublasLtMatrixLayoutCreate(&p->d, d_type, m, n, key->ldd));
    KD_TRY(describe_batch(p, blas));
    KD_TRY(describe_scales(p, blas));
    return describe_epilogue(p, blas);
}

static kd_status set_preferences(cublasLtMatmulPreference_t preference, const kd_product *p,
                                 const kd_exec *exec, const kd_blas *blas)
{
    const kd_product_key *key = &p->key;
    /* There is no preference for the bias: a kernel reads it as it writes D. */
    const int32_t align_d =
        has_bias(key) && key->align_bias < key->align_d ? key->align_bias : key->align_d;
    const uint64_t workspace = kd_cuda_workspace(kd_cuda_limits_of(exec));
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        uint32_t bytes;
    } align[] = { { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)key->align_a },
                  { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)key->align_b },
                  { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)key->align_d },
                  { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)align_d } };
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatmulPreferenceSetAttribute(preference,
                                                        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                        &workspace, sizeof workspace));
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatmulPreferenceSetAttribute(
                 preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes));
    for (int i = 0; i < KD_COUNT(align); i++)
        BLAS_TRY(blas, key,
                 kd_lt.cublasLtMatmulPreferenceSetAttribute(
                     preference, align[i].attribute, &align[i].bytes, sizeof align[i].bytes));
    return KD_OK;
}

/* Leaves no candidate where the library has no kernel. */
static kd_status ask(kd_product *p, const kd_blas *blas, cublasLtMatmulPreference_t preference)
{
    const int wanted = blas->device->tune ? KD_BLAS_CANDIDATES : 1;
    int found = 0;
    const cublasStatus_t status = kd_lt.cublasLtMatmulAlgoGetHeuristic(
        blas->handle, p->desc, p->a, p->b, p->d, p->d, preference, wanted, p->candidates, &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return KD_OK;
    if (status != CUBLAS_STATUS_SUCCESS)
        return blas_fail(blas, &p->key, status, "cublasLtMatmulAlgoGetHeuristic");
    for (int i = 0; i < found; i++) {
        if (p->candidates[i].state != CUBLAS_STATUS_SUCCESS) continue;
        const size_t bytes = p->candidates[i].workspaceSize;
        if (bytes > p->workspace) p->workspace = bytes;
        p->candidates[p->candidate_count++] = p->candidates[i];
    }
    return KD_OK;
}

static kd_status make_product(kd_product *p, const kd_exec *exec, const kd_blas *blas)
{
    cublasLtMatmulPreference_t preference;
    (void)kd_cuda_stream(exec); /* the heuristic asks the thread's device */
    KD_TRY(describe(p, blas));
    BLAS_TRY(blas, &p->key, kd_lt.cublasLtMatmulPreferenceCreate(&preference));
    kd_status status = set_preferences(preference, p, exec, blas);
    if (status == KD_OK) status = ask(p, blas, preference);
    (void)kd_lt.cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

static kd_status find_product(kd_product **out, const kd_exec *exec, kd_blas *blas,
                              const kd_product_key *key)
{
    kd_product **bucket = &blas->buckets[kd_hash_key(key, sizeof *key) % KD_BLAS_BUCKETS];
    for (*out = *bucket; *out; *out = (*out)->next)
        if (memcmp(&(*out)->key, key, sizeof *key) == 0) return KD_OK;
    if (blas->count == MAX_PRODUCTS) forget_all(blas);
    kd_product *p = calloc(1, sizeof *p);
    if (!p) return kd_fail(KD_ENOMEM, "cuda:%d: no memory for a product", blas->device->index);
    p->key = *key;
    const kd_status status = make_product(p, exec, blas);
    if (status != KD_OK) {
        product_free(p);
        return status;
    }
    p->next = *bucket;
    *bucket = p;
    blas->count++;
    *out = p;
    return KD_OK;
}

/* ---- the key ---------------------------------------------------------------------------------- */

typedef struct request {
    const kd_tensor *y, *pre, *a, *b, *bias;  /* pre, bias: absent or NULL */
    const kd_tensor *a_scale, *b_scale;       /* f32 [M] and [N] for e4m3, or NULL */
    int64_t batch, y_apart, a_apart, b_apart; /* batch 0: one product */
    bool accumulate;
} request;

/* Of the first matrix and of those `apart` elements from one another. */
static int32_t alignment_of(const kd_tensor *t, int64_t apart)
{
    if (!kd_present(t)) return 0;
    const uintptr_t step = (uintptr_t)apart * kd_dtype_size(t->dtype);
    const uintptr_t address = (uintptr_t)t->data | step | MAX_ALIGNMENT;
    return (int32_t)(address & -address);
}

static int32_t type_of(const kd_tensor *t)
{
    return t->dtype == KD_F32 ? CUDA_R_32F : t->dtype == KD_BF16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
}

/* The leading dimension of a matrix, and whether it lies row by row, which cuBLASLt calls
 * transposed. */
static kd_status leading_dimension(int64_t *ld, bool *by_rows, const kd_tensor *t, const char *name)
{
    int64_t stride[2];
    KD_TRY(kd_matrix_strides(stride, t, name));
    *by_rows = stride[1] == 1;
    *ld = stride[*by_rows ? 0 : 1];
    return KD_OK;
}

/*
 * A y that lies by rows is, column by column, y' = b' a'.  So A is b then, and lies as the library
 * wants it when b lies by rows; else A is a, and lies so by columns.
 */
static kd_status make_key(kd_product_key *key, request *r, bool tf32)
{
    bool y_rows = false, a_rows = false, b_rows = false, pre_rows = false;
    memset(key, 0, sizeof *key);
    KD_TRY(leading_dimension(&key->ldd, &y_rows, r->y, "y"));
    if (kd_present(r->pre)) {
        KD_TRY(leading_dimension(&key->ld_pre, &pre_rows, r->pre, "pre"));
        if (pre_rows != y_rows) return kd_fail(KD_EINVAL, "pre: lies otherwise than y");
    }
    key->k = r->a->shape[1];
    key->m = r->y->shape[y_rows ? 1 : 0];
    key->n = r->y->shape[y_rows ? 0 : 1];
    if (y_rows) {
        const kd_tensor *a = r->a, *a_scale = r->a_scale;
        r->a = r->b, r->a_scale = r->b_scale;
        r->b = a, r->b_scale = a_scale;
        const int64_t apart = r->a_apart;
        r->a_apart = r->b_apart, r->b_apart = apart;
    }
    KD_TRY(leading_dimension(&key->lda, &a_rows, r->a, y_rows ? "b" : "a"));
    KD_TRY(leading_dimension(&key->ldb, &b_rows, r->b, y_rows ? "a" : "b"));
    key->transposed_a = a_rows != y_rows;
    key->transposed_b = b_rows != y_rows;
    key->type = type_of(r->a);
    key->d_type = type_of(r->y);
    key->align_a = alignment_of(r->a, r->a_apart);
    key->align_b = alignment_of(r->b, r->b_apart);
    key->align_d = alignment_of(r->y, r->y_apart);
    key->align_pre = alignment_of(r->pre, 0);
    key->align_bias = alignment_of(r->bias, 0);
    key->batch = kd_max_i64(r->batch, 1);
    key->apart_a = r->a_apart, key->apart_b = r->b_apart, key->apart_d = r->y_apart;
    key->accumulate = r->accumulate;
    key->tf32 = tf32 && key->type == CUDA_R_32F;
    key->scaled = r->a_scale != NULL;
    return KD_OK;
}

/* ---- running ---------------------------------------------------------------------------------- */

kd_status kd_product_run(const kd_blas *blas, const kd_product *p, int index,
                         const kd_product_operands *at, void *stream)
{
    const kd_product_key *key = &p->key;
    const float alpha = 1, beta = key->accumulate ? 1 : 0;
    if (has_bias(key))
        BLAS_TRY(blas, key, set_pointer(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, at->bias));
    if (has_pre(key))
        BLAS_TRY(blas, key, set_pointer(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, at->pre));
    if (key->scaled) {
        BLAS_TRY(blas, key, set_pointer(p, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, at->a_scale));
        BLAS_TRY(blas, key, set_pointer(p, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, at->b_scale));
    }
    BLAS_TRY(blas, key,
             kd_lt.cublasLtMatmul(blas->handle, p->desc, &alpha, at->a, p->a, at->b, p->b, &beta,
                                  at->d, p->d, at->d, p->d, &p->candidates[index].algo,
                                  at->workspace, p->workspace, stream));
    return KD_OK;
}

/* cuBLASLt's own conditions on the auxiliary matrix; GELU is fast in its Hopper kernels only. */
static bool may_fuse(const kd_exec *exec, const kd_product_key *key)
{
    return kd_cuda_limits_of(exec)->capability >= 90 && key->align_pre >= 16 &&
           key->ld_pre % 8 == 0;
}

static kd_status push_workspace(kd_tensor *workspace, kd_exec *exec, size_t bytes)
{
    return kd_push(workspace, exec, "matmul.workspace", KD_U8, KD_SHAPE((int64_t)bytes));
}

/* *found false, and nothing done, where the library has no kernel.  For a card that is not here the
 * library is not asked: it finds every kernel, and takes all that it may. */
static kd_status multiply(bool *found, kd_exec *exec, request *r)
{
    kd_product_key key;
    kd_product *p;
    kd_tensor workspace;
    KD_TRY(make_key(&key, r, exec->device->tf32));
    *found = !has_pre(&key) || may_fuse(exec, &key);
    if (!*found) return KD_OK;
    if (exec->device->type == &kd_device_meta)
        return push_workspace(&workspace, exec, kd_cuda_workspace(kd_cuda_limits_of(exec)));
    kd_blas *blas = kd_cuda_blas(exec);
    KD_TRY(find_product(&p, exec, blas, &key));
    *found = p->candidate_count > 0;
    if (!*found) return KD_OK;
    KD_TRY(push_workspace(&workspace, exec, p->workspace));
    if (kd_planning(exec)) return KD_OK;
    const kd_product_operands at = { .a = r->a->data,
                                     .b = r->b->data,
                                     .d = r->y->data,
                                     .bias = has_bias(&key) ? r->bias->data : NULL,
                                     .pre = has_pre(&key) ? r->pre->data : NULL,
                                     .a_scale = r->a_scale ? r->a_scale->data : NULL,
                                     .b_scale = r->b_scale ? r->b_scale->data : NULL,
                                     .workspace = workspace.data };
    return kd_product_run(blas, p, p->chosen, &at, kd_cuda_stream(exec));
}

/* As it stands, or not at all. */
static kd_status multiply_plain(kd_exec *exec, request r)
{
    const kd_tensor *a = r.a, *b = r.b;
    bool found;
    KD_TRY(multiply(&found, exec, &r));
    if (found) return KD_OK;
    return kd_fail(KD_ENOTSUP,
                   "cuda:%d: cuBLASLt has no %s kernel for [%lld, %lld] by [%lld, %lld]",
                   exec->device->index, kd_dtype_name(a->dtype), (long long)a->shape[0],
                   (long long)a->shape[1], (long long)b->shape[0], (long long)b->shape[1]);
}

kd_status kd_blas_matmul(kd_exec *exec, const kd_tensor *y, const kd_tensor *a, const kd_tensor *b,
                         const kd_tensor *bias, bool accumulate)
{
    return multiply_plain(
        exec, (request){ .y = y, .a = a, .b = b, .bias = bias, .accumulate = accumulate });
}

kd_status kd_blas_matmul_batched(kd_exec *exec, const kd_tensor *y, const kd_tensor *a,
                                 const kd_tensor *b)
{
    const kd_tensor y0 = kd_tensor_matrix(y, 0), a0 = kd_tensor_matrix(a, 0),
                    b0 = kd_tensor_matrix(b, 0);
    if (y->shape[0] == 1) return kd_blas_matmul(exec, &y0, &a0, &b0, NULL, false);
    if (y->shape[0] > INT32_MAX)
        return kd_fail(KD_ENOTSUP, "y: %lld matrices, expected at most %d", (long long)y->shape[0],
                       INT32_MAX);
    return multiply_plain(exec, (request){ .y = &y0,
                                           .a = &a0,
                                           .b = &b0,
                                           .batch = y->shape[0],
                                           .y_apart = y->stride[0],
                                           .a_apart = a->stride[0],
                                           .b_apart = b->stride[0] });
}

static kd_status check_e4m3(const kd_exec *exec, const kd_tensor *b)
{
    const int capability = kd_cuda_limits_of(exec)->capability;
    if (capability < KD_CUDA_E4M3_SINCE)
        return kd_fail(KD_ENOTSUP, "cuda:%d: found sm_%d, expected sm_%d or later for f8_e4m3",
                       exec->device->index, capability, KD_CUDA_E4M3_SINCE);
    if (b->shape[0] % KD_E4M3_UNIT || b->shape[1] % KD_E4M3_UNIT)
        return kd_fail(KD_ENOTSUP, "b: found [%lld, %lld], expected multiples of %d for f8_e4m3",
                       (long long)b->shape[0], (long long)b->shape[1], KD_E4M3_UNIT);
    return KD_OK;
}

/* Scales of rows and columns are for Hopper alone, from cuBLAS 12.9 on. */
static bool takes_scales(const kd_exec *exec, const request *r)
{
    /* Nothing is loaded to plan for a card that is not here. */
    const size_t version = kd_lt.cublasLtGetVersion ? kd_lt.cublasLtGetVersion() : CUBLAS_VERSION;
    return kd_cuda_limits_of(exec)->capability == 90 && version >= 120900 &&
           alignment_of(r->a_scale, 0) >= SCALE_ALIGNMENT &&
           alignment_of(r->b_scale, 0) >= SCALE_ALIGNMENT;
}

kd_status kd_blas_matmul_scaled(bool *scaled, kd_exec *exec, const kd_tensor *y, const kd_tensor *a,
                                const kd_tensor *b, const kd_tensor *a_scale,
                                const kd_tensor *b_scale, const kd_tensor *bias)
{
    request r = { .y = y, .a = a, .b = b, .bias = bias, .a_scale = a_scale, .b_scale = b_scale };
    KD_TRY(check_e4m3(exec, b));
    *scaled = takes_scales(exec, &r);
    if (*scaled) KD_TRY(multiply(scaled, exec, &r));
    return *scaled ? KD_OK : multiply_plain(exec, (request){ .y = y, .a = a, .b = b });
}

kd_status kd_blas_matmul_gelu(bool *fused, kd_exec *exec, const kd_tensor *y, const kd_tensor *pre,
                              const kd_tensor *a, const kd_tensor *b, const kd_tensor *bias)
{
    request r = { .y = y, .pre = pre, .a = a, .b = b, .bias = bias };
    return multiply(fused, exec, &r);
}
