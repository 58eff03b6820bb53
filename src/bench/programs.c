/*
 * Cells that are a user's work on his own models, not an op: a step of distillation, a prompt that is
 * read, a text that is made.  All of it counts, from opening the files on, in the resident peak, which
 * is the process's own between two resets; time is that of the steady part.
 */
#include "bench/bench.h"
#include "train/train.h"
#include "verb/verb.h"

#include <kd/generate.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { WARM = 2, TIMED = 3, REPEATS = 3 };

/* Starts VmHWM anew (proc(5)); where the kernel does not let it, a peak is not told. */
static bool reset_peak(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (!file) return false;
    const bool put = fputs("5", file) >= 0;
    return fclose(file) == 0 && put;
}

static void take_peak(bench_program *found, bool reset)
{
    found->peak = reset ? fmax(found->peak, (double)kd_resident_peak_bytes()) : NAN;
}

/* ---- a step ----------------------------------------------------------------------------------- */

static kd_status set_all(kd_run *run, const char *const (*options)[2], int count)
{
    for (int i = 0; i < count; i++) KD_TRY(kd_run_set(run, options[i][0], options[i][1]));
    return KD_OK;
}

/* What tools/bench/step.py asks of PyTorch. */
static kd_status train(const bench_program *p, const char *out)
{
    const kd_bench_options *o = p->options;
    const char *dtype = kd_dtype_name(p->shape->dtype);
    char samples[24], sequence[24], steps[24];
    snprintf(samples, sizeof samples, "%lld", (long long)p->shape->dim[0]);
    snprintf(sequence, sizeof sequence, "%lld", (long long)p->shape->dim[1]);
    snprintf(steps, sizeof steps, "%d", WARM + TIMED);
    const char *const options[][2] = {
        { "teacher.model", o->teacher },  { "teacher.dtype", dtype },
        { "student.model", o->student },  { "student.dtype", dtype },
        { "data.train", o->data },        { "data.sequence", sequence },
        { "data.shuffle", "false" },      { "loss.ce.weight", "0.1" },
        { "loss.kl.weight", "0.9" },      { "optim.lr", "3e-4" },
        { "optim.schedule", "constant" }, { "batch.samples", samples },
        { "run.steps", steps },           { "run.out", out },
        { "run.device", o->device },      { "run.checkpoint.every", "never" },
        { "run.tensorboard", "false" },
    };
    kd_run *run;
    KD_TRY(kd_run_create(&run));
    kd_status status = set_all(run, options, KD_COUNT(options));
    if (status == KD_OK) status = kd_run_train(run);
    kd_run_destroy(run);
    return status;
}

/* The records' times: of step i when step i + 1 is enqueued, so the last says nothing new. */
static kd_status read_steps(bench_program *p, kd_arena *arena, const char *out)
{
    const char *path;
    char *text, *line, *rest;
    size_t bytes;
    double last = NAN;
    int count = 0;
    KD_TRY(kd_path_join(&path, arena, out, "metrics.jsonl"));
    KD_TRY(kd_file_read(&text, &bytes, path, 1 << 24));
    for (line = strtok_r(text, "\n", &rest); line && count < WARM + TIMED - 1;
         line = strtok_r(NULL, "\n", &rest)) {
        json_t *record;
        if (kd_json_parse(&record, path, line, strlen(line)) != KD_OK) break;
        const double at = json_number_value(json_object_get(record, "seconds"));
        if (count == 0) p->value = json_number_value(json_object_get(record, "loss"));
        if (count >= WARM - 1) p->seconds[p->count++] = at - last;
        last = at;
        count++;
        json_decref(record);
    }
    free(text);
    if (count == WARM + TIMED - 1) return KD_OK;
    return kd_fail(KD_EINTERNAL, "%s: %d records of steps, expected %d", path, count, WARM + TIMED);
}

static kd_status step(bench_program *p, kd_arena *arena)
{
    char folder[] = "/tmp/kd-bench-XXXXXX";
    const char *out;
    if (!mkdtemp(folder)) return kd_fail(KD_EIO, "%s: cannot be made", folder);
    kd_status status = kd_path_join(&out, arena, folder, "out");
    if (status == KD_OK) status = train(p, out);
    if (status == KD_OK) status = read_steps(p, arena, out);
    const kd_status removed = kd_dir_remove(folder);
    return status == KD_OK ? removed : status;
}

