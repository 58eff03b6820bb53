/* Students: made of a teacher's blocks, or with fresh weights. */
#include "model/transformer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- from a teacher's layers ------------------------------------------------------------------ */

typedef struct layer_copy {
    const kd_family *family;
    const kd_model_files *files;
    const kd_config *config; /* of the student */
    kd_st_writer *writer;
    const int64_t *keep;
} layer_copy;

typedef kd_status (*visit_pair)(const layer_copy *copy, const char *name, const kd_st_entry *entry,
                                const kd_st_file *file);

/* The source's tensor of a name, with or without the optional prefix; NULL: not in this model. */
static const kd_st_entry *source_tensor(const layer_copy *copy, const kd_name_row *row,
                                        int64_t block, const kd_st_file **file)
{
    const kd_st_entry *entry = NULL;
    for (int bare = 0; bare < 2 && !entry; bare++) {
        char name[256];
        kd_tensor_name(name, sizeof name, copy->family, row, block, bare);
        entry = kd_model_files_find(copy->files, name, file);
    }
    return entry;
}

static kd_status each_pair(const layer_copy *copy, visit_pair visit)
{
    for (const kd_name_row *row = copy->family->names; row->name; row++) {
        const bool blocks = kd_name_per_block(row);
        const int64_t n = blocks ? copy->config->layers : 1;
        if (row->place == KD_PLACE_HEAD && copy->config->tied) continue;
        for (int64_t l = 0; l < n; l++) {
            const kd_st_file *file;
            const kd_st_entry *entry = source_tensor(copy, row, blocks ? copy->keep[l] : 0, &file);
            char name[256];
            if (!entry) continue;
            kd_tensor_name(name, sizeof name, copy->family, row, l, false);
            KD_TRY(visit(copy, name, entry, file));
        }
    }
    return KD_OK;
}

static kd_status declare_pair(const layer_copy *copy, const char *name, const kd_st_entry *entry,
                              const kd_st_file *file)
{
    if (entry->dtype < 0)
        return kd_fail(KD_ENOTSUP, "%s: %s has type %s", file->path, entry->name,
                       entry->dtype_name);
    return kd_st_writer_declare(copy->writer, name, (kd_dtype)entry->dtype, entry->rank,
                                entry->shape);
}

static kd_status write_pair(const layer_copy *copy, const char *name, const kd_st_entry *entry,
                            const kd_st_file *file)
{
    void *bytes = malloc((size_t)entry->bytes);
    if (!bytes)
        return kd_fail(KD_ENOMEM, "%s: no memory for %lld bytes", name, (long long)entry->bytes);
    kd_status status;
    KD_TRY_GOTO(kd_st_read(bytes, (kd_dtype)entry->dtype, file, entry, 0, entry->elements), status,
                done);
    status = kd_st_writer_write(copy->writer, name, bytes, (size_t)entry->bytes);
done:
    free(bytes);
    return status;
}

static kd_status copy_weights(layer_copy *copy, const char *path)
{
    kd_status status;
    KD_TRY(kd_st_writer_create(&copy->writer, path));
    KD_TRY_GOTO(kd_st_writer_metadata(copy->writer, "format", "pt"), status, failed);
    KD_TRY_GOTO(each_pair(copy, declare_pair), status, failed);
    KD_TRY_GOTO(kd_st_writer_begin(copy->writer), status, failed);
    KD_TRY_GOTO(each_pair(copy, write_pair), status, failed);
    return kd_st_writer_close(copy->writer);
failed:
    kd_st_writer_abort(copy->writer);
    return status;
}

static kd_status check_keep(const int64_t *keep, int64_t count, const kd_config *teacher)
{
    if (teacher->inputs)
        return kd_fail(KD_ENOTSUP, "keep: the layers of %s have widths of their own; give a config",
                       teacher->architecture);
    if (count < 1) return kd_fail(KD_EINVAL, "keep: no layers");
    for (int64_t i = 0; i < count; i++) {
        if (keep[i] < 0 || keep[i] >= teacher->layers)
            return kd_fail(KD_EINVAL, "keep: layer %lld; the teacher has 0 to %lld",
                           (long long)keep[i], (long long)teacher->layers - 1);
        if (i > 0 && keep[i] <= keep[i - 1])
            return kd_fail(KD_EINVAL, "keep: %lld after %lld; expected ascending layers",
                           (long long)keep[i], (long long)keep[i - 1]);
    }
    return KD_OK;
}

/* Windowed layers stand behind full ones, and ascending layers keep that order. */
static void keep_layers(kd_config *config, const int64_t *keep, int64_t count)
{
    int64_t full = 0;
    for (int64_t i = 0; i < count; i++) full += keep[i] < config->window_from;
    config->window_from = full;
    config->layers = count;
}

/* The type that the student's config.json states: that of the embedding. */
static kd_status stated_dtype(kd_dtype *dtype, const layer_copy *copy)
{
    const kd_st_file *file;
    const kd_st_entry *entry = source_tensor(copy, &copy->family->names[0], 0, &file);
    if (!entry || entry->dtype < 0)
        return kd_fail(KD_EFORMAT, "%s: no embedding table of a known type", copy->files->dir);
    *dtype = (kd_dtype)entry->dtype;
    return KD_OK;
}

