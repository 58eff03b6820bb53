/*
 * negatives - which samples crd tells a sample from: k draws with replacement, uniform over the samples of other
 * classes; over all others where no labels are known, or not the sample's.
 *
 * A draw is a function of (seed, step, sample, k): no state, so that a resumed run draws what it would have
 * drawn, and a sample's negatives do not depend on its place in the batch.  RepDistiller draws without
 * replacement while there are k: at 16384 of 50000 a draw of ours repeats one in seven, and each is as likely.
 */
#include "loss/loss.h"

#include <stdlib.h>

static const int64_t label_step = INT64_C(1) << 32;

static int compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

kd_status kd_crd_classes_make(kd_crd_classes *classes, kd_arena *arena, const int32_t *labels,
                              int64_t samples)
{
    int64_t *order;
    *classes = (kd_crd_classes){ .samples = samples };
    if (samples < 1 || samples > INT32_MAX)
        return kd_fail(KD_EINVAL, "%lld samples, expected 1 to %d", (long long)samples, INT32_MAX);
    if (!labels) return KD_OK;
    KD_TRY(KD_ARENA_ARRAY(&order, arena, samples));
    for (int64_t i = 0; i < samples; i++) order[i] = labels[i] * label_step + i;
    qsort(order, (size_t)samples, sizeof *order, compare);
    classes->labels = labels;
    classes->order = order;
    return KD_OK;
}

/* How many of the order are below `key`. */
static int64_t below(const kd_crd_classes *classes, int64_t key)
{
    int64_t low = 0, high = classes->samples;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (classes->order[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Places in the order, or samples where there is none, that are no negatives: from `first` on. */
typedef struct left_out {
    int64_t first, count;
} left_out;

static left_out left_out_of(const kd_crd_classes *classes, int32_t sample)
{
    if (!classes->order) return (left_out){ sample, 1 };
    const int64_t label = classes->labels[sample], key = label * label_step;
    if (label < 0) return (left_out){ below(classes, key + sample), 1 };
    const int64_t first = below(classes, key);
    return (left_out){ first, below(classes, key + label_step) - first };
}

static kd_status check(const kd_crd_classes *classes, const int32_t *samples, int64_t batch)
{
    for (int64_t b = 0; b < batch; b++) {
        if (samples[b] < 0 || samples[b] >= classes->samples)
            return kd_fail(KD_EINVAL, "samples[%lld] is %d, expected 0 to %lld", (long long)b,
                           (int)samples[b], (long long)classes->samples - 1);
        if (left_out_of(classes, samples[b]).count == classes->samples)
            return kd_fail(KD_EINVAL, "sample %d has no negatives: all %lld are of its class",
                           (int)samples[b], (long long)classes->samples);
    }
    return KD_OK;
}

kd_status kd_crd_negatives(int32_t *out, const kd_crd_classes *classes, const int32_t *samples,
                           int64_t batch, int64_t k, uint64_t seed, int64_t step)
{
    static const uint64_t purpose = 0x6b642e6e6567u; /* "kd.neg" */
    KD_TRY(check(classes, samples, batch));
#pragma omp parallel for schedule(static) if (batch * k > 1 << 12)
    for (int64_t b = 0; b < batch; b++) {
        const left_out left = left_out_of(classes, samples[b]);
        const double count = (double)(classes->samples - left.count);
        for (int64_t i = 0; i < k; i++) {
            const uint64_t index = (uint64_t)(samples[b] * k + i);
            /* Below `count`: a uniform number is below 1 by more than half a step of it. */
            int64_t at =
                (int64_t)(count * kd_random_uniform(seed ^ purpose, (uint64_t)step, index));
            if (at >= left.first) at += left.count;
            out[b * k + i] = (int32_t)(classes->order ? classes->order[at] & (label_step - 1) : at);
        }
    }
    return KD_OK;
}
