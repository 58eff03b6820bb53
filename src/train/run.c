/* A run file: its sections, their options, and how they are printed back. */
#include "train/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- rows ------------------------------------------------------------------------------------- */

static const kd_option model_rows[] = {
    { "model", KD_STRING, offsetof(kd_model_section, model), NULL, 0, 0, "",
      "Hugging Face directory" },
    { "dtype", KD_CHOICE, offsetof(kd_model_section, dtype), "f32", 0, 0, "f32|bf16|f8_e4m3",
      "of weights and activations; a trained bf16 model keeps f32 masters; f8_e4m3: of the "
      "matrices "
      "in a frozen model's blocks but the first and the last, bf16 elsewhere" },
    { "master", KD_CHOICE, offsetof(kd_model_section, master), "f32", 0, 0, "f32",
      "of a trained model's weights, whatever they compute in" },
    { "recompute", KD_CHOICE, offsetof(kd_model_section, recompute), "none", 0, 0, "none|blocks",
      "blocks: keep block inputs only and compute the rest again in backward" },
    { "trainable", KD_BOOL, offsetof(kd_model_section, trainable), "false", 0, 0, "",
      "teacher: false, student: true unless said" },
    { 0 },
};

static const kd_option data_rows[] = {
    { "valid", KD_STRING, offsetof(kd_data_section, valid), "", 0, 0, "",
      "held-out tokens; none: no evaluation" },
    { "sequence", KD_INT, offsetof(kd_data_section, sequence), "512", 1, 1 << 20, "tokens",
      "length of a sample of tokens" },
    { "pack", KD_CHOICE, offsetof(kd_data_section, pack), "documents", 0, 0, "documents|none",
      "documents: several per sample, attention does not cross them" },
    { "shuffle", KD_BOOL, offsetof(kd_data_section, shuffle), "true", 0, 0, "",
      "a new order every epoch" },
    { 0 },
};

static const kd_option source_rows[] = {
    { "file", KD_STRING, offsetof(kd_data_section, train[0]), NULL, 0, 0, "",
      "tokens: .safetensors, llm.c .bin, Megatron .bin and .idx; text: .jsonl; * stands for "
      "shards; samples with labels, for models that classify them: .safetensors" },
    { "weight", KD_FLOAT, offsetof(kd_data_section, weight[0]), "1", 0, 0, "", "share of samples" },
    { 0 },
};

static const kd_option batch_rows[] = {
    { "tokens", KD_INT, offsetof(kd_batch_section, tokens), "0", 0, 1e12, "tokens",
      "of one update, over all ranks" },
    { "samples", KD_INT, offsetof(kd_batch_section, samples), "0", 0, 1e9, "samples",
      "the same as samples" },
    { "micro", KD_STRING, offsetof(kd_batch_section, micro), "auto", 0, 0, "samples",
      "of one forward pass; auto: the largest that fits, divides and, on a CPU, still gains "
      "speed" },
    { "chunk", KD_INT, offsetof(kd_batch_section, chunk), "0", 0, 1 << 20, "rows",
      "of the head at a time; 0: chosen" },
    { 0 },
};

