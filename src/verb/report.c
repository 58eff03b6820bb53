/*
 * One self-contained page of what a run left: style inside, drawings inline, no script, nothing that
 * a browser would fetch (its own policy forbids it).  The same folder gives the same bytes.
 */
#include "verb/report.h"

#include <kd/checkpoint.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char style[] =
    ":root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1c2430;--soft:#5b6676;"
    "--line:#e3e7ec;--grid:#edf0f3;--share:#e6ebf1;"
    "--c0:#0b6fb8;--c1:#d1570b;--c2:#128a63;--c3:#9a4fb0;--c4:#a77d00;--c5:#c33b5e;--c6:#6c7787}"
    "@media(prefers-color-scheme:dark){:root{--page:#11151b;--card:#1a2029;--ink:#e7ebf0;"
    "--soft:#9aa6b5;--line:#2b3441;--grid:#262e39;--share:#29323e;"
    "--c0:#58b0f0;--c1:#f39149;--c2:#4cc79c;--c3:#cf93e0;--c4:#dcb641;--c5:#f2809d;--c6:#a3adba}}"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--page);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\",\"DejaVu "
    "Sans\",sans-serif}"
    "main{max-width:1200px;margin:0 auto;padding:28px 20px 48px}"
    "h1{font-size:26px;line-height:1.25;margin:0;overflow-wrap:anywhere}"
    "h2{font-size:18px;margin:36px 0 10px}h3{font-size:15px;margin:16px 0 8px}"
    ".lead,.note,.source{color:var(--soft);margin:4px 0 12px;overflow-wrap:anywhere}"
    ".note,.source{font-size:13.5px;max-width:92ch}"
    ".tiles{display:grid;gap:12px;margin:20px 0 0;"
    "grid-template-columns:repeat(auto-fill,minmax(min(100%,128px),1fr))}"
    ".tiles div,figure,.table,details,.missing{background:var(--card);border:1px solid var(--line);"
    "border-radius:8px}"
    ".tiles div{padding:10px 14px}"
    ".tiles span{display:block;color:var(--soft);font-size:12.5px}"
    ".tiles b{font-size:19px;font-weight:600;font-variant-numeric:tabular-nums}"
    ".charts{display:grid;gap:14px;align-items:stretch;margin:0 0 14px;"
    "grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr))}"
    "figure{margin:0;padding:12px 14px 8px;display:flex;flex-direction:column;min-width:0}"
    "figcaption{font-size:13px;line-height:1.4;overflow-wrap:anywhere}"
    "figcaption b{font-size:14px}figcaption span{color:var(--soft)}"
    ".legend{margin:2px 0 4px;font-size:12.5px;color:var(--soft)}"
    ".legend span{display:inline-block;margin-right:14px;overflow-wrap:anywhere}"
    "i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}"
    "figure svg{width:100%;height:auto;margin-top:auto;display:block}"
    "svg text{font-size:11.5px;fill:var(--soft);font-variant-numeric:tabular-nums}"
    "svg .x{text-anchor:middle}svg .y{text-anchor:end}"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--soft)}"
    ".ideal{stroke:var(--soft);stroke-dasharray:4 4}.mark{stroke:var(--ink);stroke-width:2}"
    "polyline{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}"
    ".band{fill-opacity:.16}.share{fill:var(--share)}.kshare{background:var(--share)}"
    ".table{overflow-x:auto;margin:0 0 8px}"
    "table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}"
    "th,td{padding:7px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}"
    "thead th{border-top:0;color:var(--soft);font-weight:500}"
    "tbody th,thead th:first-child{text-align:left;font-weight:600}"
    "tbody th{white-space:normal;overflow-wrap:anywhere;min-width:120px}"
    ".missing{padding:12px 14px;margin:0 0 12px;color:var(--soft);overflow-wrap:anywhere}"
    "code,pre{font:12.5px/1.5 ui-monospace,\"DejaVu Sans Mono\",Menlo,Consolas,monospace}"
    "code{overflow-wrap:anywhere}"
    "details{padding:10px 14px}summary{cursor:pointer;font-weight:600}"
    "pre{margin:10px 0 2px;overflow-x:auto}"
    "footer{color:var(--soft);font-size:12.5px;margin-top:36px}"
    "@media print{body{background:#fff}figure,.table{break-inside:avoid}}";

