/* Between a slab and a Hugging Face checkpoint: fused rows are split, Conv1D is turned. */
#include "model/transformer.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- from a name to rows of a parameter ------------------------------------------------------- */

bool kd_name_per_block(const kd_name_row *row) { return strstr(row->name, "%d") != NULL; }

void kd_tensor_name(char *name, size_t size, const kd_family *family, const kd_name_row *row,
                    int64_t block, bool bare)
{
    const char *pattern = row->name;
    const size_t prefix = family->optional_prefix ? strlen(family->optional_prefix) : 0;
    if (bare && prefix && strncmp(pattern, family->optional_prefix, prefix) == 0) pattern += prefix;
    const char *hole = strstr(pattern, "%d");
    if (hole)
        snprintf(name, size, "%.*s%lld%s", (int)(hole - pattern), pattern, (long long)block,
                 hole + 2);
    else
        snprintf(name, size, "%s", pattern);
}

static int of_linear(kd_linear layer, bool bias) { return bias ? layer.bias : layer.weight; }

static int of_norm(const kd_norm *norm, bool bias) { return bias ? norm->bias : norm->weight; }

int kd_model_param(const kd_model *model, const kd_name_row *row, int64_t l)
{
    const kd_block *block = &model->blocks[l];
    switch (row->place) {
    case KD_PLACE_EMBEDDING: return model->embedding;
    case KD_PLACE_POSITION: return model->position;
    case KD_PLACE_NORM1: return of_norm(&block->norm1, row->bias);
    case KD_PLACE_QKV: return of_linear(block->attention.qkv, row->bias);
    case KD_PLACE_Q_NORM: return of_norm(&block->attention.q_norm, row->bias);
    case KD_PLACE_K_NORM: return of_norm(&block->attention.k_norm, row->bias);
    case KD_PLACE_OUT: return of_linear(block->attention.out, row->bias);
    case KD_PLACE_NORM2: return of_norm(&block->norm2, row->bias);
    case KD_PLACE_MLP_UP: return of_linear(block->mlp.up, row->bias);
    case KD_PLACE_MLP_DOWN: return of_linear(block->mlp.down, row->bias);
    case KD_PLACE_FINAL_NORM: return of_norm(&model->final_norm, row->bias);
    case KD_PLACE_HEAD:
        if (row->bias) return model->head_bias;
        /* A tied head is written once, as the embedding. */
        return model->head_weight == model->embedding ? -1 : model->head_weight;
    case KD_PLACE_COUNT: break;
    }
    return -1;
}

void kd_part_rows(int64_t *begin, int64_t *count, const kd_model *model, const kd_name_row *row,
                  int param)
{
    const kd_config *c = &model->config;
    const int64_t q = c->heads * c->head_size, k = c->kv_heads * c->head_size;
    *begin = 0;
    *count = model->slab.params.items[param].shape.dim[0];
    switch (row->part) {
    case KD_PART_ALL: break;
    case KD_PART_Q: *count = q; break;
    case KD_PART_K: *begin = q, *count = k; break;
    case KD_PART_V: *begin = q + k, *count = k; break;
    case KD_PART_GATE: *count = c->ffn; break;
    case KD_PART_UP: *begin = c->ffn, *count = c->ffn; break;
    }
}

/* The shape of its tensor in a file. */
static kd_shape file_shape(const kd_model *model, const kd_name_row *row, int param)
{
    const kd_shape *shape = &model->slab.params.items[param].shape;
    int64_t begin, count;
    kd_part_rows(&begin, &count, model, row, param);
    if (shape->rank == 1) return KD_SHAPE(count);
    return row->transposed ? KD_SHAPE(shape->dim[1], count) : KD_SHAPE(count, shape->dim[1]);
}

/* ---- files against the configuration ---------------------------------------------------------- */

static kd_status find_tensor(const kd_st_entry **entry, const kd_st_file **file,
                             const kd_model_files *files, const kd_model *model,
                             const kd_name_row *row, int64_t block)
{
    char name[256];
    *entry = NULL;
    for (int bare = 0; bare < 2 && !*entry; bare++) {
        kd_tensor_name(name, sizeof name, model->family, row, block, bare);
        *entry = kd_model_files_find(files, name, file);
    }
    if (*entry) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: no tensor \"%s\", which %s with this config.json needs",
                   files->dir, name, model->config.architecture);
}

