/*
 * top_classes - the K largest logits of a row, as classes and log-probabilities.
 *
 *     ids[n] = the K of largest z[n,j], j < classes, largest first; of equal ones the smaller j first
 *     log_p[n,k] = z[n,ids[n,k]] / T - log sum over j < classes of e^(z[n,j] / T)
 *
 *   NaN        A row that has one has NaN for every log_p; its ids are K different classes.
 *   -inf       A class that is dead: log_p -inf, behind all others.
 *   order      that of keys (z as an integer of the same order, then ~j): no two are equal, so the result
 *              does not depend on how it is found.
 *
 * Traffic: the row twice, the second time from the cache; candidates are held in a buffer of 2K keys whose
 * smaller half is thrown away whenever it is full.
 */
#include "ops/row_block.h"

#include <omp.h>
#include <stdlib.h>

/* What `z` is by its order, +0 and -0 equal; below it the class, the smaller the larger. */
static uint64_t key_of(float z, int64_t j)
{
    const uint32_t bits = z == 0.0f ? 0u : kd_float_bits(z);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)ordered << 32 | (uint32_t) ~(uint32_t)j;
}

static float logit_of(uint64_t key)
{
    const uint32_t ordered = (uint32_t)(key >> 32);
    return kd_bits_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

static int32_t class_of(uint64_t key) { return (int32_t) ~(uint32_t)key; }

static void swap(uint64_t *a, uint64_t *b)
{
    const uint64_t kept = *a;
    *a = *b;
    *b = kept;
}

/* Puts the k largest of n different keys first, in any order (Hoare). */
static void keep_largest(uint64_t *key, int64_t n, int64_t k)
{
    int64_t low = 0, high = n - 1;
    while (low < high) {
        const uint64_t pivot = key[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (key[i] > pivot) i++;
            while (key[j] < pivot) j--;
            if (i <= j) swap(&key[i++], &key[j--]);
        }
        if (k - 1 <= j)
            high = j;
        else if (k - 1 >= i)
            low = i;
        else
            break;
    }
}

static int descending(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* key [2k]; the k largest of the row, in order. */
static void select_largest(uint64_t *key, int64_t k, kd_row row, int64_t classes)
{
    alignas(64) float buffer[BLOCK];
    uint64_t floor = 0; /* what is not above it is none of the k */
    int64_t count = 0;
    for (int64_t first = 0; first < classes; first += BLOCK) {
        const float *z = load_block(buffer, row, first, classes);
        const int64_t n = kd_min_i64(BLOCK, classes - first);
        const float least = logit_of(floor);
        bool some = false; /* a floor of 0 stands for NaN, above which is all */
        for (int i = 0; i < BLOCK; i++) some |= !(z[i] <= least);
        for (int64_t i = 0; some && i < n; i++) {
            const uint64_t own = key_of(z[i], first + i);
            if (own <= floor) continue;
            key[count++] = own;
            if (count < 2 * k) continue;
            keep_largest(key, count, k);
            count = k;
            floor = key[0];
            for (int64_t at = 1; at < k; at++) floor = key[at] < floor ? key[at] : floor;
        }
    }
    keep_largest(key, count, k);
    qsort(key, (size_t)k, sizeof *key, descending);
}

/* log sum e^((z - max) / T), of the row's largest `max`; NaN where one is NaN or none is alive. */
static double log_sum(kd_row row, int64_t classes, float max, float inv_t)
{
    alignas(64) float buffer[BLOCK], e[BLOCK];
    double sum = 0.0;
    for (int64_t first = 0; first < classes; first += BLOCK) {
        const float *z = load_block(buffer, row, first, classes);
        for (int i = 0; i < BLOCK; i++) e[i] = kd_vexpf((z[i] - max) * inv_t);
        sum += sum_block(e);
    }
    return log(sum);
}

static void one_row(const kd_top_classes_args *args, int64_t n, uint64_t *key)
{
    const int64_t k = args->ids->shape[1], classes = args->classes;
    int32_t *ids = (int32_t *)args->ids->data + n * k;
    float *log_p = (float *)args->log_p->data + n * k;
    const bool read = !ignored(args->labels, NULL, n);
    const kd_row row = kd_row_of(args->logits, n);
    const float inv_t = 1.0f / args->temperature;
    double max = 0.0, rest = 0.0;
    if (read) {
        select_largest(key, k, row, classes);
        max = (double)logit_of(key[0]); /* of a row with NaN it may be that */
        rest = log_sum(row, classes, (float)max, inv_t);
    }
    for (int64_t i = 0; i < k; i++) {
        ids[i] = read ? class_of(key[i]) : (int32_t)i;
        log_p[i] = read ? (float)(((double)logit_of(key[i]) - max) * (double)inv_t - rest) : 0.0f;
    }
}

kd_status kd_top_classes_check(const kd_top_classes_args *args)
{
    KD_TRY(kd_expect_rows(args->logits, "logits"));
    KD_TRY(kd_tensor_expect(args->logits, "logits", -1, KD_SHAPE(-1, -1)));
    const int64_t rows = args->logits->shape[0];
    KD_TRY(kd_tensor_expect(args->ids, "ids", KD_I32, KD_SHAPE(rows, -1)));
    const int64_t k = args->ids->shape[1];
    KD_TRY(kd_expect_list(args->ids, "ids", KD_I32, rows * k));
    KD_TRY(kd_tensor_expect(args->log_p, "log_p", KD_F32, KD_SHAPE(rows, k)));
    KD_TRY(kd_expect_list(args->log_p, "log_p", KD_F32, rows * k));
    if (kd_present(args->labels)) KD_TRY(kd_expect_list(args->labels, "labels", KD_I32, rows));
    if (args->classes < 1 || args->classes > args->logits->shape[1])
        return kd_fail(KD_EINVAL, "classes: found %lld, expected 1 to %lld",
                       (long long)args->classes, (long long)args->logits->shape[1]);
    if (k < 1 || k > kd_min_i64(args->classes, KD_MAX_TOP))
        return kd_fail(KD_EINVAL, "ids: found %lld a row, expected 1 to %lld", (long long)k,
                       (long long)kd_min_i64(args->classes, KD_MAX_TOP));
    if (!(args->temperature > 0.0f))
        return kd_fail(KD_EINVAL, "temperature: found %g, expected more than 0",
                       (double)args->temperature);
    return KD_OK;
}

kd_status kd_top_classes_cpu(kd_exec *exec, const kd_top_classes_args *args)
{
    const int64_t rows = args->logits->shape[0], k = args->ids->shape[1];
    kd_tensor keys;
    KD_TRY(kd_push(&keys, exec, "top_classes.keys", KD_U8,
                   KD_SHAPE(omp_get_max_threads(), 2 * k * (int64_t)sizeof(uint64_t))));
    if (kd_planning(exec)) return KD_OK;
#pragma omp parallel for schedule(static) if (rows * args->classes > KD_PARALLEL_ABOVE)
    for (int64_t n = 0; n < rows; n++)
        one_row(args, n, (uint64_t *)keys.data + omp_get_thread_num() * 2 * k);
    return KD_OK;
}
