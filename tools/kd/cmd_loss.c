#include "cmd.h"

#include <stdalign.h>
#include <string.h>

typedef struct options {
    const char *in, *out;
    kd_loss_options loss;
    int number; /* of the loss */
} options;

enum { OPTION = 9 }; /* the place of the loss's own options */

static const kd_option common[] = {
    { "in", KD_STRING, offsetof(options, in), NULL, 0, 0, "",
      "safetensors file: `student` [n, V], and `teacher` (or `teacher_ids` and `teacher_logprobs` "
      "[n, K]), `labels`, `weight` as wanted" },
    { "out", KD_STRING, offsetof(options, out), NULL, 0, 0, "",
      "safetensors file that is written: f32 `loss` [n] and `d_student` [n, V]" },
    { "temperature", KD_FLOAT, offsetof(options, loss.temperature), "1", 0.05, 100, "",
      "both softmaxes are of logits / temperature" },
    { "t_squared", KD_BOOL, offsetof(options, loss.t_squared), "true", 0, 0, "",
      "multiply the loss with temperature^2 (Hinton)" },
    { "classes", KD_INT, offsetof(options, loss.classes), "0", 0, 1e9, "columns",
      "of both softmaxes; 0: all that student and teacher have" },
    { "standardise", KD_BOOL, offsetof(options, loss.standardise), "false", 0, 0, "",
      "both sides' logits are z-scores of their row first" },
    { "topk", KD_CHOICE, offsetof(options, loss.topk), "tail", 0, 0, "tail|renormalised|sampled",
      "what a teacher of K classes is; sampled reads `teacher_sampling` [n, K]" },
    { "teacher_temperature", KD_FLOAT, offsetof(options, loss.teacher_temperature), "1", 0.05, 100,
      "", "at which `teacher_logprobs` were taken" },
    { "device", KD_STRING, offsetof(options, loss.device), "auto", 0, 0, "",
      "auto, cpu, cuda, cuda:1" },
    { 0 }, /* OPTION */
    { 0 },
    { 0 },
};

/* The loss's own options, up to two, into `rows`; `fallback` is their defaults' memory. */
static void option_rows(kd_option *rows, char fallback[2][32], const kd_loss_info *info)
{
    snprintf(fallback[0], sizeof fallback[0], "%g", info->option_default);
    snprintf(fallback[1], sizeof fallback[1], "%g", info->option2_default);
    if (info->option)
        rows[0] = (kd_option){ info->option, KD_FLOAT,         offsetof(options, loss.option),
                               fallback[0],  info->option_min, info->option_max,
                               "",           "of this loss" };
    if (info->option2)
        rows[1] = (kd_option){ info->option2,
                               KD_FLOAT,
                               offsetof(options, loss.option2),
                               fallback[1],
                               info->option2_min,
                               info->option2_max,
                               "",
                               "of this loss" };
}

static void print_losses(FILE *out)
{
    fprintf(out, "NAME is one of these, over rows of logits,\n\n");
    for (int i = 0; i < kd_loss_count(); i++) {
        kd_loss_info info;
        char fallback[2][32];
        kd_option rows[3] = { { 0 } };
        if (kd_loss_describe(&info, i) != KD_OK) continue;
        fprintf(out, "  %-18s %s\n", info.name, info.help);
        if (!info.option) continue;
        option_rows(rows, fallback, &info);
        for (int k = 0; rows[k].name; k++) {
            const kd_option one[] = { rows[k], { 0 } };
            fprintf(out, "%17s", "");
            kd_options_help(out, "", one);
        }
    }
    fprintf(out, "\nor of these, over features and relations (kd list losses --long says which "
                 "tensors each reads; rows or maps `student` may stand behind a projector, see "
                 "kd loss hint --help):\n\n");
    for (int i = 0; i < kd_feature_count(); i++) {
        kd_feature_info info;
        if (kd_feature_describe(&info, i) == KD_OK)
            fprintf(out, "  %-18s %s\n", info.name, info.help);
    }
}

static kd_status apply(const kd_args *args, const void *given)
{
    const options *o = given;
    (void)args;
    return kd_loss_file(o->number, o->in, o->out, &o->loss);
}

