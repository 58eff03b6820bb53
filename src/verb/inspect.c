/* What is on disk: the architecture of a directory, the tensors of a file. */
#include "model/model.h"
#include "verb/verb.h"

#include <kd/checkpoint.h>
#include <kd/model.h>

/* ---- a directory ------------------------------------------------------------------------------ */

static bool has_file(const char *dir, const char *name)
{
    char path[4096];
    return snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path &&
           kd_file_exists(path);
}

static void add_dtype(char *list, size_t size, const kd_st_entry *entry)
{
    const char *name = entry->dtype < 0 ? entry->dtype_name : kd_dtype_name(entry->dtype);
    const size_t used = strlen(list), length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at += length)
        if (at[length] == ' ' || at[length] == '\0') return;
    if (used + length + 2 <= size)
        snprintf(list + used, size - used, "%s%s", used ? " " : "", name);
}

static kd_status describe_weights(kd_model_info *info, const char *dir)
{
    kd_model_files *files;
    if (!has_file(dir, "model.safetensors") && !has_file(dir, "model.safetensors.index.json"))
        return KD_OK;
    KD_TRY(kd_model_files_open(&files, dir));
    info->weight_bytes = files->bytes;
    info->weight_files = files->count;
    for (int f = 0; f < files->count; f++)
        for (int64_t i = 0; i < files->files[f]->count; i++)
            add_dtype(info->dtypes, sizeof info->dtypes, &files->files[f]->entries[i]);
    kd_model_files_close(files);
    return KD_OK;
}

static void describe_config(kd_model_info *info, const kd_config *c)
{
    snprintf(info->architecture, sizeof info->architecture, "%s", c->architecture);
    snprintf(info->family, sizeof info->family, "%s", c->family);
    info->layers = c->layers;
    info->width = c->width;
    info->heads = c->heads;
    info->kv_heads = c->kv_heads;
    info->head_size = c->head_size;
    info->ffn = c->ffn;
    info->vocabulary = c->vocabulary;
    info->inputs = c->inputs;
    info->max_positions = c->max_positions;
    info->window = c->window;
    info->tied = c->tied;
    info->parameters = kd_config_parameters(c);
    info->flops_per_token = (double)kd_config_flops(c);
}

kd_status kd_model_describe(kd_model_info *info, const char *dir)
{
    kd_config config = { 0 };
    kd_tokenizer_info tokenizer;
    kd_arena *arena;
    kd_status status;
    *info = (kd_model_info){ .layers = 0 };
    KD_TRY(kd_arena_create(&arena));
    KD_TRY_GOTO(kd_config_read(&config, arena, dir), status, done);
    describe_config(info, &config);
    KD_TRY_GOTO(describe_weights(info, dir), status, done);
    KD_TRY_GOTO(kd_tokenizer_inspect(&tokenizer, dir), status, done);
    info->has_tokenizer = tokenizer.present;
    info->tokenizer_size = tokenizer.size;
    if (tokenizer.present)
        snprintf(info->tokenizer, sizeof info->tokenizer, "%s", tokenizer.fingerprint.hex);
    info->has_manifest = has_file(dir, "MANIFEST.json");
done:
    json_decref(config.raw);
    kd_arena_destroy(arena);
    return status;
}

static void print_model(FILE *out, const kd_model_info *m)
{
    char a[32], b[32];
    fprintf(out, "architecture  %s (%s)\n", m->architecture, m->family);
    fprintf(out, "parameters    %s\n", kd_format_count(a, sizeof a, m->parameters));
    if (m->weight_files)
        fprintf(out, "weights       %s, %s, %d file%s\n",
                kd_format_bytes(a, sizeof a, (double)m->weight_bytes), m->dtypes, m->weight_files,
                m->weight_files == 1 ? "" : "s");
    else
        fprintf(out, "weights       none here\n");
    fprintf(out, "layers        %lld\n", (long long)m->layers);
    if (m->inputs) {
        fprintf(out, "samples       of %s numbers\n", kd_format_count(a, sizeof a, m->inputs));
        fprintf(out, "head          %s classes from width %s\n",
                kd_format_count(a, sizeof a, m->vocabulary),
                kd_format_count(b, sizeof b, m->width));
        fprintf(out, "work          %.4g MFLOP per sample forward\n", m->flops_per_token / 1e6);
        return;
    }
    fprintf(out, "width         %s\n", kd_format_count(a, sizeof a, m->width));
    fprintf(out, "heads         %lld of size %lld, %lld for keys and values\n", (long long)m->heads,
            (long long)m->head_size, (long long)m->kv_heads);
    fprintf(out, "mlp           %s\n", kd_format_count(a, sizeof a, m->ffn));
    fprintf(out, "vocabulary    %s, head %s\n", kd_format_count(a, sizeof a, m->vocabulary),
            m->tied ? "tied to the embeddings" : "of its own");
    fprintf(out, "positions     %s", kd_format_count(a, sizeof a, m->max_positions));
    if (m->window) fprintf(out, ", window %s", kd_format_count(b, sizeof b, m->window));
    fprintf(out, "\nwork          %.4g GFLOP per token forward, attention scores not counted\n",
            m->flops_per_token / 1e9);
    if (m->has_tokenizer)
        fprintf(out, "tokenizer     %s, %s ids\n", m->tokenizer,
                kd_format_count(a, sizeof a, m->tokenizer_size));
    else
        fprintf(out, "tokenizer     none here\n");
}