static const kd_option run_rows[] = {
    { "tokens", KD_INT, offsetof(kd_run_section, tokens), "0", 0, 1e15, "tokens",
      "length of the run" },
    { "steps", KD_INT, offsetof(kd_run_section, steps), "0", 0, 1e12, "updates",
      "the same in updates" },
    { "epochs", KD_FLOAT, offsetof(kd_run_section, epochs), "0", 0, 1e6, "epochs",
      "the same in passes over the data" },
    { "seed", KD_INT, offsetof(kd_run_section, seed), "1", 0, 1e15, "", "of the order of samples" },
    { "out", KD_STRING, offsetof(kd_run_section, out), NULL, 0, 0, "",
      "directory that the run writes" },
    { "device", KD_STRING, offsetof(kd_run_section, device), "auto", 0, 0, "",
      "auto, cpu, cuda, cuda:1" },
    { "resume", KD_STRING, offsetof(kd_run_section, resume), "auto", 0, 0, "",
      "auto: go on with an interrupted run; never; or a checkpoint's directory" },
    { "deterministic", KD_BOOL, offsetof(kd_run_section, deterministic), "true", 0, 0, "",
      "the same bits every time, which a CPU gives for the same number of threads; false: a GPU's "
      "products are chosen by the clock" },
    { "tf32", KD_BOOL, offsetof(kd_run_section, tf32), "false", 0, 0, "",
      "a GPU's f32 products round their operands to 10 bits of mantissa" },
    { "log_every", KD_INT, offsetof(kd_run_section, log_every), "10", 1, 1e9, "updates",
      "one line per so many" },
    { "tensorboard", KD_BOOL, offsetof(kd_run_section, tensorboard), "true", 0, 0, "",
      "event files in out/tensorboard, with the numbers of metrics.jsonl" },
    { 0 },
};

static const kd_option checkpoint_rows[] = {
    { "every", KD_STRING, offsetof(kd_checkpoint_section, every), "30 min", 0, 0, "",
      "\"500 steps\", \"30 min\" or never; one more at the end and at a signal" },
    { "keep", KD_INT, offsetof(kd_checkpoint_section, keep), "2", 1, 1e6, "checkpoints",
      "newest that stay" },
    { "keep_best", KD_CHOICE, offsetof(kd_checkpoint_section, keep_best), "none", 0, 0,
      "none|valid.kl|valid.ppl|valid.accuracy", "that of the lowest, or most accurate, stays too" },
    { 0 },
};

static const kd_option eval_rows[] = {
    { "every", KD_STRING, offsetof(kd_eval_section, every), "never", 0, 0, "",
      "\"500 steps\", \"30 min\" or never; one more at the end" },
    { "tokens", KD_INT, offsetof(kd_eval_section, tokens), "0", 0, 1e12, "tokens",
      "of data.valid; 0: all" },
    { 0 },
};

static const kd_option dist_rows[] = {
    { "timeout", KD_FLOAT, offsetof(kd_dist_section, timeout), "100", 1, 1e6, "s",
      "without an answer of the other ranks, after which a rank stops (exit 6); three times as "
      "long "
      "until the first update is done" },
    { 0 },
};

static const double MAX_INTERVAL = 1e12; /* updates, or seconds */

static const char *const section_names[] = { "teacher", "student", "students", "data",
                                             "loss",    "optim",   "batch",    "run",
                                             "eval",    "dist",    NULL };

/* ---- parsing ---------------------------------------------------------------------------------- */

static kd_status add_model(kd_run *run, const kd_node *node, const char *label, bool trainable)
{
    if (run->model_count == KD_MAX_MODELS)
        return kd_node_fail(node, label, "more than %d models", KD_MAX_MODELS);
    kd_model_section *section = &run->models[run->model_count++];
    KD_TRY(kd_options_parse(section, model_rows, run->arena, node, label, NULL));
    if (!kd_node_find(node, "trainable")) section->trainable = trainable;
    return kd_arena_string(&section->label, run->arena, label);
}

static kd_status parse_models(kd_run *run)
{
    const kd_node *teacher = kd_node_find(run->root, "teacher");
    const kd_node *student = kd_node_find(run->root, "student");
    const kd_node *students = kd_node_find(run->root, "students");
    if (teacher) KD_TRY(add_model(run, teacher, "teacher", false));
    if (student && students)
        return kd_node_fail(students, "students", "beside `student`; give one of them");
    if (student) return add_model(run, student, "student", true);
    int i = 0;
    for (const kd_node *n = students ? students->child : NULL; n; n = n->next, i++) {
        const char *label;
        KD_TRY(kd_arena_format(&label, run->arena, "students[%d]", i));
        KD_TRY(add_model(run, n, label, true));
    }
    return i ? KD_OK : kd_fail(KD_EINVAL, "the run has no `student: {model: ...}`");
}