static kd_status check_tensor(const kd_model_files *files, const kd_model *model,
                              const kd_name_row *row, int64_t block)
{
    const int param = kd_model_param(model, row, block);
    const kd_st_entry *entry;
    const kd_st_file *file;
    char found[128], expected[128];
    if (param < 0) return KD_OK; /* this configuration has no such parameter */
    KD_TRY(find_tensor(&entry, &file, files, model, row, block));
    const kd_shape shape = file_shape(model, row, param);
    bool same = entry->rank == shape.rank;
    for (int32_t i = 0; same && i < shape.rank; i++) same = entry->shape[i] == shape.dim[i];
    if (same) return kd_st_read(NULL, KD_F32, file, entry, 0, 0); /* only whether it can be read */
    return kd_fail(KD_EFORMAT,
                   "%s: tensor \"%s\" (byte %lld): found shape %s, expected %s by config.json",
                   file->path, entry->name, (long long)entry->offset,
                   kd_shape_text(found, sizeof found, entry->rank, entry->shape),
                   kd_shape_text(expected, sizeof expected, shape.rank, shape.dim));
}

/* The block in `name` where that is one of the row's, 0 for a row of no block; -1: not of the row. */
static int64_t match(const char *name, const kd_family *family, const kd_name_row *row)
{
    const char *pattern = row->name, *prefix = family->optional_prefix;
    const size_t skip = prefix ? strlen(prefix) : 0;
    if (skip && strncmp(name, prefix, skip) != 0 && strncmp(pattern, prefix, skip) == 0)
        pattern += skip;
    const char *hole = strstr(pattern, "%d");
    if (!hole) return strcmp(name, pattern) == 0 ? 0 : -1;
    if (strncmp(name, pattern, (size_t)(hole - pattern)) != 0) return -1;
    const char *digits = name + (hole - pattern);
    const size_t count = strspn(digits, "0123456789");
    const bool number = count > 0 && count < 10 && (digits[0] != '0' || count == 1);
    return number && strcmp(digits + count, hole + 2) == 0 ? strtol(digits, NULL, 10) : -1;
}

/* A tensor that the configuration denies would be left out of the model without a word. */
static kd_status check_denied(bool *known, const kd_model *model, const kd_st_file *file,
                              const char *name)
{
    const kd_config *c = &model->config;
    *known = false;
    for (const kd_name_row *row = model->family->names; row->name; row++) {
        const int64_t block = match(name, model->family, row);
        if (block < 0) continue;
        *known = true;
        if (kd_name_per_block(row) && block >= c->layers)
            return kd_fail(KD_EFORMAT,
                           "%s: tensor \"%s\": found layer %lld, expected 0 to %lld by config.json",
                           file->path, name, (long long)block, (long long)c->layers - 1);
        /* A tied head may be there: published folders have it, equal to the embedding. */
        if (row->place != KD_PLACE_HEAD && kd_model_param(model, row, block) < 0)
            return kd_fail(KD_EFORMAT, "%s: tensor \"%s\": expected none by config.json",
                           file->path, name);
        return KD_OK;
    }
    return KD_OK;
}

static kd_status check_files(int64_t *unknown, const kd_model *model, const kd_model_files *files)
{
    for (const kd_name_row *row = model->family->names; row->name; row++) {
        const int64_t blocks = kd_name_per_block(row) ? model->config.layers : 1;
        for (int64_t b = 0; b < blocks; b++) KD_TRY(check_tensor(files, model, row, b));
    }
    for (int f = 0; f < files->count; f++) {
        const kd_st_file *file = files->files[f];
        for (int64_t i = 0; i < file->count; i++) {
            bool known;
            KD_TRY(check_denied(&known, model, file, file->entries[i].name));
            *unknown += !known;
        }
    }
    return KD_OK;
}

kd_status kd_model_check(int64_t *unknown, const kd_config *config, const kd_model_files *files)
{
    kd_model model = { .config = *config };
    int64_t count = 0;
    kd_status status;
    KD_TRY(kd_arena_create(&model.arena));
    KD_TRY_GOTO(kd_model_declare(&model, &model.slab.params, NULL), status, done);
    KD_TRY_GOTO(check_files(&count, &model, files), status, done);
    if (unknown) *unknown = count;
done:
    kd_arena_destroy(model.arena);
    return status;
}

/* ---- loading ---------------------------------------------------------------------------------- */

enum { PIECE_ELEMENTS = 1 << 20 };

/* One tensor of the checkpoint and where it goes. */
typedef struct target {
    kd_tensor weights, master; /* the rows of the parameter; master absent when weights are f32 */
    kd_tensor scales;          /* of e4m3 rows, else absent */
    int64_t rows, columns;     /* columns 1 for a vector */
} target;

static target target_of(const kd_model *model, const kd_name_row *row, int param)
{
    const kd_param *p = &model->slab.params.items[param];
    int64_t begin, count;
    kd_part_rows(&begin, &count, model, row, param);
    const kd_tensor weights = kd_slab_weight(&model->slab, param);
    const kd_tensor master = kd_slab_master(&model->slab, param);
    const kd_tensor scales = kd_slab_scale(&model->slab, param);
    target t = { .weights = kd_tensor_slice(&weights, 0, begin, count),
                 .rows = count,
                 .columns = p->shape.rank == 2 ? p->shape.dim[1] : 1 };
    if (kd_present(&model->slab.masters)) t.master = kd_tensor_slice(&master, 0, begin, count);
    if (kd_present(&scales)) t.scales = kd_tensor_slice(&scales, 0, begin, count);
    return t;
}

