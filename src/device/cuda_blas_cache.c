/*
 * The fastest of the algorithms that cuBLASLt's heuristic names, by the clock, and what the clock
 * said before: $XDG_CACHE_HOME/kd/cublaslt-<GPU>.json.
 *
 *     { "device": "NVIDIA H100 80GB HBM3", "driver": 13000, "cublaslt": 130100,
 *       "products": { "m 768 n 1024 ...": [66, 23, 1, 0, 1, 0, 35, 0, 2] } }
 *
 * A product's numbers are the attributes of its algorithm.  One that the heuristic does not name now
 * is never run, so a damaged file costs time and nothing else.
 */
#include "device/cuda_blas.h"

#include <ctype.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { REPEATS = 4, CONFIG = 9, KEY_TEXT = 448 };

#define CUDA_TRY(call)                                                                             \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        if (error_ != cudaSuccess)                                                                 \
            return kd_fail(KD_EDEVICE, "tuning: %.*s: %s", (int)strcspn(#call, "("), #call,        \
                           cudaGetErrorString(error_));                                            \
    } while (0)

typedef struct tuning {
    kd_exec *exec;
    kd_blas *blas;
    kd_tensor scratch; /* bytes */
    cudaEvent_t begin, end;
    kd_arena *arena;
    const char *path; /* of the file; NULL: none */
    json_t *file;     /* what it holds, and will hold */
    int timed, remembered, left;
} tuning;

/* ---- text of products and algorithms ---------------------------------------------------------- */

static void print_key(char text[KEY_TEXT], const kd_product_key *key)
{
    snprintf(text, KEY_TEXT,
             "m %lld n %lld k %lld ld %lld %lld %lld %lld type %d %d turned %d %d align %d %d %d "
             "%d %d add %d tf32 %d scaled %d batch %lld apart %lld %lld %lld",
             (long long)key->m, (long long)key->n, (long long)key->k, (long long)key->lda,
             (long long)key->ldb, (long long)key->ldd, (long long)key->ld_pre, (int)key->type,
             (int)key->d_type, (int)key->transposed_a, (int)key->transposed_b, (int)key->align_a,
             (int)key->align_b, (int)key->align_d, (int)key->align_pre, (int)key->align_bias,
             (int)key->accumulate, (int)key->tf32, (int)key->scaled, (long long)key->batch,
             (long long)key->apart_a, (long long)key->apart_b, (long long)key->apart_d);
}

/* Attributes that a version does not know count as 0. */
static void read_config(json_int_t config[CONFIG], const cublasLtMatmulAlgo_t *algo)
{
    static const cublasLtMatmulAlgoConfigAttributes_t wide[] = {
        CUBLASLT_ALGO_CONFIG_ID,
        CUBLASLT_ALGO_CONFIG_TILE_ID,
        CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
        CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
        CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING,
        CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION,
        CUBLASLT_ALGO_CONFIG_STAGES_ID
    };
    static const cublasLtMatmulAlgoConfigAttributes_t narrow[] = {
        CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID
    };
    size_t written;
    for (int i = 0; i < KD_COUNT(wide); i++) {
        uint32_t value = 0;
        (void)kd_lt.cublasLtMatmulAlgoConfigGetAttribute(algo, wide[i], &value, sizeof value,
                                                         &written);
        config[i] = value;
    }
    for (int i = 0; i < KD_COUNT(narrow); i++) {
        uint16_t value = 0;
        (void)kd_lt.cublasLtMatmulAlgoConfigGetAttribute(algo, narrow[i], &value, sizeof value,
                                                         &written);
        config[KD_COUNT(wide) + i] = value;
    }
}

/* ---- the file --------------------------------------------------------------------------------- */

static kd_status find_path(tuning *t)
{
    const char *home = getenv("HOME"), *cache = getenv("XDG_CACHE_HOME"), *name, *dir;
    kd_device_info info;
    char gpu[sizeof info.name];
    kd_device_describe(&info, t->exec->device);
    if (cache && *cache)
        KD_TRY(kd_path_join(&dir, t->arena, cache, "kd"));
    else if (home && *home)
        KD_TRY(kd_path_join(&dir, t->arena, home, ".cache/kd"));
    else
        return KD_OK;
    snprintf(gpu, sizeof gpu, "%s", info.name);
    for (char *c = gpu; *c; c++)
        if (!isalnum((unsigned char)*c)) *c = '-';
    KD_TRY(kd_arena_format(&name, t->arena, "cublaslt-%s.json", gpu));
    return kd_path_join(&t->path, t->arena, dir, name);
}

