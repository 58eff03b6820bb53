/*
 * report.h - the page that `kd report` writes; private to verb.
 *
 * report_read.c (what lies in a run's folder) report_chart.c (text and drawings) report_curves.c
 * (sections from metrics.jsonl) report_eval.c (sections from evaluations) report.c (the page)
 */
#ifndef KD_REPORT_H
#define KD_REPORT_H

#include "train/train.h"

/* ---- what a run left -------------------------------------------------------------------------- */

enum { KD_REPORT_SERIES = 48, KD_REPORT_EVALS = 8, KD_REPORT_BINS = 32 };

typedef struct kd_series {
    const char *key;
    double *x, *y; /* [count]; y finite and below 1e30 */
    int64_t count, room;
} kd_series;

typedef struct kd_split {
    kd_series series[KD_REPORT_SERIES];
    int count;
} kd_split;

typedef struct kd_curves {
    const char *label; /* "student", "students[1]" */
    kd_split train, valid;
} kd_curves;

typedef struct kd_left {
    kd_arena *arena;
    const char *dir;
    kd_curves models[KD_MAX_MODELS];
    int model_count;
    int64_t records, dropped; /* lines of metrics.jsonl that are one, that are not */
    json_t *config;           /* effective configuration; NULL: no checkpoint has one */
    const char *config_path;
    json_t *evals[KD_REPORT_EVALS];
    const char *eval_names[KD_REPORT_EVALS];
    int eval_count, more_evals; /* files beyond those */
    bool finished;              /* the folder is the trained model */
} kd_left;

/* Reads metrics.jsonl, eval*.json and the newest checkpoint's configuration; writes nothing.
 * KD_EFORMAT for a folder that has neither of the first two.  kd_left_close also after a failure. */
KD_MUST_CHECK kd_status kd_left_open(kd_left *left, kd_arena *arena, const char *dir);
void kd_left_close(kd_left *left);

const kd_series *kd_split_find(const kd_split *split, const char *key); /* NULL: none */
double kd_series_last(const kd_series *series);                         /* NaN of none */

/* object[key] or object[key][part], NaN where that is no number below 1e30; "" where no text. */
double kd_json_number(const json_t *object, const char *key, const char *part);
const char *kd_json_text(const json_t *object, const char *key);

/* ---- text ------------------------------------------------------------------------------------- */

/* Escaped for elements and attributes; what is no UTF-8 or no character becomes U+FFFD. */
void kd_html_text(FILE *out, const char *text);

/* "0.25", "12k", "3e-4": few digits for an axis.  And with so many digits, "-" for NaN. */
const char *kd_html_tick(char *buffer, size_t size, double value);
const char *kd_html_number(char *buffer, size_t size, double value, int digits);

/* ---- drawings --------------------------------------------------------------------------------- */

enum { KD_CHART_LINES = 16, KD_COLOURS = 6, KD_NEUTRAL = KD_COLOURS };

typedef struct kd_line {
    const char *name;
    const double *x, *y, *error; /* [count]; y NaN: a gap; error NULL: none */
    int64_t count;
    int colour;  /* 0 to KD_COLOURS - 1, or KD_NEUTRAL */
    bool points; /* each is marked */
} kd_line;

typedef struct kd_chart {
    const char *title, *unit; /* of y */
    const char *x_name;
    kd_line lines[KD_CHART_LINES];
    int count;
    bool from_zero;           /* y begins at 0; else it is logarithmic where that shows more */
    double scale;             /* y is multiplied with it: 100 for per cent; 0: 1 */
    const double *share;      /* [bars]: bars behind the lines, of what part of all lies there */
    const char *const *ticks; /* [bars]: names of x = 0, 1, ...; NULL: a numeric axis */
    int bars;
} kd_chart;

/* A figure: title, legend where there are several lines, drawing. */
void kd_chart_draw(FILE *out, const kd_chart *chart);

/* Reliability of one model: `trust` bins of equal width over [0, 1]. */
void kd_chart_trust(FILE *out, const char *name, const kd_eval_profile *profile, int colour);

/* ---- sections --------------------------------------------------------------------------------- */

/* <section id=...><h2>...</h2>; the caller writes </section>. */
void kd_html_section(FILE *out, const char *id, const char *title);

void kd_report_curves(FILE *out, const kd_left *left); /* loss, optimisation */
void kd_report_agreement(FILE *out, const kd_left *left);
void kd_report_evals(FILE *out, const kd_left *left); /* KL by ..., calibration, compression */

/* The command that makes what an evaluation's section lacks. */
void kd_report_command(FILE *out, const kd_left *left);

#endif
