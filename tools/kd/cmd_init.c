#include "cmd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct options {
    const char *out, *teacher, *keep, *config, *tokenizer, *dtype;
    int64_t layers, seed;
} options;

static const kd_option rows[] = {
    { "out", KD_STRING, offsetof(options, out), NULL, 0, 0, "", "directory of the student" },
    { "teacher", KD_STRING, offsetof(options, teacher), "", 0, 0, "",
      "take embeddings, head, final norm and layers of this directory, byte for byte" },
    { "keep", KD_STRING, offsetof(options, keep), "", 0, 0, "",
      "layers of the teacher, ascending from 0: 0,2,4-9" },
    { "layers", KD_INT, offsetof(options, layers), "0", 0, 1e6, "layers",
      "instead of keep: so many; every second layer about the middle goes" },
    { "config", KD_STRING, offsetof(options, config), "", 0, 0, "",
      "instead of a teacher: a config.json, for fresh weights" },
    { "tokenizer", KD_STRING, offsetof(options, tokenizer), "", 0, 0, "",
      "with config: directory whose tokenizer files are copied" },
    { "dtype", KD_STRING, offsetof(options, dtype), "", 0, 0, "",
      "with config: f32 (unless said) or bf16, of the weights that are written" },
    { "seed", KD_INT, offsetof(options, seed), "1", 0, 1e15, "", "with config: of the weights" },
    { 0 },
};

enum { MAX_LAYERS = 4096 };

typedef struct layer_list {
    int64_t count, items[MAX_LAYERS];
} layer_list;

/* ---- which layers ----------------------------------------------------------------------------- */

/* Digits at `*at`, which moves past them; -1: there are none, or too many. */
static int64_t read_layer(const char **at)
{
    char *end;
    if (**at < '0' || **at > '9') return -1;
    errno = 0;
    const long value = strtol(*at, &end, 10);
    *at = end;
    return errno || value >= MAX_LAYERS ? -1 : value;
}

static bool add_range(layer_list *list, int64_t first, int64_t last)
{
    if (first < 0 || last < first) return false;
    if (list->count && first <= list->items[list->count - 1]) return false;
    for (int64_t l = first; l <= last; l++) list->items[list->count++] = l;
    return true; /* ascending and below MAX_LAYERS, so they fit */
}

static kd_status parse_keep(layer_list *list, const char *text)
{
    for (const char *at = text;; at++) {
        const int64_t first = read_layer(&at);
        int64_t last = first;
        if (*at == '-') {
            at++;
            last = read_layer(&at);
        }
        if (!add_range(list, first, last) || (*at && *at != ','))
            return kd_fail(KD_EINVAL, "--keep: \"%s\"; expected ascending layers such as 0,2,4-9",
                           text);
        if (!*at) return KD_OK;
    }
}

/* Which of `all` layers a student of `count` keeps.  Every second layer about the middle goes: early
 * and late layers do what no neighbour can stand in for, and no two neighbours go together.  Where more
 * than half go, layer i of n is layer i (L - 1) / (n - 1), rounded.  Measured in src/DECISIONS.md. */
static kd_status choose(layer_list *list, int64_t count, int64_t all)
{
    const int64_t gone = all - count, first = (all - 2 * gone + 2) / 2;
    if (count > all || count > MAX_LAYERS)
        return kd_fail(KD_EINVAL, "--layers: %lld; the teacher has %lld", (long long)count,
                       (long long)all);
    list->count = 0;
    for (int64_t i = 0; i < count && 2 * gone >= all; i++)
        list->items[list->count++] =
            count > 1 ? (2 * i * (all - 1) + count - 1) / (2 * (count - 1)) : 0;
    for (int64_t i = 0; i < all && 2 * gone < all; i++) {
        const bool goes = i >= first && i < first + 2 * gone && (i - first) % 2 == 0;
        if (!goes) list->items[list->count++] = i;
    }
    return KD_OK;
}

/* ---- the student ------------------------------------------------------------------------------ */

static kd_status report(const options *o, const layer_list *kept, int64_t teacher_layers)
{
    kd_model_info info;
    char count[32];
    KD_TRY(kd_model_describe(&info, o->out));
    printf("%s: %s, %s parameters", o->out, info.architecture,
           kd_format_count(count, sizeof count, info.parameters));
    for (int64_t i = 0; kept && i < kept->count; i++)
        printf("%s%lld", i ? "," : "; layers ", (long long)kept->items[i]);
    if (kept) printf(" of %lld", (long long)teacher_layers);
    printf("\n");
    return KD_OK;
}

static kd_status init_from_teacher(const options *o)
{
    static layer_list list; /* too large for a stack frame; a process makes one student */
    kd_model_info teacher;
    if (!o->keep[0] == !o->layers)
        return kd_fail(KD_EINVAL, "init: give one of --keep and --layers with --teacher");
    if (o->tokenizer[0] || o->dtype[0])
        return kd_fail(KD_EINVAL, "init: --%s goes with --config; a teacher's files are copied",
                       o->tokenizer[0] ? "tokenizer" : "dtype");
    KD_TRY(kd_model_describe(&teacher, o->teacher));
    if (o->keep[0])
        KD_TRY(parse_keep(&list, o->keep));
    else
        KD_TRY(choose(&list, o->layers, teacher.layers));
    KD_TRY(kd_student_from_layers(o->out, o->teacher, list.items, list.count));
    return report(o, &list, teacher.layers);
}

static kd_status init_fresh(const options *o)
{
    kd_dtype dtype = KD_F32;
    if (o->keep[0] || o->layers)
        return kd_fail(KD_EINVAL, "init: --%s goes with --teacher", o->keep[0] ? "keep" : "layers");
    if (o->dtype[0]) KD_TRY(kd_dtype_parse(&dtype, o->dtype));
    if (dtype != KD_F32 && dtype != KD_BF16)
        return kd_fail(KD_EINVAL, "--dtype: \"%s\"; expected f32 or bf16", o->dtype);
    KD_TRY(kd_student_fresh(o->out, o->config, cmd_given(o->tokenizer), dtype, (uint64_t)o->seed));
    return report(o, NULL, 0);
}

static kd_status init(const kd_args *args, const void *given)
{
    const options *o = given;
    (void)args;
    if (!o->teacher[0] == !o->config[0])
        return kd_fail(KD_EINVAL, "init: give one of --teacher and --config");
    return o->teacher[0] ? init_from_teacher(o) : init_fresh(o);
}

kd_status cmd_init(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 0, 0, "", false, NULL };
    options o;
    return cmd_run(&spec, &o, init, argc, argv);
}
