/* Terms over taps meet the models and, where they keep banks of samples, the data. */
#include "train/session.h"

/* All classes of the training samples, which banks have a row for. */
static kd_status read_classes(int32_t **labels, int64_t *count, const kd_run *run,
                              const kd_samples_options *options)
{
    int32_t *all = NULL;
    int64_t n = 0;
    for (int i = 0; i < run->data.sources; i++) {
        kd_samples *samples;
        int32_t *longer;
        KD_TRY(kd_samples_open(&samples, run->data.train[i], options));
        const int64_t first = n;
        n += kd_samples_count(samples);
        kd_status status = KD_ARENA_ARRAY(&longer, run->arena, n);
        if (first && status == KD_OK) memcpy(longer, all, (size_t)first * sizeof *all);
        all = longer;
        for (int64_t k = first; k < n && status == KD_OK; k++)
            status = kd_samples_read(NULL, &all[k], samples, k - first);
        kd_samples_close(samples);
        KD_TRY(status);
    }
    *labels = all;
    *count = n;
    return KD_OK;
}

/* How many samples there are, and which are of one class. */
static kd_status give_data(kd_run *run, const kd_config *config)
{
    const kd_samples_options options = { config->inputs, config->vocabulary };
    const int32_t first = 0;
    kd_crd_classes *data;
    int32_t *labels = NULL;
    int64_t count = 0;
    KD_TRY(KD_ARENA_ARRAY(&data, run->arena, 1));
    KD_TRY(read_classes(&labels, &count, run, &options));
    KD_TRY(kd_crd_classes_make(data, run->arena, labels, count));
    const kd_status status = kd_crd_negatives(NULL, data, &first, 1, 0, 0, 0);
    if (status != KD_OK) return kd_fail(status, "data.train: %s", kd_last_error());
    kd_terms_give_data(run->terms, run->term_count, data);
    return KD_OK;
}

static kd_status bind(kd_run *run, const kd_config *configs)
{
    kd_offer offers[KD_MAX_MODELS];
    for (int m = 0; m < run->model_count; m++) {
        KD_TRY(kd_check_pair(run->models[0].label, &configs[0], run->models[m].label, &configs[m]));
        KD_TRY(kd_model_offer(&offers[m], run->arena, &configs[m], run->models[m].label));
    }
    KD_TRY(kd_terms_bind(run->terms, run->term_count, run->arena, offers));
    return kd_terms_keep_banks(run->terms, run->term_count) ? give_data(run, &configs[0]) : KD_OK;
}

static bool has_taps(const kd_run *run)
{
    for (int i = 0; i < run->term_count; i++)
        if (run->terms[i].tapped) return true;
    return false;
}

kd_status kd_bind_terms(kd_run *run)
{
    kd_config configs[KD_MAX_MODELS] = { { .raw = NULL } };
    kd_status status = KD_OK;
    if (run->bound || !has_taps(run)) return KD_OK;
    for (int m = 0; m < run->model_count && status == KD_OK; m++)
        status = kd_config_read(&configs[m], run->arena, run->models[m].model);
    if (status == KD_OK) status = bind(run, configs);
    for (int m = 0; m < run->model_count; m++) json_decref(configs[m].raw);
    run->bound = status == KD_OK;
    return status;
}
