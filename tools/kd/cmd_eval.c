#include "cmd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct options {
    const char *teacher, *models, *names, *data, *train, *device, *dtype, *teacher_dtype, *out;
    int64_t sequence, micro, tokens;
    bool json;
} options;

static const kd_option rows[] = {
    { "models", KD_STRING, offsetof(options, models), NULL, 0, 0, "",
      "directories, with commas between" },
    { "data", KD_STRING, offsetof(options, data), NULL, 0, 0, "",
      "held-out tokens, or samples for models that classify them" },
    { "teacher", KD_STRING, offsetof(options, teacher), "", 0, 0, "",
      "directory; KL and same top are against it" },
    { "names", KD_STRING, offsetof(options, names), "", 0, 0, "",
      "of the models in the table, with commas between; unless said, their folders'" },
    { "train", KD_STRING, offsetof(options, train), "", 0, 0, "",
      "training tokens or samples, for the unigram floor" },
    { "sequence", KD_INT, offsetof(options, sequence), "512", 2, 1 << 20, "tokens",
      "length of a sample" },
    { "micro", KD_INT, offsetof(options, micro), "4", 1, 1 << 20, "samples",
      "of one forward pass; a model that reads no tokens takes micro x sequence of its own" },
    { "tokens", KD_INT, offsetof(options, tokens), "0", 0, 1e12, "tokens", "of the data; 0: all" },
    { "dtype", KD_STRING, offsetof(options, dtype), "f32", 0, 0, "",
      "f32 or bf16, of weights and activations; f8_e4m3: of the matrices in all blocks but the "
      "first and the last, bf16 elsewhere" },
    { "teacher_dtype", KD_STRING, offsetof(options, teacher_dtype), "", 0, 0, "",
      "of the teacher; unless said, that of the models" },
    { "device", KD_STRING, offsetof(options, device), "auto", 0, 0, "", "auto, cpu, cuda, cuda:1" },
    { "json", KD_BOOL, offsetof(options, json), "false", 0, 0, "",
      "as one JSON object, with KL by context and by the teacher's entropy, and calibration" },
    { "out", KD_STRING, offsetof(options, out), "", 0, 0, "",
      "file that gets the same JSON; RUN/eval.json is what kd report RUN looks for" },
    { 0 },
};

/* ---- as a table ------------------------------------------------------------------------------- */

enum { CELL = 48 };

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void print_row(const kd_eval_row *row, const kd_eval_row *teacher, int widest, bool samples)
{
    char accuracy[CELL], parameters[CELL], ratio[CELL], ppl[CELL], kl[CELL], same[CELL], kept[CELL];
    const kd_measure right = { 100.0 * row->accuracy.mean, 100.0 * row->accuracy.error };
    const kd_measure share = { 100.0 * row->same_top.mean, 100.0 * row->same_top.error };
    snprintf(ratio, CELL, "-");
    snprintf(kept, CELL, "-");
    if (teacher) {
        snprintf(ratio, CELL, "%.1f", (double)teacher->bytes / (double)row->bytes);
        snprintf(kept, CELL, "%.0f %%", 100.0 * row->retained);
    }
    printf("%-*s  %10s  %8.1f  %5s  %8.2f  %-20s  %-20s  %-18s  %8s", widest, row->name,
           cmd_parameters(parameters, CELL, row->parameters), (double)row->bytes / 1e6, ratio,
           row->ms_per_token, cmd_measure(ppl, CELL, row->ppl, ""),
           cmd_measure(kl, CELL, row->kl, ""), cmd_measure(same, CELL, share, " %"), kept);
    if (samples) printf("  %s", cmd_measure(accuracy, CELL, right, " %"));
    printf("\n");
}

static void print_pair(const kd_eval_report *r)
{
    char kl[CELL], better[CELL], all[CELL];
    if (r->pair.documents == 0) return;
    const char *unit = r->samples ? "samples" : "documents";
    printf("%s - %s: KL %s (paired over %s), %s of %s %s better\n", r->rows[r->pair.a].name,
           r->rows[r->pair.b].name, cmd_measure(kl, CELL, r->pair.kl, ""), unit,
           kd_format_count(better, CELL, r->pair.better),
           kd_format_count(all, CELL, r->pair.documents), unit);
}

