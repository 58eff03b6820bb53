#include "cmd.h"

typedef struct options {
    bool print_config;
} options;

static const kd_option rows[] = {
    { "print-config", KD_BOOL, offsetof(options, print_config), "false", 0, 0, "",
      "print the effective configuration, defaults included, and stop" },
    { 0 },
};

static kd_status train(const kd_args *args, const void *given)
{
    const options *o = given;
    kd_run *run;
    KD_TRY(cmd_open_run(&run, args));
    const kd_status status = o->print_config ? kd_run_print(run, stdout) : kd_run_train(run);
    kd_run_destroy(run);
    return status;
}

kd_status cmd_train(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 1, 64, "a run file", true, kd_run_help };
    options o;
    return cmd_run(&spec, &o, train, argc, argv);
}