/* ---- features and relations ------------------------------------------------------------------- */

enum { MOST_OPTIONS = 32 };

typedef struct feature_options {
    const char *in, *out, *device;
    int number;
    kd_projector_options projector;
    alignas(16) unsigned char own[KD_FEATURE_OPTION_BYTES]; /* by the loss's rows */
} feature_options;

static const kd_option feature_rows[] = {
    { "in", KD_STRING, offsetof(feature_options, in), NULL, 0, 0, "",
      "safetensors file with what the loss reads and, as wanted, `weight` [units] and a "
      "projector's "
      "`projector.0.weight`, `projector.0.bias`, `projector.1.weight`, ..." },
    { "out", KD_STRING, offsetof(feature_options, out), NULL, 0, 0, "",
      "safetensors file that is written: f32 `loss` [units] and gradients, `d_student`" },
    { "device", KD_STRING, offsetof(feature_options, device), "auto", 0, 0, "",
      "auto, cpu, cuda, cuda:1" },
    { 0 },
};

static kd_status apply_feature(const kd_args *args, const void *given)
{
    const feature_options *o = given;
    (void)args;
    return kd_feature_file(o->number, o->in, o->out, o->own, &o->projector, o->device);
}

/* `from` behind what is in `rows`, into the memory at `offset` of feature_options. */
static kd_status add_rows(kd_option *rows, int *count, const kd_option *from, size_t offset)
{
    for (const kd_option *row = from; row && row->name; row++) {
        if (*count == MOST_OPTIONS)
            return kd_fail(KD_EINTERNAL, "a loss with more than %d options", MOST_OPTIONS);
        rows[*count] = *row;
        rows[(*count)++].offset += offset;
    }
    return KD_OK;
}

/* The projector's, which are called by what they are of. */
static kd_status add_projector_rows(kd_option *rows, int *count, char names[MOST_OPTIONS][48])
{
    const int first = *count;
    KD_TRY(add_rows(rows, count, kd_projector_rows, offsetof(feature_options, projector)));
    for (int i = first; i < *count; i++) {
        snprintf(names[i], sizeof names[i], "projector.%s", rows[i].name);
        rows[i].name = names[i];
    }
    return KD_OK;
}

static kd_status feature_loss(int number, int argc, char **argv)
{
    kd_option rows[MOST_OPTIONS + 1] = { { 0 } };
    char names[MOST_OPTIONS][48];
    const cmd_spec spec = { rows, 1, 1, "the name of a loss", false, NULL };
    feature_options o = { .number = number };
    kd_feature_info info;
    int count = 0;
    KD_TRY(kd_feature_describe(&info, number));
    KD_TRY(add_rows(rows, &count, feature_rows, 0));
    KD_TRY(add_rows(rows, &count, info.options, offsetof(feature_options, own)));
    KD_TRY(add_projector_rows(rows, &count, names));
    return cmd_run(&spec, &o, apply_feature, argc, argv);
}

/* ---- the verb --------------------------------------------------------------------------------- */

/* The name comes first, because it says which options there are. */
kd_status cmd_loss(int argc, char **argv)
{
    kd_option rows[sizeof common / sizeof common[0]];
    const cmd_spec spec = { rows, 1, 1, "the name of a loss", false, print_losses };
    kd_loss_info info;
    char fallback[2][32];
    options o = { .number = -1 };
    memcpy(rows, common, sizeof common);
    const bool named = argc > 1 && argv[1][0] != '-';
    if (!named && (argc < 2 || (strcmp(argv[1], "--help") != 0 && strcmp(argv[1], "-h") != 0)))
        return kd_fail(KD_EINVAL, "loss: expected the name of a loss first; see kd loss --help");
    if (named) {
        const int feature = kd_feature_find(argv[1]);
        if (feature >= 0) return feature_loss(feature, argc, argv);
        KD_TRY(kd_loss_find(&o.number, argv[1]));
        KD_TRY(kd_loss_describe(&info, o.number));
        option_rows(rows + OPTION, fallback, &info);
    }
    return cmd_run(&spec, &o, apply, argc, argv);
}