static kd_status add_source(kd_run *run, const kd_node *node)
{
    kd_data_section one = { 0 };
    const int at = run->data.sources;
    if (at == KD_MAX_SOURCES)
        return kd_node_fail(node, "data.train", "more than %d sources", KD_MAX_SOURCES);
    if (node->kind == KD_NODE_SCALAR) {
        one.train[0] = node->text;
        one.weight[0] = 1.0;
    } else {
        KD_TRY(kd_options_parse(&one, source_rows, run->arena, node, "data.train", NULL));
    }
    if (!(one.weight[0] > 0.0)) return kd_node_fail(node, "data.train.weight", "must be above 0");
    run->data.train[at] = one.train[0];
    run->data.weight[at] = one.weight[0];
    run->data.sources++;
    return KD_OK;
}

static kd_status parse_data(kd_run *run)
{
    static const char *const others[] = { "train", NULL };
    const kd_node *node = kd_node_find(run->root, "data");
    const kd_node *train = kd_node_find(node, "train");
    KD_TRY(kd_options_parse(&run->data, data_rows, run->arena, node, "data", others));
    if (!train) return kd_fail(KD_EINVAL, "the run has no `data: {train: ...}`");
    if (train->kind != KD_NODE_LIST) return add_source(run, train);
    for (const kd_node *n = train->child; n; n = n->next) KD_TRY(add_source(run, n));
    return KD_OK;
}

/* Bits of kd_eval_section.metrics, in order. */
static const char *const metric_names[] = { "kl", "ppl", "same_top", NULL };

/* eval.metrics: a list of what an evaluation reports; absent: everything. */
static kd_status parse_metrics(kd_run *run, const kd_node *eval)
{
    const kd_node *list = kd_node_find(eval, "metrics");
    run->eval.metrics = list ? 0 : ~0u;
    for (const kd_node *n = list ? list->child : NULL; n; n = n->next) {
        int at = 0;
        while (metric_names[at] &&
               (n->kind != KD_NODE_SCALAR || strcmp(metric_names[at], n->text) != 0))
            at++;
        if (!metric_names[at])
            return kd_node_fail(n, "eval.metrics", "found \"%s\", expected kl, ppl or same_top",
                                n->kind == KD_NODE_SCALAR ? n->text : "a map");
        run->eval.metrics |= 1u << at;
    }
    return KD_OK;
}

static kd_status parse_terms(kd_run *run)
{
    int students[KD_MAX_MODELS], teachers[KD_MAX_MODELS], student_count = 0, teacher_count = 0;
    for (int i = 0; i < run->model_count; i++) {
        if (run->models[i].trainable)
            students[student_count++] = i;
        else
            teachers[teacher_count++] = i;
    }
    if (student_count == 0) return kd_fail(KD_EINVAL, "no model of the run is trainable");
    return kd_terms_parse(&run->terms, &run->term_count, &run->logits, run->arena,
                          kd_node_find(run->root, "loss"), students, student_count, teachers,
                          teacher_count);
}

static kd_status check_sections(const kd_run *run)
{
    for (const kd_node *n = run->root->child; n; n = n->next) {
        bool known = false;
        for (int i = 0; section_names[i]; i++) known |= strcmp(n->key, section_names[i]) == 0;
        if (known) continue;
        const char *near = kd_nearest(n->key, section_names);
        return kd_node_fail(n, n->key, "unknown section%s%s", near ? "; nearest: " : "",
                            near ? near : "");
    }
    return KD_OK;
}