kd_status kd_init_from_layers(const char *out, const char *teacher, const int64_t *keep,
                              int64_t count)
{
    kd_arena *arena = NULL;
    kd_model_files *files = NULL;
    kd_config config = { 0 };
    kd_dtype dtype = KD_F32;
    const char *path;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    layer_copy copy = { .config = &config, .keep = keep };
    KD_TRY_GOTO(kd_config_read(&config, arena, teacher), status, done);
    KD_TRY_GOTO(check_keep(keep, count, &config), status, done);
    KD_TRY_GOTO(kd_family_find(&copy.family, config.family), status, done);
    KD_TRY_GOTO(kd_model_files_open(&files, teacher), status, done);
    KD_TRY_GOTO(kd_model_check(NULL, &config, files), status, done);
    copy.files = files;
    KD_TRY_GOTO(stated_dtype(&dtype, &copy), status, done);
    keep_layers(&config, keep, count);
    KD_TRY_GOTO(kd_dir_create(out), status, done);
    KD_TRY_GOTO(kd_path_join(&path, arena, out, "model.safetensors"), status, done);
    KD_TRY_GOTO(copy_weights(&copy, path), status, done);
    KD_TRY_GOTO(kd_tokenizer_copy(out, teacher), status, done);
    /* Last: a folder without config.json is no model. */
    KD_TRY_GOTO(kd_path_join(&path, arena, out, "config.json"), status, done);
    KD_TRY_GOTO(kd_config_write(&config, path, dtype), status, done);
done:
    kd_model_files_close(files);
    json_decref(config.raw);
    kd_arena_destroy(arena);
    return status;
}

/* ---- fresh ------------------------------------------------------------------------------------ */

static bool is_gain(const kd_model *model, int param)
{
    const char *name = model->slab.params.items[param].name;
    return strstr(name, "norm") && !strstr(name, "_bias");
}

/* `spread` below 0: that of He et al. (2015), which keeps the size of activations through ReLU. */
static kd_status fill_fresh(kd_model *model, double spread, uint64_t seed)
{
    kd_stack stack = { 0 };
    kd_exec exec = { .device = model->slab.device, .stack = &stack };
    for (int i = 0; i < model->slab.params.count; i++) {
        const kd_tensor to = kd_slab_weight(&model->slab, i);
        const int64_t n = kd_tensor_elements(&to);
        if (model->slab.params.items[i].flags & KD_PARAM_EXTRA) continue; /* its loss begins it */
        const bool matrix = to.rank == 2;
        const double s = spread >= 0 || !matrix ? spread : sqrt(2.0 / (double)to.shape[1]);
        float *values = malloc(2 * (size_t)n * sizeof *values);
        if (!values)
            return kd_fail(KD_ENOMEM, "fresh weights: no memory for %lld elements", (long long)n);
        for (int64_t k = 0; k < n; k++)
            values[k] = matrix ? (float)(s * kd_random_normal(seed, (uint64_t)i, (uint64_t)k))
                               : (is_gain(model, i) ? 1.0f : 0.0f);
        kd_status status = kd_convert(values + n, to.dtype, values, KD_F32, n);
        if (status == KD_OK) status = kd_upload(&exec, &to, values + n);
        if (status == KD_OK) status = kd_sync(&exec);
        free(values);
        KD_TRY(status);
    }
    return KD_OK;
}

static kd_status read_spread(double *spread, const json_t *json, const kd_config *c,
                             const char *path)
{
    const json_t *range = json_object_get(json, "initializer_range");
    char shown[80];
    *spread = range ? json_number_value(range) : c->inputs ? -1.0 : 0.02;
    if (!range || (json_is_number(range) && *spread >= 0 && *spread <= 1)) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: initializer_range is %s, expected a number from 0 to 1", path,
                   kd_json_show(shown, sizeof shown, range));
}

kd_status kd_init_fresh(const char *out, const char *config_path, const char *tokenizer_dir,
                        kd_dtype dtype, uint64_t seed)
{
    const kd_model_options options = { .label = "student", .dtype = dtype };
    kd_arena *arena = NULL;
    kd_device *device = NULL;
    kd_model *model = NULL;
    json_t *json = NULL;
    kd_config config = { 0 };
    double spread;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(kd_json_read(&json, config_path), status, done);
    KD_TRY_GOTO(kd_config_parse(&config, arena, config_path, json), status, done);
    KD_TRY_GOTO(read_spread(&spread, json, &config, config_path), status, done);
    KD_TRY_GOTO(kd_device_open(&device, "cpu"), status, done);
    KD_TRY_GOTO(kd_model_create(&model, device, &config, &options), status, done);
    KD_TRY_GOTO(fill_fresh(model, spread, seed), status, done);
    KD_TRY_GOTO(kd_dir_create(out), status, done);
    if (tokenizer_dir) KD_TRY_GOTO(kd_tokenizer_copy(out, tokenizer_dir), status, done);
    KD_TRY_GOTO(kd_model_save(model, out, dtype), status, done); /* config.json last, as above */
done:
    kd_model_close(model);
    kd_device_close(device);
    json_decref(config.raw);
    json_decref(json);
    kd_arena_destroy(arena);
    return status;
}
