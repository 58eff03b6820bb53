#include "cmd.h"

typedef struct options {
    bool json, whole;
} options;

static const kd_option rows[] = {
    { "long", KD_BOOL, offsetof(options, whole), "false", 0, 0, "",
      "with the formula, shapes, defaults and source of each loss" },
    { "json", KD_BOOL, offsetof(options, json), "false", 0, 0, "", "as one JSON object" },
    { 0 },
};

static kd_status list(const kd_args *args, const void *given)
{
    const options *o = given;
    return kd_list(stdout, args->operand_count ? args->operands[0] : NULL, o->whole, o->json);
}

kd_status cmd_list(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 0, 1, "at most one list", false, NULL };
    options o;
    return cmd_run(&spec, &o, list, argc, argv);
}