kd_status kd_run_parse(kd_run *run)
{
    static const char *const nested[] = { "checkpoint", NULL }, *const listed[] = { "metrics",
                                                                                    NULL };
    if (run->parsed) return KD_OK;
    kd_arena *arena = run->arena;
    const kd_node *section = kd_node_find(run->root, "run");
    KD_TRY(check_sections(run));
    KD_TRY(parse_models(run));
    KD_TRY(parse_data(run));
    KD_TRY(parse_terms(run));
    KD_TRY(kd_options_parse(&run->optim, kd_optim_rows, arena, kd_node_find(run->root, "optim"),
                            "optim", NULL));
    KD_TRY(kd_options_parse(&run->batch, batch_rows, arena, kd_node_find(run->root, "batch"),
                            "batch", NULL));
    KD_TRY(kd_options_parse(&run->run, run_rows, arena, section, "run", nested));
    KD_TRY(kd_options_parse(&run->checkpoint, checkpoint_rows, arena,
                            kd_node_find(section, "checkpoint"), "run.checkpoint", NULL));
    const kd_node *eval = kd_node_find(run->root, "eval");
    KD_TRY(kd_options_parse(&run->eval, eval_rows, arena, eval, "eval", listed));
    KD_TRY(parse_metrics(run, eval));
    KD_TRY(kd_options_parse(&run->dist, dist_rows, arena, kd_node_find(run->root, "dist"), "dist",
                            NULL));
    run->parsed = true;
    return KD_OK;
}

/* ---- values that hang together ---------------------------------------------------------------- */

kd_dtype kd_section_dtype(const kd_model_section *section)
{
    static const kd_dtype dtypes[] = { KD_F32, KD_BF16, KD_F8_E4M3 };
    return dtypes[section->dtype];
}

kd_status kd_run_length(int64_t *steps, int64_t *step_samples, const kd_run *run,
                        int64_t train_tokens)
{
    const kd_batch_section *b = &run->batch;
    const kd_run_section *r = &run->run;
    if ((b->tokens > 0) == (b->samples > 0))
        return kd_fail(KD_EINVAL, "batch: give one of tokens and samples");
    *step_samples = b->samples > 0 ? b->samples : b->tokens / run->data.sequence;
    if (*step_samples < 1 || (b->tokens > 0 && b->tokens % run->data.sequence != 0))
        return kd_fail(KD_EINVAL, "batch.tokens: %lld is no multiple of data.sequence %lld",
                       (long long)b->tokens, (long long)run->data.sequence);
    if ((r->tokens > 0) + (r->steps > 0) + (r->epochs > 0.0) != 1)
        return kd_fail(KD_EINVAL, "run: give one of tokens, steps and epochs");
    if (r->epochs > 0.0 && train_tokens == 0)
        return kd_fail(KD_EINVAL, "run.epochs: the size of the data is not known here");
    const int64_t step_tokens = *step_samples * run->data.sequence;
    const int64_t tokens = r->tokens > 0 ? r->tokens : (int64_t)(r->epochs * (double)train_tokens);
    *steps = r->steps > 0 ? r->steps : kd_max_i64(1, tokens / step_tokens);
    return KD_OK;
}

kd_status kd_run_interval(int64_t *steps, double *seconds, const char *text, const char *key)
{
    static const struct {
        const char *unit;
        double seconds;
    } units[] = { { "steps", 0 }, { "step", 0 }, { "s", 1 }, { "min", 60 }, { "h", 3600 } };
    *steps = 0;
    *seconds = 0.0;
    if (strcmp(text, "never") == 0) return KD_OK;
    char *end;
    const double value = strtod(text, &end);
    while (*end == ' ') end++;
    for (int i = 0; i < KD_COUNT(units) && end != text && value > 0.0; i++) {
        if (strcmp(end, units[i].unit) != 0) continue;
        if (value * units[i].seconds > MAX_INTERVAL || value > MAX_INTERVAL) break;
        if (units[i].seconds > 0)
            *seconds = value * units[i].seconds;
        else
            *steps = (int64_t)value;
        if (*steps > 0 || *seconds > 0.0) return KD_OK;
    }
    return kd_fail(KD_EINVAL, "%s: \"%s\"; expected \"500 steps\", \"30 min\", \"2 h\" or never",
                   key, text);
}

/* ---- the public face -------------------------------------------------------------------------- */