/* ---- inference -------------------------------------------------------------------------------- */

static kd_status ignore_token(void *context, int32_t id, const char *text, size_t bytes)
{
    (void)context, (void)id, (void)text, (void)bytes;
    return KD_OK;
}

/* The data's first P tokens read, then at most N made; seconds a token of either. */
static kd_status generate(bench_program *p, kd_arena *arena, bool made)
{
    const kd_bench_options *o = p->options;
    const int64_t *dim = p->shape->dim;
    int32_t *ids;
    int64_t count;
    KD_TRY(kd_verb_tokens(&ids, &count, arena, o->data, INT32_MAX));
    if (count < dim[0])
        return kd_fail(KD_EINVAL, "%s: %lld tokens, a prompt of %lld is wanted", o->data,
                       (long long)count, (long long)dim[0]);
    for (int i = 0; i < REPEATS; i++) {
        kd_generate_report report;
        KD_TRY(kd_generate(&report,
                           &(const kd_generate_options){ .model = o->student,
                                                         .ids = ids,
                                                         .id_count = dim[0],
                                                         .tokens = made ? dim[1] : 1,
                                                         .device = o->device,
                                                         .dtype = kd_dtype_name(p->shape->dtype) },
                           ignore_token, NULL));
        const double passes = (double)(report.tokens - 1); /* the prompt's gives the first */
        if (made && passes < 1) return kd_fail(KD_EINVAL, "%s ends its text at once", o->student);
        p->seconds[p->count++] = made ? report.seconds / passes : report.prompt_seconds;
    }
    return KD_OK;
}

static kd_status prefill(bench_program *p, kd_arena *arena) { return generate(p, arena, false); }
static kd_status decode(bench_program *p, kd_arena *arena) { return generate(p, arena, true); }

/* ---- a cell ----------------------------------------------------------------------------------- */

kd_status kd_bench_run_program(bench_program *program, const bench_row *row)
{
    kd_arena *arena;
    const kd_log_level level = kd_log_get_level();
    const bool reset = reset_peak();
    KD_TRY(kd_arena_create(&arena));
    kd_log_set_level(KD_LOG_WARN);
    if (program->profiled) kd_ops_profile(program->op_seconds);
    const kd_status status = row->program(program, arena);
    kd_ops_profile(NULL);
    kd_log_set_level(level);
    kd_arena_destroy(arena);
    take_peak(program, reset);
    return status;
}

/* What their work is depends on the models: they have no floor. */
static bench_work no_model(const bench_shape *s)
{
    (void)s;
    return (bench_work){ 0, 0, false };
}

double kd_bench_tokens(const bench_row *row, const bench_shape *s)
{
    if (strcmp(row->name, "step") == 0) return (double)s->dim[0] * (double)s->dim[1];
    return strcmp(row->name, "prefill") == 0 ? (double)s->dim[0] : 1.0;
}

enum { ANYWHERE = BENCH_GPU | BENCH_CPU };

static const bench_shape steps[] = {
    { BENCH_QUICK, "", KD_F32, { 2, 8 } },
    { ANYWHERE, "", KD_F32, { 4, 256 } },
    { ANYWHERE, "", KD_BF16, { 4, 256 } },
};

static const bench_shape prompts[] = {
    { BENCH_QUICK, "", KD_F32, { 8 } },
    { ANYWHERE, "", KD_F32, { 1024 } },
    { ANYWHERE, "", KD_BF16, { 1024 } },
};

static const bench_shape texts[] = {
    { BENCH_QUICK, "", KD_F32, { 8, 4 } },
    { ANYWHERE, "", KD_F32, { 256, 64 } },
    { ANYWHERE, "", KD_BF16, { 256, 64 } },
};

const bench_row kd_bench_rows_programs[] = {
    { "step", "BT", NULL, NULL, no_model, steps, KD_COUNT(steps), -1, -1, step },
    { "prefill", "P", NULL, NULL, no_model, prompts, KD_COUNT(prompts), -1, -1, prefill },
    { "decode", "PN", NULL, NULL, no_model, texts, KD_COUNT(texts), -1, -1, decode },
    { 0 },
};
