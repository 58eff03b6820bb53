#include "cmd.h"

typedef struct options {
    const char *device, *peers, *json, *compare, *teacher, *student, *data;
    double seconds, limit;
    bool quick;
} options;

static const kd_option rows[] = {
    { "device", KD_STRING, offsetof(options, device), "auto", 0, 0, "",
      "auto, cpu, cuda:N; h100-80g or h200-141g: the model's figures, predicted" },
    { "seconds", KD_FLOAT, offsetof(options, seconds), "1", 0, 600, "s", "for a cell" },
    { "limit", KD_FLOAT, offsetof(options, limit), "0", 0, 1e6, "s",
      "no cell is begun after so long; 0: none is left out" },
    { "quick", KD_BOOL, offsetof(options, quick), "false", 0, 0, "",
      "one small shape of each row: that it runs, not how fast" },
    { "peers", KD_STRING, offsetof(options, peers), "", 0, 0, "",
      "command that answers for peers: \"python3 tools/bench/peers.py\"" },
    { "teacher", KD_STRING, offsetof(options, teacher), "", 0, 0, "",
      "folder: with a student and data the rows step, prefill and decode are run, too" },
    { "student", KD_STRING, offsetof(options, student), "", 0, 0, "", "folder" },
    { "data", KD_STRING, offsetof(options, data), "", 0, 0, "", "as data.train of a run" },
    { "json", KD_STRING, offsetof(options, json), "", 0, 0, "", "file that is written" },
    { "compare", KD_STRING, offsetof(options, compare), "", 0, 0, "",
      "an earlier --json; exit 1 when a cell became slower beyond its spread" },
    { 0 },
};

static kd_status bench(const kd_args *args, const void *given)
{
    const options *o = given;
    return kd_bench(stdout, &(const kd_bench_options){ .device = o->device,
                                                       .rows = args->operands,
                                                       .row_count = args->operand_count,
                                                       .quick = o->quick,
                                                       .seconds = o->seconds,
                                                       .limit = o->limit,
                                                       .peers = cmd_given(o->peers),
                                                       .teacher = cmd_given(o->teacher),
                                                       .student = cmd_given(o->student),
                                                       .data = cmd_given(o->data),
                                                       .json = cmd_given(o->json),
                                                       .compare = cmd_given(o->compare) });
}

kd_status cmd_bench(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 0, 64, "rows", false, NULL };
    options o;
    return cmd_run(&spec, &o, bench, argc, argv);
}