static json_t *model_json(const kd_model_info *m, const char *dir)
{
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:f, "
                     "s:I, s:i, s:s, s:s?, s:I}",
                     "path", dir, "architecture", m->architecture, "family", m->family,
                     "parameters", (json_int_t)m->parameters, "layers", (json_int_t)m->layers,
                     "width", (json_int_t)m->width, "heads", (json_int_t)m->heads, "kv_heads",
                     (json_int_t)m->kv_heads, "head_size", (json_int_t)m->head_size, "ffn",
                     (json_int_t)m->ffn, "vocabulary", (json_int_t)m->vocabulary, "max_positions",
                     (json_int_t)m->max_positions, "window", (json_int_t)m->window, "tied",
                     (int)m->tied, "flops_per_token", m->flops_per_token, "weight_bytes",
                     (json_int_t)m->weight_bytes, "weight_files", m->weight_files, "dtypes",
                     m->dtypes, "tokenizer", m->has_tokenizer ? m->tokenizer : NULL,
                     "tokenizer_size", (json_int_t)m->tokenizer_size);
}

/* Takes `value`, made since `before`. */
static kd_status print_json(FILE *out, json_t *value, int64_t before, const char *path)
{
    KD_TRY(kd_json_made(&value, before, path));
    const kd_status status = kd_json_print(out, path, value);
    json_decref(value);
    return status;
}

static kd_status inspect_dir(FILE *out, const char *dir, bool json)
{
    kd_model_info info;
    KD_TRY(kd_model_describe(&info, dir));
    const kd_status verdict = info.has_manifest ? kd_checkpoint_check(dir) : KD_OK;
    if (json) {
        const int64_t before = kd_json_refused();
        json_t *value = model_json(&info, dir);
        if (info.inputs) (void)json_object_set_new(value, "inputs", json_integer(info.inputs));
        if (info.has_manifest)
            (void)json_object_set_new(value, "intact", json_boolean(verdict == KD_OK));
        KD_TRY(print_json(out, value, before, dir));
    } else {
        print_model(out, &info);
        if (info.has_manifest)
            fprintf(out, "manifest      %s\n",
                    verdict == KD_OK ? "every file is as it was written" : "DAMAGED");
    }
    /* The message is the verdict's own: nothing above fails in between. */
    return verdict;
}

/* ---- a file ----------------------------------------------------------------------------------- */

static void print_file(FILE *out, const kd_st_file *file)
{
    char name[512], shape[128], bytes[32], count[32];
    int widest = 4;
    int64_t elements = 0, total = 0;
    for (int64_t i = 0; i < file->count; i++) {
        kd_escape(name, sizeof name, file->entries[i].name);
        widest = (int)kd_max_i64(widest, (int64_t)strlen(name));
        elements += file->entries[i].elements;
        total += file->entries[i].bytes;
    }
    widest = (int)kd_min_i64(widest, 64);
    fprintf(out, "%-*s  %-8s %-22s %10s\n", widest, "name", "type", "shape", "bytes");
    for (int64_t i = 0; i < file->count; i++) {
        const kd_st_entry *e = &file->entries[i];
        kd_escape(name, sizeof name, e->name);
        kd_shape_text(shape, sizeof shape, e->rank, e->shape);
        fprintf(out, "%-*s  %-8s %-22s %10s\n", widest, name, e->dtype_name, shape,
                kd_format_bytes(bytes, sizeof bytes, (double)e->bytes));
    }
    fprintf(out, "%lld tensors, %s elements, %s\n", (long long)file->count,
            kd_format_count(count, sizeof count, elements),
            kd_format_bytes(bytes, sizeof bytes, (double)total));
    const char *key;
    json_t *value;
    json_object_foreach(file->metadata, key, value)
    {
        char text[512];
        kd_escape(name, sizeof name, key);
        kd_escape(text, sizeof text, json_string_value(value));
        fprintf(out, "metadata %s: %s\n", name, text);
    }
}

static json_t *tensor_json(const kd_st_entry *entry)
{
    json_t *shape = json_array();
    for (int32_t i = 0; i < entry->rank; i++)
        (void)json_array_append_new(shape, json_integer(entry->shape[i]));
    return json_pack("{s:s, s:s, s:o, s:I, s:I}", "name", entry->name, "dtype", entry->dtype_name,
                     "shape", shape, "offset", (json_int_t)entry->offset, "bytes",
                     (json_int_t)entry->bytes);
}

static json_t *file_json(const kd_st_file *file)
{
    json_t *tensors = json_array();
    for (int64_t i = 0; i < file->count; i++) {
        if (json_array_append_new(tensors, tensor_json(&file->entries[i])) == 0) continue;
        json_decref(tensors);
        return NULL;
    }
    return json_pack("{s:s, s:I, s:O?, s:o}", "path", file->path, "bytes", (json_int_t)file->size,
                     "metadata", file->metadata, "tensors", tensors);
}

kd_status kd_inspect(FILE *out, const char *path, bool json)
{
    kd_st_file *file;
    kd_status status = KD_OK;
    if (kd_dir_exists(path)) return inspect_dir(out, path, json);
    KD_TRY(kd_st_open(&file, path));
    const int64_t before = kd_json_refused();
    if (json)
        status = print_json(out, file_json(file), before, path);
    else
        print_file(out, file);
    kd_st_close(file);
    return status;
}
