/* kd - the command. */
#include "cmd.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct verb {
    const char *name, *arguments, *help;
    kd_status (*run)(int argc, char **argv);
} verb;

static const verb verbs[] = {
#define X(name, arguments, help) { #name, arguments, help, cmd_##name },
    CMD_LIST(X)
#undef X
};

enum { VERBS = (int)(sizeof verbs / sizeof verbs[0]) };

static const verb *find_verb(const char *name)
{
    for (int i = 0; i < VERBS; i++)
        if (strcmp(name, verbs[i].name) == 0) return &verbs[i];
    return NULL;
}

/* ---- one verb's command line ------------------------------------------------------------------ */

static void print_help(const char *name, const cmd_spec *spec)
{
    const verb *v = find_verb(name);
    printf("usage: kd %s %s\n\n%s\n", v->name, v->arguments, v->help);
    if (spec->rows[0].name) {
        printf("\n");
        kd_options_help(stdout, "", spec->rows);
    }
    if (!spec->more) return;
    printf("\n");
    spec->more(stdout);
}

kd_status cmd_run(const cmd_spec *spec, void *options, cmd_action action, int argc, char **argv)
{
    kd_args args;
    kd_status status = KD_OK;
    KD_TRY(kd_args_parse(&args, options, spec->rows, argc, argv, spec->settings));
    if (args.help) {
        print_help(argv[0], spec);
    } else if (args.operand_count < spec->least) {
        status = kd_fail(KD_EINVAL, "%s: expected %s; see kd %s --help", argv[0], spec->operands,
                         argv[0]);
    } else if (args.operand_count > spec->most) {
        status = kd_fail(KD_EINVAL, "%s: \"%s\" is one too many; see kd %s --help", argv[0],
                         args.operands[spec->most], argv[0]);
    } else {
        status = action(&args, options);
    }
    kd_args_close(&args);
    return status;
}

kd_status cmd_open_run(kd_run **out, const kd_args *args)
{
    kd_run *run;
    kd_status status;
    KD_TRY(kd_run_create(&run));
    for (int i = 0; i < args->operand_count; i++)
        KD_TRY_GOTO(kd_run_file(run, args->operands[i]), status, failed);
    for (int i = 0; i < args->setting_count; i++)
        KD_TRY_GOTO(kd_run_set(run, args->settings[2 * i], args->settings[2 * i + 1]), status,
                    failed);
    *out = run;
    return KD_OK;
failed:
    kd_run_destroy(run);
    return status;
}

/* ---- the command ------------------------------------------------------------------------------ */

static void print_usage(FILE *out)
{
    fprintf(out, "usage: kd VERB [options]\n\n");
    for (int i = 0; i < VERBS; i++) fprintf(out, "  %-9s %s\n", verbs[i].name, verbs[i].help);
    fprintf(out,
            "\nkd VERB --help prints every option with its default; kd --version the version.\n"
            "The answer goes to stdout, progress to stderr (KD_LOG=error|warn|info|debug).\n"
            "Exit codes: 0 done, 1 internal error, 2 usage or configuration, 3 input refused,\n"
            "4 memory, disk or device, 5 not finite, 6 another rank failed, 75 stopped by a\n"
            "signal, and what was done is saved.\n");
}

static kd_status run_verb(int argc, char **argv)
{
    const char *names[VERBS + 1] = { NULL };
    const verb *v = find_verb(argv[0]);
    if (v) return v->run(argc, argv);
    for (int i = 0; i < VERBS; i++) names[i] = verbs[i].name;
    const char *near = kd_nearest(argv[0], names);
    return kd_fail(KD_EINVAL, "unknown verb \"%s\"%s%s; see kd --help", argv[0],
                   near ? "; nearest: " : "", near ? near : "");
}

static kd_status run_command(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return kd_fail(KD_EINVAL, "no verb");
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return KD_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("kd %s\n", kd_version());
        return KD_OK;
    }
    return run_verb(argc - 1, argv + 1);
}

/* OpenMP threads that wait by spinning are worth microseconds on an idle machine and cost a factor of
 * ten and more on a busy one.  The runtime reads its policy before main, hence the second start. */
static void wait_without_spinning(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    char path[4096]; /* the resolved name, so that ps and pkill know the process */
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0 || setenv("OMP_WAIT_POLICY", "passive", 1) != 0) return;
    path[n] = '\0';
    execv(path, argv);
}

/* What is opened next must not become a stream that the caller has closed: the log would go there.
 * Writing to one of these fails, as it should. */
static void open_streams(void)
{
    int fd;
    do fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv)
{
    open_streams();
    wait_without_spinning(argv); /* returns where it cannot start again: slower, not wrong */
    kd_status status = run_command(argc, argv);
    /* An answer that was not written is not an answer: a full disk behind stdout. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == KD_OK)
        status = kd_fail(KD_EIO, "standard output cannot be written");
    if (status != KD_OK) fprintf(stderr, "kd: %s\n", kd_last_error());
    return kd_status_exit_code(status);
}