/* Whose times these are. */
static kd_status new_file(json_t **out, const tuning *t)
{
    kd_device_info info;
    int driver;
    kd_device_describe(&info, t->exec->device);
    CUDA_TRY(cudaDriverGetVersion(&driver));
    *out = json_pack("{s:s, s:i, s:I, s:{}}", "device", info.name, "driver", driver, "cublaslt",
                     (json_int_t)kd_lt.cublasLtGetVersion(), "products");
    return *out ? KD_OK : kd_fail(KD_ENOMEM, "tuning: no memory");
}

static kd_status check_file(const json_t *found, const json_t *expected)
{
    static const char *const keys[] = { "device", "driver", "cublaslt" };
    for (int i = 0; i < KD_COUNT(keys); i++)
        if (!json_equal(json_object_get(found, keys[i]), json_object_get(expected, keys[i])))
            return kd_fail(KD_EFORMAT, "its \"%s\" is not ours", keys[i]);
    if (!json_is_object(json_object_get(found, "products")))
        return kd_fail(KD_EFORMAT, "no \"products\"");
    return KD_OK;
}

/* What was measured before on the same device with the same library, or nothing. */
static kd_status open_file(tuning *t)
{
    KD_TRY(find_path(t));
    KD_TRY(new_file(&t->file, t));
    if (!t->path || !kd_file_exists(t->path)) return KD_OK;
    json_t *found = NULL;
    kd_status status = kd_json_read(&found, t->path);
    if (status == KD_OK) status = check_file(found, t->file);
    if (status != KD_OK) {
        kd_log(KD_LOG_INFO, "%s: ignored: %s", t->path, kd_last_error());
        json_decref(found);
        return KD_OK;
    }
    json_decref(t->file);
    t->file = found;
    return KD_OK;
}

/* A cache that cannot be written is a pity, not a failure. */
static void save_file(const tuning *t)
{
    if (!t->path || !t->timed) return;
    char *const dir = strdup(t->path);
    if (!dir) return;
    *strrchr(dir, '/') = '\0';
    kd_status status = kd_dir_create(dir);
    if (status == KD_OK) status = kd_json_write(t->path, t->file);
    if (status != KD_OK) kd_log(KD_LOG_INFO, "algorithms are not kept: %s", kd_last_error());
    free(dir);
}

/* ---- choosing --------------------------------------------------------------------------------- */

/* -1: the file has no algorithm that the heuristic names. */
static int remembered(const tuning *t, const kd_product *p)
{
    char text[KEY_TEXT];
    print_key(text, &p->key);
    const json_t *saved = json_object_get(json_object_get(t->file, "products"), text);
    if (json_array_size(saved) != CONFIG) return -1;
    for (int i = 0; i < p->candidate_count; i++) {
        json_int_t config[CONFIG];
        bool same = true;
        read_config(config, &p->candidates[i].algo);
        for (size_t c = 0; c < CONFIG; c++) {
            const json_t *value = json_array_get(saved, c);
            same = same && json_is_integer(value) && json_integer_value(value) == config[c];
        }
        if (same) return i;
    }
    return -1;
}

static kd_status remember(const tuning *t, const kd_product *p)
{
    char text[KEY_TEXT];
    json_int_t config[CONFIG];
    json_t *saved = json_array();
    print_key(text, &p->key);
    read_config(config, &p->candidates[p->chosen].algo);
    for (int c = 0; c < CONFIG; c++) (void)json_array_append_new(saved, json_integer(config[c]));
    if (json_object_set_new(json_object_get(t->file, "products"), text, saved) != 0)
        return kd_fail(KD_ENOMEM, "tuning: no memory");
    return KD_OK;
}

/* Of the last matrix of a batch, which starts `before` elements after the first, and those before it. */
static size_t matrix_bytes(int64_t before, int64_t ld, int64_t lines, int32_t type)
{
    const size_t element = type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1;
    return kd_round_up((size_t)(before + ld * lines) * element, KD_STACK_ALIGN);
}