/* One rule for the stroke, the fill and the key of every colour. */
static void put_style(FILE *out)
{
    fprintf(out, "<style>%s", style);
    for (int i = 0; i <= KD_NEUTRAL; i++)
        fprintf(out, ".s%d{stroke:var(--c%d)}.f%d{fill:var(--c%d)}.k%d{background:var(--c%d)}", i,
                i, i, i, i, i);
    fputs("</style>\n", out);
}

void kd_html_section(FILE *out, const char *id, const char *title)
{
    fprintf(out, "<section id=\"%s\"><h2>%s</h2>\n", id, title);
}

/* ---- what is missing -------------------------------------------------------------------------- */

/* As a word of a shell. */
static void put_word(FILE *out, const char *word)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./+:,=@%";
    if (*word && strspn(word, plain) == strlen(word)) {
        fputs(word, out);
        return;
    }
    kd_html_text(out, "'");
    while (*word) {
        char one[8]; /* a character of UTF-8 */
        int n = 0;
        do one[n++] = *word++;
        while (((unsigned char)*word & 0xc0) == 0x80 && n < 4);
        one[n] = '\0';
        kd_html_text(out, *one == '\'' ? "'\\''" : one);
    }
    kd_html_text(out, "'");
}

static void put_option(FILE *out, const char *name, const char *value, const char *fallback)
{
    fprintf(out, " --%s ", name);
    if (*value)
        put_word(out, value);
    else
        kd_html_text(out, fallback);
}

void kd_report_command(FILE *out, const kd_left *left)
{
    char file[4096], sequence[32] = "512";
    const json_t *data = json_object_get(left->config, "data");
    const double length = kd_json_number(data, "sequence", NULL);
    if (length > 0.0) snprintf(sequence, sizeof sequence, "%.0f", length);
    snprintf(file, sizeof file, "%s/eval.json", left->dir);
    fputs("<p class=\"missing\">No evaluation in this folder says so. This makes one:<br>"
          "<code>kd eval",
          out);
    put_option(out, "teacher", kd_json_text(json_object_get(left->config, "teacher"), "model"),
               "TEACHER");
    put_option(out, "models", left->dir, "");
    put_option(out, "data", kd_json_text(data, "valid"), "HELD-OUT");
    put_option(out, "sequence", sequence, "");
    put_option(out, "out", file, "");
    fputs("</code></p>\n", out);
}

/* ---- the head --------------------------------------------------------------------------------- */

static void tile(FILE *out, const char *name, const char *value)
{
    fprintf(out, "<div><span>%s</span><b>", name);
    kd_html_text(out, value);
    fputs("</b></div>", out);
}

static void number_tile(FILE *out, const char *name, double value, const char *fmt)
{
    char text[64];
    if (isnan(value)) return;
    kd_html_tick(text, sizeof text, value);
    if (fmt) snprintf(text, sizeof text, fmt, value);
    tile(out, name, text);
}

static void count_tile(FILE *out, const char *name, double value)
{
    char text[64];
    if (value >= 0.0 && value < 1e7)
        tile(out, name, kd_format_count(text, sizeof text, (int64_t)value));
    else if (!isnan(value))
        tile(out, name, kd_html_tick(text, sizeof text, value));
}

static void put_tiles(FILE *out, const kd_left *left)
{
    const kd_curves *model = &left->models[0];
    const kd_series *loss = kd_split_find(&model->train, "loss");
    const double tokens = kd_series_last(kd_split_find(&model->train, "tokens"));
    const double seconds = kd_series_last(kd_split_find(&model->train, "seconds"));
    const double nll = kd_series_last(kd_split_find(&model->valid, "nll"));
    char text[64];
    if (left->model_count == 0) return;
    fputs("<div class=\"tiles\">", out);
    if (loss) count_tile(out, "steps", loss->x[loss->count - 1] + 1.0);
    count_tile(out, "tokens", tokens);
    if (!isnan(seconds)) tile(out, "time", kd_format_duration(text, sizeof text, seconds));
    if (seconds > 0.0) count_tile(out, "tokens per second", tokens / seconds);
    number_tile(out, "loss, last step", kd_series_last(loss), "%.4g");
    number_tile(out, "held-out KL, nats", kd_series_last(kd_split_find(&model->valid, "kl")),
                "%.4g");
    number_tile(out, "held-out perplexity", exp(nll), "%.4g");
    number_tile(out, "held-out same top",
                100.0 * kd_series_last(kd_split_find(&model->valid, "same_top")), "%.1f %%");
    number_tile(out, "held-out accuracy",
                100.0 * kd_series_last(kd_split_find(&model->valid, "accuracy")), "%.1f %%");
    fputs("</div>\n", out);
}