static void print_quantiles(const kd_eval_report *r)
{
    if (!r->has_teacher) return;
    printf("retained = log ppl(teacher) / log ppl(model).  Quantiles of KL over %s:\n",
           r->samples ? "samples" : "tokens");
    for (int i = 1; i < r->count; i++) {
        const double *q = r->kl_quantile[i];
        printf("  %s: 50 %% %.3g  90 %% %.3g  99 %% %.3g  max %.3g\n", r->rows[i].name, q[0], q[1],
               q[2], q[3]);
    }
}

static void print_table(const kd_eval_report *r, const options *o)
{
    char tokens[CELL], documents[CELL];
    int widest = 7;
    for (int i = 0; i < r->count; i++) {
        const int length = (int)strlen(r->rows[i].name);
        widest = length > widest ? length : widest;
    }
    if (r->samples)
        printf("%s: %s samples, +/- = standard error over samples\n", file_name(o->data),
               kd_format_count(tokens, CELL, r->tokens));
    else
        printf("%s: %s tokens, %s documents, +/- = standard error over documents\n",
               file_name(o->data), kd_format_count(tokens, CELL, r->tokens),
               kd_format_count(documents, CELL, r->documents));
    printf("%-*s  %10s  %8s  %5s  %8s  %-20s  %-20s  %-18s  %8s%s\n", widest, "", "parameters",
           "MB", "x", r->samples ? "ms/row" : "ms/token", "ppl", "KL to teacher", "same top",
           "retained", r->samples ? "  accuracy" : "");
    for (int i = 0; i < r->count; i++)
        print_row(&r->rows[i], r->has_teacher ? &r->rows[0] : NULL, widest, r->samples);
    if (!isnan(r->unigram_ppl))
        printf("%-*s  %10s  %8s  %5s  %8s  %.4g (a model above it has learnt nothing)\n", widest,
               r->samples ? "classes" : "unigram", "-", "-", "-", "-", r->unigram_ppl);
    print_pair(r);
    print_quantiles(r);
}

/* ---- the verb --------------------------------------------------------------------------------- */

/* Cuts `text` at its commas, in place. */
static kd_status split(const char **items, int *count, char *text, const char *option)
{
    for (char *at = text; at;) {
        if (*count == KD_MAX_EVAL_ROWS)
            return kd_fail(KD_EINVAL, "--%s: more than %d", option, KD_MAX_EVAL_ROWS);
        char *comma = strchr(at, ',');
        if (comma) *comma = '\0';
        if (!*at) return kd_fail(KD_EINVAL, "--%s: an empty name between commas", option);
        items[(*count)++] = at;
        at = comma ? comma + 1 : NULL;
    }
    return KD_OK;
}

static kd_status evaluate(const options *o, char *models, char *names)
{
    kd_eval_options e = { .teacher = cmd_given(o->teacher),
                          .data = o->data,
                          .train = cmd_given(o->train),
                          .device = o->device,
                          .dtype = o->dtype,
                          .teacher_dtype = cmd_given(o->teacher_dtype),
                          .sequence = o->sequence,
                          .micro = o->micro,
                          .tokens = o->tokens,
                          .profile = o->json || o->out[0] };
    static kd_eval_report report;
    int named = 0;
    KD_TRY(split(e.models, &e.model_count, models, "models"));
    if (*names) KD_TRY(split(e.names, &named, names, "names"));
    if (named && named != e.model_count)
        return kd_fail(KD_EINVAL, "--names: %d for %d models", named, e.model_count);
    KD_TRY(kd_evaluate(&report, &e));
    if (o->out[0]) KD_TRY(kd_evaluate_write(NULL, o->out, &report, &e));
    if (o->json) return kd_evaluate_write(stdout, NULL, &report, &e);
    print_table(&report, o);
    return KD_OK;
}

static kd_status eval(const kd_args *args, const void *given)
{
    const options *o = given;
    (void)args;
    kd_status status = KD_ENOMEM;
    char *models = strdup(o->models), *names = strdup(o->names);
    if (models && names)
        status = evaluate(o, models, names);
    else
        status = kd_fail(KD_ENOMEM, "eval: no memory");
    free(models);
    free(names);
    return status;
}

kd_status cmd_eval(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 0, 0, "", false, NULL };
    options o;
    return cmd_run(&spec, &o, eval, argc, argv);
}