static void transpose(float *to, const float *from, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) to[i * columns + j] = from[j * rows + i];
}

/* Through `scratch`, which has room for t's elements in f32 and for a float per row. */
static kd_status upload_e4m3(kd_exec *exec, const target *t, float *values, float *scratch)
{
    const kd_shape shape = KD_SHAPE(t->rows, t->columns);
    const kd_tensor x = kd_tensor_of(values, KD_F32, shape);
    const kd_tensor scale = kd_tensor_of(scratch, KD_F32, KD_SHAPE(t->rows));
    const kd_tensor y = kd_tensor_of(scratch + t->rows, KD_F8_E4M3, shape);
    const kd_quantise_args args = { .y = &y, .scale = &scale, .x = &x };
    KD_TRY(kd_quantise_cpu(exec, &args)); /* on the host, whatever the device */
    KD_TRY(kd_upload(exec, &t->scales, scale.data));
    KD_TRY(kd_upload(exec, &t->weights, y.data));
    return kd_sync(exec);
}

static kd_status upload(kd_exec *exec, const kd_tensor *to, const float *values, void *scratch)
{
    KD_TRY(kd_convert(scratch, to->dtype, values, KD_F32, kd_tensor_elements(to)));
    KD_TRY(kd_upload(exec, to, scratch));
    return kd_sync(exec);
}

/* Rows that pass through the host at a time: memory that only loading and saving take stays small.  A
 * tensor that is turned needs all of its rows at once. */
static int64_t rows_at_once(const target *t, bool transposed)
{
    const int64_t some = kd_max_i64(1, PIECE_ELEMENTS / kd_max_i64(1, t->columns));
    return transposed ? t->rows : kd_min_i64(some, t->rows);
}

static kd_tensor cut(const kd_tensor *of, int64_t first, int64_t count)
{
    return kd_present(of) ? kd_tensor_slice(of, 0, first, count) : (kd_tensor){ 0 };
}

static target rows_of(const target *t, int64_t first, int64_t count)
{
    return (target){ .weights = cut(&t->weights, first, count),
                     .master = cut(&t->master, first, count),
                     .scales = cut(&t->scales, first, count),
                     .rows = count,
                     .columns = t->columns };
}

/* `values` has room for t's elements three times, as read, turned and converted, and a float per row. */
static kd_status load_rows(kd_exec *exec, const kd_st_file *file, const kd_st_entry *entry,
                           const target *t, int64_t first, bool transposed, float *values)
{
    const int64_t n = t->rows * t->columns;
    float *turned = values + n, *converted = turned + n;
    KD_TRY(kd_st_read(values, KD_F32, file, entry, first, n));
    KD_TRY(kd_st_check_finite(file, entry, first, values, n));
    if (transposed) transpose(turned, values, t->rows, t->columns);
    float *final = transposed ? turned : values;
    if (kd_present(&t->scales)) return upload_e4m3(exec, t, final, converted);
    KD_TRY(upload(exec, &t->weights, final, converted));
    return kd_present(&t->master) ? upload(exec, &t->master, final, converted) : KD_OK;
}

static kd_status load_tensor(kd_exec *exec, const kd_st_file *file, const kd_st_entry *entry,
                             const target *t, bool transposed)
{
    const int64_t rows = rows_at_once(t, transposed);
    const size_t bytes = (size_t)(rows * (3 * t->columns + 1)) * sizeof(float);
    float *values = malloc(bytes);
    if (!values) return kd_fail(KD_ENOMEM, "%s: no memory for %zu bytes", entry->name, bytes);
    kd_status status = KD_OK;
    for (int64_t at = 0; at < t->rows && status == KD_OK; at += rows) {
        const target some = rows_of(t, at, kd_min_i64(rows, t->rows - at));
        status = load_rows(exec, file, entry, &some, at * t->columns, transposed, values);
    }
    free(values);
    return status;
}

static kd_status load_row(kd_exec *exec, const kd_model *model, const kd_model_files *files,
                          const kd_name_row *row, int64_t block)
{
    const int param = kd_model_param(model, row, block);
    if (param < 0) return KD_OK; /* this configuration has no such parameter */
    const kd_st_file *file;
    const kd_st_entry *entry;
    KD_TRY(find_tensor(&entry, &file, files, model, row, block));
    const target t = target_of(model, row, param);
    return load_tensor(exec, file, entry, &t, row->transposed);
}

