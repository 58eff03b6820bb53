/*
 * kd/options.h - options as rows.  One table parses flags and files, prints the help and is saved.
 *
 *     static const kd_option rows[] = {
 *         { "out", KD_STRING, offsetof(options, out), NULL, 0, 0, "", "file that is written" },
 *         { "chunk", KD_INT, offsetof(options, chunk), "64", 1, 4096, "rows", "at a time" },
 *         { 0 },
 *     };
 */
#ifndef KD_OPTIONS_H
#define KD_OPTIONS_H

#include <kd/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kd_option_kind {
    KD_BOOL,   /* bool */
    KD_INT,    /* int64_t; accepts 1K 1M 1B (10^3, 10^6, 10^9) */
    KD_FLOAT,  /* double; accepts "5 %" as 0.05 where the row's unit is "share" */
    KD_STRING, /* const char *, owned by what parsed it */
    KD_CHOICE, /* int: index into `choices` ("a|b|c") */
} kd_option_kind;

typedef struct kd_option {
    const char *name; /* "temperature" */
    kd_option_kind kind;
    size_t offset;
    const char *fallback; /* the default as text; NULL: required */
    double min, max;      /* of KD_INT and KD_FLOAT; both 0: unbounded */
    const char *unit;     /* "tokens", "share", or the choices "constant|linear|cosine" */
    const char *help;
} kd_option;

/* Rows end with { 0 }. */

/* One line per row: "--loss.temperature FLOAT   0.05 to 100, default 1   help" on `file`, a FILE *. */
void kd_options_help(void *file, const char *path, const kd_option *rows);

/* Of `names` (NULL-terminated) the nearest to `word` by edit distance; NULL when none is near. */
const char *kd_nearest(const char *word, const char *const *names);

/* ---- command lines ---------------------------------------------------------------------------- */

typedef struct kd_args {
    const char *const *operands; /* what stands without dashes, in order */
    int operand_count;
    const char *const *settings; /* of "--section.key=value": name, value, name, value ... */
    int setting_count;           /* pairs */
    bool help;                   /* --help or -h was there: `target` was not filled */
    void *memory;                /* owns every string here and in the target */
} kd_args;

/*
 * Fills `target` by `rows` from argv[1..argc-1]; argv[0] names the command in messages.
 *
 *   --x=value  --x value     the last one counts; - and _ in a name are the same
 *   --x  --no-x  --x=false   of KD_BOOL, which never takes the next word
 *   --a.b=value  --a.b value --no-a.b   with `settings`: kept as a pair for kd_run_set.  Without a
 *                            value (the end, another option or a .yaml, .yml or .json file
 *                            follows) it is "true"
 *   --                       what follows are operands
 *
 * KD_EINVAL names the option, and for an unknown one the nearest row.  kd_args_close afterwards, not
 * after a failure.
 */
KD_MUST_CHECK kd_status kd_args_parse(kd_args *args, void *target, const kd_option *rows, int argc,
                                      char *const *argv, bool settings);
void kd_args_close(kd_args *args);

#ifdef __cplusplus
}
#endif
#endif
