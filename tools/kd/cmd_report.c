#include "cmd.h"

typedef struct options {
    const char *out;
} options;

static const kd_option rows[] = {
    { "out", KD_STRING, offsetof(options, out), "", 0, 0, "",
      "file that gets the page; unless said, DIR/report.html" },
    { 0 },
};

static kd_status report(const kd_args *args, const void *given)
{
    const options *o = given;
    const char *dir = args->operands[0];
    char path[4096];
    if (snprintf(path, sizeof path, "%s/report.html", dir) >= (int)sizeof path)
        return kd_fail(KD_EINVAL, "report: the name of the folder is too long");
    const char *file = o->out[0] ? o->out : path;
    KD_TRY(kd_report_write(file, dir));
    printf("%s\n", file);
    return KD_OK;
}

static void more(FILE *out)
{
    fprintf(
        out,
        "Curves come from DIR/metrics.jsonl.  All that compares models comes from DIR/eval*.json,\n"
        "which kd eval --out DIR/eval.json writes.\n");
}

kd_status cmd_report(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 1, 1, "the folder of a run", false, more };
    options o;
    return cmd_run(&spec, &o, report, argc, argv);
}