kd_status kd_model_load(kd_model *model, const kd_model_files *files)
{
    kd_stack stack = { 0 };
    kd_exec exec = { model->slab.device, NULL, &stack };
    int64_t unknown;
    KD_TRY(kd_model_check(&unknown, &model->config, files));
    if (unknown)
        kd_log(KD_LOG_WARN, "%s: %lld tensors that %s has no name for are not read", files->dir,
               (long long)unknown, model->config.architecture);
    for (const kd_name_row *row = model->family->names; row->name; row++) {
        const int64_t blocks = kd_name_per_block(row) ? model->config.layers : 1;
        for (int64_t b = 0; b < blocks; b++) KD_TRY(load_row(&exec, model, files, row, b));
    }
    return KD_OK;
}

/* ---- saving ----------------------------------------------------------------------------------- */

typedef kd_status (*visit_tensor)(const kd_model *model, kd_st_writer *writer, const char *name,
                                  const kd_name_row *row, int param, kd_dtype dtype);

static kd_status each_tensor(const kd_model *model, kd_st_writer *writer, kd_dtype dtype,
                             visit_tensor visit)
{
    for (const kd_name_row *row = model->family->names; row->name; row++) {
        const int64_t blocks = kd_name_per_block(row) ? model->config.layers : 1;
        for (int64_t l = 0; l < blocks; l++) {
            const int param = kd_model_param(model, row, l);
            char name[256];
            if (param < 0) continue;
            kd_tensor_name(name, sizeof name, model->family, row, l, false);
            KD_TRY(visit(model, writer, name, row, param, dtype));
        }
    }
    return KD_OK;
}

static kd_status declare_tensor(const kd_model *model, kd_st_writer *writer, const char *name,
                                const kd_name_row *row, int param, kd_dtype dtype)
{
    const kd_shape shape = file_shape(model, row, param);
    return kd_st_writer_declare(writer, name, dtype, shape.rank, shape.dim);
}

/* `values` as for load_rows. */
static kd_status write_rows(kd_exec *exec, kd_st_writer *writer, const char *name, const target *t,
                            bool transposed, kd_dtype dtype, float *values)
{
    const kd_tensor *from = kd_present(&t->master) ? &t->master : &t->weights;
    const int64_t n = t->rows * t->columns;
    float *turned = values + n, *out = turned + n;
    KD_TRY(kd_download(exec, out, from));
    KD_TRY(kd_sync(exec));
    KD_TRY(kd_convert(values, KD_F32, out, from->dtype, n));
    if (transposed) transpose(turned, values, t->columns, t->rows);
    KD_TRY(kd_convert(out, dtype, transposed ? turned : values, KD_F32, n));
    return kd_st_writer_write(writer, name, out, (size_t)n * kd_dtype_size(dtype));
}

static kd_status write_tensor(const kd_model *model, kd_st_writer *writer, const char *name,
                              const kd_name_row *row, int param, kd_dtype dtype)
{
    const target t = target_of(model, row, param);
    const int64_t rows = rows_at_once(&t, row->transposed);
    kd_stack stack = { 0 };
    kd_exec exec = { .device = model->slab.device, .stack = &stack };
    kd_status status = KD_OK;
    float *values = malloc(3 * (size_t)(rows * t.columns) * sizeof *values);
    if (!values) return kd_fail(KD_ENOMEM, "%s: no memory to write it", name);
    for (int64_t at = 0; at < t.rows && status == KD_OK; at += rows) {
        const target some = rows_of(&t, at, kd_min_i64(rows, t.rows - at));
        status = write_rows(&exec, writer, name, &some, row->transposed, dtype, values);
    }
    free(values);
    return status;
}

kd_status kd_model_save(const kd_model *model, const char *dir, kd_dtype dtype)
{
    kd_arena *arena = NULL;
    kd_st_writer *writer = NULL;
    const char *path;
    kd_status status;
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(kd_dir_create(dir), status, done);
    KD_TRY_GOTO(kd_path_join(&path, arena, dir, "model.safetensors"), status, done);
    KD_TRY_GOTO(kd_st_writer_create(&writer, path), status, done);
    KD_TRY_GOTO(kd_st_writer_metadata(writer, "format", "pt"), status, done);
    KD_TRY_GOTO(each_tensor(model, writer, dtype, declare_tensor), status, done);
    KD_TRY_GOTO(kd_st_writer_begin(writer), status, done);
    KD_TRY_GOTO(each_tensor(model, writer, dtype, write_tensor), status, done);
    status = kd_st_writer_close(writer);
    writer = NULL;
    if (status != KD_OK) goto done;
    /* Last: a folder without config.json is no model. */
    KD_TRY_GOTO(kd_path_join(&path, arena, dir, "config.json"), status, done);
    KD_TRY_GOTO(kd_config_write(&model->config, path, dtype), status, done);
done:
    kd_st_writer_abort(writer);
    kd_arena_destroy(arena);
    return status;
}