/* Lays the operands into the scratch; where it is short a and b are the same bytes. */
static bool place(kd_product_operands *at, const tuning *t, const kd_product *p)
{
    const kd_product_key *key = &p->key;
    const int64_t last = key->batch - 1;
    const size_t a =
        matrix_bytes(last * key->apart_a, key->lda, key->transposed_a ? key->m : key->k, key->type);
    const size_t b =
        matrix_bytes(last * key->apart_b, key->ldb, key->transposed_b ? key->k : key->n, key->type);
    const size_t d = matrix_bytes(last * key->apart_d, key->ldd, key->n, key->d_type);
    const size_t pre = matrix_bytes(0, key->ld_pre, key->n, key->d_type);
    const size_t bias = matrix_bytes(0, key->m, 1, key->d_type);
    const size_t scale = matrix_bytes(0, kd_max_i64(key->m, key->n), 1, CUDA_R_32F);
    const size_t rest = d + pre + bias + scale + kd_round_up(p->workspace, KD_STACK_ALIGN);
    const size_t size = kd_tensor_bytes(&t->scratch);
    const bool apart = a + b + rest <= size;
    char *next = t->scratch.data;
    if (!apart && (a > b ? a : b) + rest > size) return false;
    *at = (kd_product_operands){ .a = next, .b = apart ? next + a : next };
    next += apart ? a + b : a > b ? a : b;
    at->d = next;
    at->pre = next + d;
    at->bias = next + d + pre;
    at->a_scale = at->b_scale = next + d + pre + bias;
    at->workspace = next + d + pre + bias + scale;
    return true;
}

static kd_status time_candidate(float *milliseconds, const tuning *t, const kd_product *p,
                                int index, const kd_product_operands *at)
{
    cudaStream_t stream = kd_cuda_stream(t->exec);
    KD_TRY(kd_product_run(t->blas, p, index, at, stream)); /* the first loads the kernel */
    CUDA_TRY(cudaEventRecord(t->begin, stream));
    for (int i = 0; i < REPEATS; i++) KD_TRY(kd_product_run(t->blas, p, index, at, stream));
    CUDA_TRY(cudaEventRecord(t->end, stream));
    CUDA_TRY(cudaEventSynchronize(t->end));
    CUDA_TRY(cudaEventElapsedTime(milliseconds, t->begin, t->end));
    return KD_OK;
}

static kd_status time_all(tuning *t, kd_product *p)
{
    kd_product_operands at;
    float best = INFINITY;
    if (!place(&at, t, p)) {
        t->left++;
        return KD_OK;
    }
    for (int i = 0; i < p->candidate_count; i++) {
        float milliseconds = INFINITY; /* of one that the heuristic names and the library refuses */
        if (time_candidate(&milliseconds, t, p, i, &at) != KD_OK)
            kd_log(KD_LOG_DEBUG, "%s", kd_last_error());
        if (milliseconds >= best) continue;
        best = milliseconds;
        p->chosen = i;
    }
    t->timed++;
    return remember(t, p);
}

static kd_status tune_product(tuning *t, kd_product *p)
{
    if (p->tuned || p->candidate_count < 2) return KD_OK;
    const int known = remembered(t, p);
    p->tuned = true;
    if (known < 0) return time_all(t, p);
    p->chosen = known;
    t->remembered++;
    return KD_OK;
}

static kd_status tune_all(tuning *t)
{
    const int64_t units =
        (int64_t)(t->exec->stack->capacity - t->exec->stack->used) / KD_STACK_ALIGN;
    const int64_t bytes = units * KD_STACK_ALIGN;
    KD_TRY(open_file(t));
    KD_TRY(kd_push(&t->scratch, t->exec, "tuning", KD_U8, KD_SHAPE(bytes)));
    /* 0x3c3c is 0.0115 in bf16 and f32, 1.5 in e4m3: zeros would draw less power and run faster than a run. */
    CUDA_TRY(cudaMemsetAsync(t->scratch.data, 0x3c, (size_t)bytes, kd_cuda_stream(t->exec)));
    CUDA_TRY(cudaEventCreate(&t->begin));
    CUDA_TRY(cudaEventCreate(&t->end));
    for (int i = 0; i < KD_BLAS_BUCKETS; i++)
        for (kd_product *p = t->blas->buckets[i]; p; p = p->next) KD_TRY(tune_product(t, p));
    save_file(t);
    kd_log(KD_LOG_INFO,
           "cuBLASLt: algorithms of %d products timed, of %d remembered, of %d left (no memory)",
           t->timed, t->remembered, t->left);
    return KD_OK;
}

kd_status kd_blas_tune(kd_exec *exec)
{
    if (!exec->device->tune || kd_planning(exec)) return KD_OK;
    tuning t = { .exec = exec, .blas = kd_cuda_blas(exec) };
    const kd_mark mark = kd_stack_mark(exec->stack);
    KD_TRY(kd_arena_create(&t.arena));
    const kd_status status = tune_all(&t);
    kd_stack_release(exec->stack, mark);
    if (t.begin) (void)cudaEventDestroy(t.begin);
    if (t.end) (void)cudaEventDestroy(t.end);
    json_decref(t.file);
    kd_arena_destroy(t.arena);
    return status;
}
