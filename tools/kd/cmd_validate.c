#include "cmd.h"

static const kd_option rows[] = { { 0 } };

static kd_status validate(const kd_args *args, const void *given)
{
    kd_run *run;
    (void)given;
    KD_TRY(cmd_open_run(&run, args));
    const kd_status status = kd_run_validate(run);
    kd_run_destroy(run);
    if (status == KD_OK) printf("%s: valid\n", args->operands[0]);
    return status;
}

kd_status cmd_validate(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 1, 64, "a run file", true, kd_run_help };
    return cmd_run(&spec, NULL, validate, argc, argv);
}