kd_status kd_run_create(kd_run **out)
{
    kd_arena *arena;
    kd_run *run = NULL;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = KD_ARENA_ARRAY(&run, arena, 1);
    if (status == KD_OK) {
        run->arena = arena;
        status = KD_ARENA_ARRAY(&run->root, arena, 1);
    }
    if (status != KD_OK) {
        kd_arena_destroy(arena);
        return status;
    }
    *run->root = (kd_node){ .kind = KD_NODE_MAP, .source = "" };
    *out = run;
    return KD_OK;
}

void kd_run_destroy(kd_run *run)
{
    if (run) kd_arena_destroy(run->arena);
}

kd_status kd_run_file(kd_run *run, const char *path)
{
    kd_node *node;
    KD_TRY(kd_yaml_read(&node, run->arena, path));
    if (node->kind != KD_NODE_MAP)
        return kd_fail(KD_EINVAL, "%s: expected sections such as student: and data:", path);
    return kd_node_merge(run->root, node, run->arena);
}

kd_status kd_run_set(kd_run *run, const char *path, const char *text)
{
    const char *source;
    KD_TRY(kd_arena_format(&source, run->arena, "--%s", path));
    return kd_node_set(run->root, run->arena, source, path, text);
}

/* Sections with fixed rows, in the order in which they are written. */
typedef struct section {
    const char *path;
    const kd_option *rows;
    const void *target;
} section;

void kd_run_help(FILE *out)
{
    const section all[] = {
        { "teacher", model_rows, NULL },  { "student", model_rows, NULL },
        { "data", data_rows, NULL },      { "data.train", source_rows, NULL },
        { "optim", kd_optim_rows, NULL }, { "batch", batch_rows, NULL },
        { "run", run_rows, NULL },        { "run.checkpoint", checkpoint_rows, NULL },
        { "eval", eval_rows, NULL },      { "dist", dist_rows, NULL }
    };
    for (int i = 0; i < KD_COUNT(all); i++) kd_options_help(out, all[i].path, all[i].rows);
    kd_terms_help(out);
}

/* ---- printing --------------------------------------------------------------------------------- */

static kd_status put_section(json_t *root, const char *name, const void *target,
                             const kd_option *rows)
{
    json_t *map = json_object();
    if (json_object_set_new(root, name, map) != 0)
        return kd_fail(KD_ENOMEM, "configuration: no memory");
    return kd_options_json(map, target, rows);
}

static kd_status put_models(json_t *root, const kd_run *run)
{
    json_t *students = json_array();
    if (json_object_set_new(root, "students", students) != 0)
        return kd_fail(KD_ENOMEM, "configuration: no memory");
    for (int i = 0; i < run->model_count; i++) {
        if (strcmp(run->models[i].label, "teacher") == 0) {
            KD_TRY(put_section(root, "teacher", &run->models[i], model_rows));
            continue;
        }
        json_t *map = json_object();
        if (json_array_append_new(students, map) != 0)
            return kd_fail(KD_ENOMEM, "configuration: no memory");
        KD_TRY(kd_options_json(map, &run->models[i], model_rows));
    }
    return KD_OK;
}

static kd_status put_data(json_t *root, const kd_run *run)
{
    KD_TRY(put_section(root, "data", &run->data, data_rows));
    json_t *train = json_array();
    if (json_object_set_new(json_object_get(root, "data"), "train", train) != 0)
        return kd_fail(KD_ENOMEM, "configuration: no memory");
    for (int i = 0; i < run->data.sources; i++) {
        json_t *one =
            json_pack("{s:s, s:f}", "file", run->data.train[i], "weight", run->data.weight[i]);
        if (json_array_append_new(train, one) != 0)
            return kd_fail(KD_ENOMEM, "configuration: no memory");
    }
    return KD_OK;
}