static const char *last_name(const char *dir)
{
    const char *slash = strrchr(dir, '/');
    return slash && slash[1] ? slash + 1 : dir;
}

static void put_lead(FILE *out, const kd_left *left)
{
    const json_t *c = left->config;
    const char *student = kd_json_text(json_array_get(json_object_get(c, "students"), 0), "model");
    const char *teacher = kd_json_text(json_object_get(c, "teacher"), "model");
    fputs("<p class=\"lead\">", out);
    if (*student) {
        kd_html_text(out, student);
        if (*teacher) fputs(" taught by ", out);
        kd_html_text(out, teacher);
        fputs("; ", out);
    }
    fputs(left->finished       ? "the run is finished"
          : left->records == 0 ? "no training is recorded here"
                               : "the run is not finished",
          out);
    if (left->dropped)
        fprintf(out, "; %lld line%s of <code>metrics.jsonl</code> left out: not a whole record",
                (long long)left->dropped, left->dropped == 1 ? "" : "s");
    if (left->more_evals)
        fprintf(out, "; %d evaluations more than the %d shown", left->more_evals, KD_REPORT_EVALS);
    fputs("</p>\n", out);
}

static void put_head(FILE *out, const kd_left *left)
{
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
          "'unsafe-inline'; img-src data:\">"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
          "<link rel=\"icon\" href=\"data:,\"><title>",
          out);
    kd_html_text(out, last_name(left->dir));
    fputs(" – kd report</title>\n", out);
    put_style(out);
    fputs("</head><body><main>\n<header id=\"overview\"><h1>", out);
    kd_html_text(out, last_name(left->dir));
    fputs("</h1>\n", out);
    put_lead(out, left);
    put_tiles(out, left);
    fputs("</header>\n", out);
}

/* ---- the end ---------------------------------------------------------------------------------- */

static kd_status put_config(FILE *out, const kd_left *left)
{
    char *text = NULL;
    kd_html_section(out, "configuration", "Configuration");
    if (left->config) {
        KD_TRY(kd_json_dump(&text, left->config_path, left->config, JSON_INDENT(2)));
        fputs("<details><summary>", out);
        kd_html_text(out, left->config_path);
        fputs("</summary><pre>", out);
        kd_html_text(out, text);
        fputs("</pre></details>\n", out);
    } else {
        fputs("<p class=\"missing\">The folder has no checkpoint, which would hold it.</p>\n", out);
    }
    free(text);
    fputs("</section>\n<footer>kd report " KD_VERSION "</footer>\n</main></body></html>\n", out);
    return KD_OK;
}

static kd_status put_page(FILE *out, const kd_left *left)
{
    put_head(out, left);
    kd_report_curves(out, left);
    kd_report_evals(out, left);
    return put_config(out, left);
}

/* ---- the verb --------------------------------------------------------------------------------- */

static kd_status write_page(const char *path, const kd_left *left)
{
    char *text;
    size_t bytes;
    FILE *out;
    kd_stream *stream;
    KD_TRY(kd_stream_open(&stream, &out, path));
    const kd_status put = put_page(out, left);
    kd_status status = kd_stream_close(&text, &bytes, stream, put);
    if (status == KD_OK) status = kd_file_write_atomic(path, text, bytes);
    free(text);
    return status;
}

kd_status kd_report_write(const char *path, const char *dir)
{
    kd_arena *arena;
    kd_left left;
    KD_TRY(kd_arena_create(&arena));
    kd_status status = kd_left_open(&left, arena, dir);
    if (status == KD_OK) status = write_page(path, &left);
    kd_left_close(&left);
    kd_arena_destroy(arena);
    return status;
}
