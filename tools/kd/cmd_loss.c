#include "cmd.h"

#include <string.h>

typedef struct options {
    const char *in, *out;
    kd_loss_options loss;
    int number; /* of the loss */
} options;

enum { OPTION = 6 }; /* the place of the loss's own option */

static const kd_option common[] = {
    { "in", KD_STRING, offsetof(options, in), NULL, 0, 0, "",
      "safetensors file: `student` [n, V], and `teacher`, `labels`, `weight` as wanted" },
    { "out", KD_STRING, offsetof(options, out), NULL, 0, 0, "",
      "safetensors file that is written: f32 `loss` [n] and `d_student` [n, V]" },
    { "temperature", KD_FLOAT, offsetof(options, loss.temperature), "1", 0.05, 100, "",
      "both softmaxes are of logits / temperature" },
    { "t_squared", KD_BOOL, offsetof(options, loss.t_squared), "true", 0, 0, "",
      "multiply the loss with temperature^2 (Hinton)" },
    { "classes", KD_INT, offsetof(options, loss.classes), "0", 0, 1e9, "columns",
      "of both softmaxes; 0: all that student and teacher have" },
    { "device", KD_STRING, offsetof(options, loss.device), "auto", 0, 0, "",
      "auto, cpu, cuda, cuda:1" },
    { 0 }, /* OPTION */
    { 0 },
};

/* The loss's own option as a row; `fallback` is its memory. */
static kd_option option_row(const kd_loss_info *info, char *fallback, size_t size)
{
    snprintf(fallback, size, "%g", info->option_default);
    return (kd_option){ info->option, KD_FLOAT,         offsetof(options, loss.option),
                        fallback,     info->option_min, info->option_max,
                        "",           "of this loss" };
}

static void print_losses(FILE *out)
{
    fprintf(out, "NAME is one of\n\n");
    for (int i = 0; i < kd_loss_count(); i++) {
        kd_loss_info info;
        char fallback[32];
        if (kd_loss_describe(&info, i) != KD_OK) continue;
        fprintf(out, "  %-16s %s\n", info.name, info.help);
        if (!info.option) continue;
        const kd_option rows[] = { option_row(&info, fallback, sizeof fallback), { 0 } };
        fprintf(out, "%15s", "");
        kd_options_help(out, "", rows);
    }
}

static kd_status apply(const kd_args *args, const void *given)
{
    const options *o = given;
    (void)args;
    return kd_loss_file(o->number, o->in, o->out, &o->loss);
}

/* The name comes first, because it says which options there are. */
kd_status cmd_loss(int argc, char **argv)
{
    kd_option rows[sizeof common / sizeof common[0]];
    const cmd_spec spec = { rows, 1, 1, "the name of a loss", false, print_losses };
    kd_loss_info info;
    char fallback[32];
    options o = { .number = -1 };
    memcpy(rows, common, sizeof common);
    const bool named = argc > 1 && argv[1][0] != '-';
    if (!named && (argc < 2 || (strcmp(argv[1], "--help") != 0 && strcmp(argv[1], "-h") != 0)))
        return kd_fail(KD_EINVAL, "loss: expected the name of a loss first; see kd loss --help");
    if (named) {
        KD_TRY(kd_loss_find(&o.number, argv[1]));
        KD_TRY(kd_loss_describe(&info, o.number));
        if (info.option) rows[OPTION] = option_row(&info, fallback, sizeof fallback);
    }
    return cmd_run(&spec, &o, apply, argc, argv);
}