static kd_status put_metrics(json_t *eval, unsigned metrics)
{
    json_t *list = json_array();
    bool ok = json_object_set_new(eval, "metrics", list) == 0;
    for (int i = 0; ok && metric_names[i]; i++)
        if (metrics >> i & 1u) ok = json_array_append_new(list, json_string(metric_names[i])) == 0;
    return ok ? KD_OK : kd_fail(KD_ENOMEM, "configuration: no memory");
}

static kd_status effective(json_t **out, kd_run *run)
{
    const int64_t before = kd_json_refused();
    json_t *root = json_object();
    kd_status status;
    KD_TRY_GOTO(kd_run_parse(run), status, failed);
    KD_TRY_GOTO(put_models(root, run), status, failed);
    KD_TRY_GOTO(put_data(root, run), status, failed);
    KD_TRY_GOTO(kd_terms_json(root, run->terms, run->term_count, &run->logits), status, failed);
    KD_TRY_GOTO(put_section(root, "optim", &run->optim, kd_optim_rows), status, failed);
    KD_TRY_GOTO(put_section(root, "batch", &run->batch, batch_rows), status, failed);
    KD_TRY_GOTO(put_section(root, "run", &run->run, run_rows), status, failed);
    KD_TRY_GOTO(
        put_section(json_object_get(root, "run"), "checkpoint", &run->checkpoint, checkpoint_rows),
        status, failed);
    KD_TRY_GOTO(put_section(root, "eval", &run->eval, eval_rows), status, failed);
    KD_TRY_GOTO(put_metrics(json_object_get(root, "eval"), run->eval.metrics), status, failed);
    KD_TRY_GOTO(put_section(root, "dist", &run->dist, dist_rows), status, failed);
    KD_TRY_GOTO(kd_json_made(&root, before, "configuration"), status, failed);
    *out = root;
    return KD_OK;
failed:
    json_decref(root);
    return status;
}

/* The character at `c` where JSON may have it as it is and YAML refuses or folds it; else 0. */
static unsigned unlike_yaml(int *bytes, const unsigned char *c)
{
    *bytes = c[0] < 0x80 ? 1 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    unsigned point = *bytes == 1 ? c[0] : c[0] & (0xffu >> (*bytes + 1));
    for (int i = 1; i < *bytes; i++) point = point << 6 | (c[i] & 0x3fu);
    const bool unlike = (point >= 0x7f && point < 0xa0) || point == 0x2028 || point == 0x2029 ||
                        point == 0xfeff || point == 0xfffe || point == 0xffff;
    return unlike ? point : 0;
}

/* JSON that is YAML, and the same to both. */
static kd_status write_effective(FILE *out, kd_run *run, size_t flags)
{
    json_t *root = NULL;
    int bytes;
    KD_TRY(effective(&root, run));
    char *dump;
    const kd_status status = kd_json_dump(&dump, "configuration", root, flags);
    json_decref(root);
    KD_TRY(status);
    for (const unsigned char *c = (const unsigned char *)dump; *c; c += bytes) {
        const unsigned point = unlike_yaml(&bytes, c);
        if (point)
            fprintf(out, "\\u%04x", point);
        else
            (void)fwrite(c, 1, (size_t)bytes, out);
    }
    free(dump);
    return KD_OK;
}

kd_status kd_run_json(const char **text, kd_run *run)
{
    char *memory;
    size_t bytes;
    FILE *out;
    kd_stream *stream;
    KD_TRY(kd_stream_open(&stream, &out, "configuration"));
    const kd_status written = write_effective(out, run, JSON_COMPACT);
    kd_status status = kd_stream_close(&memory, &bytes, stream, written);
    if (status == KD_OK) status = kd_arena_string(text, run->arena, memory);
    free(memory);
    return status;
}

kd_status kd_run_print(kd_run *run, FILE *out)
{
    KD_TRY(write_effective(out, run, JSON_INDENT(2) | JSON_REAL_PRECISION(15)));
    fputc('\n', out);
    return ferror(out) ? kd_fail(KD_EIO, "the configuration could not be written") : KD_OK;
}
