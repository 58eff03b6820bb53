#include "cmd.h"

typedef struct options {
    bool json;
} options;

static const kd_option rows[] = {
    { "json", KD_BOOL, offsetof(options, json), "false", 0, 0, "", "as one JSON object" },
    { 0 },
};

static kd_status inspect(const kd_args *args, const void *given)
{
    const options *o = given;
    return kd_inspect(stdout, args->operands[0], o->json);
}

kd_status cmd_inspect(int argc, char **argv)
{
    static const cmd_spec spec = { rows,  1,   1, "a model directory or a safetensors file",
                                   false, NULL };
    options o;
    return cmd_run(&spec, &o, inspect, argc, argv);
}
