/*
 * cmd.h - the verbs of the command and what they share.  A verb is a row here and a file cmd_<verb>.c
 * that parses its own options, prints its answer on stdout and includes nothing but <kd/...> and this.
 *
 * main.c print.c cmd_*.c
 */
#ifndef KD_CMD_H
#define KD_CMD_H

#include <kd/kd.h>
#include <stdio.h>

/* X(name, what follows it, what it does) */
#define CMD_LIST(X)                                                                                \
    X(train, "RUN.yaml [OVER.yaml ...] [--section.key=value ...]",                                 \
      "train a student, or go on with an interrupted run")                                         \
    X(eval, "--models DIR[,DIR ...] --data FILE [--teacher DIR]",                                  \
      "compare models on held-out tokens: perplexity, KL to the teacher, agreement")               \
    X(init, "--out DIR (--teacher DIR (--keep LIST | --layers N) | --config FILE)",                \
      "make a student from a teacher's layers, or with fresh weights")                             \
    X(generate, "--model DIR (--prompt TEXT | --ids LIST)", "continue a prompt")                   \
    X(logits, "--model DIR --tokens FILE --out FILE", "write a model's logits of one document")    \
    X(loss, "NAME --in FILE --out FILE", "apply one loss to tensors in a file")                    \
    X(inspect, "PATH", "show the architecture of a directory, or the tensors of a file")           \
    X(validate, "RUN.yaml [OVER.yaml ...] [--section.key=value ...]",                              \
      "check a run and open everything it names; train nothing")                                   \
    X(estimate, "RUN.yaml [OVER.yaml ...] [--section.key=value ...]",                              \
      "say what a run takes, from config.json alone; exit 4 when it does not fit")                 \
    X(bench, "[ROW ...] [--device D] [--peers COMMAND] [--json FILE] [--compare FILE]",            \
      "time every op and the head, against the machine's own rates and against peers")             \
    X(report, "DIR [--out FILE]",                                                                  \
      "write one HTML page about the run in a folder: curves, agreement, calibration, size")       \
    X(list, "[losses | ops | models | optimizers | devices]", "say what this build can do")        \
    X(env, "", "say what kd finds on this machine")

#define X(name, arguments, help) kd_status cmd_##name(int argc, char **argv);
CMD_LIST(X)
#undef X

/* ---- main.c: one way to read a verb's command line -------------------------------------------- */

typedef struct cmd_spec {
    const kd_option *rows;
    int least, most;      /* operands */
    const char *operands; /* what they are, for the message: "a run file" */
    bool settings;        /* --section.key=value is taken */
    void (*more)(FILE *); /* further lines of --help; may be NULL */
} cmd_spec;

typedef kd_status (*cmd_action)(const kd_args *args, const void *options);

/* Parses into `options` and acts, or prints the help. */
KD_MUST_CHECK kd_status cmd_run(const cmd_spec *spec, void *options, cmd_action action, int argc,
                                char **argv);

/* A run from the operands, left to right, and the settings over them.  kd_run_destroy afterwards. */
KD_MUST_CHECK kd_status cmd_open_run(kd_run **run, const kd_args *args);

/* NULL for the empty text of an option that was not given. */
static inline const char *cmd_given(const char *text) { return text[0] ? text : NULL; }

/* ---- print.c: JSON and tables ----------------------------------------------------------------- */

/* Writes one JSON value with an indent of two; keys are NULL inside lists. */
typedef struct cmd_json {
    FILE *out;
    int depth;
    bool started; /* something stands before, at this depth */
    char closers[16];
} cmd_json;

void cmd_json_open(cmd_json *json, const char *key, char bracket); /* '{' or '[' */
void cmd_json_close(cmd_json *json);                               /* the last line ends with \n */
void cmd_json_text(cmd_json *json, const char *key, const char *text); /* NULL: null */
void cmd_json_integer(cmd_json *json, const char *key, int64_t value);
void cmd_json_number(cmd_json *json, const char *key, double value); /* not finite: null */
void cmd_json_bool(cmd_json *json, const char *key, bool value);

/* "18.31 +/- 0.21": the error with two digits, the mean as far as that; "-" for a mean that is NaN. */
const char *cmd_measure(char *buffer, size_t size, kd_measure measure, const char *unit);

/* "494.0 M"; "58,176" below a million. */
const char *cmd_parameters(char *buffer, size_t size, int64_t count);

#endif
