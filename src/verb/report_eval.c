/* Sections of a report that come from evaluations: what `kd eval --out` wrote into the run's folder. */
#include "verb/report.h"

#include <math.h>

enum { CELL = 64 };

typedef void (*eval_part)(FILE *out, const json_t *eval);

/* ---- models of an evaluation ------------------------------------------------------------------ */

static const json_t *model_at(const json_t *eval, int i)
{
    return json_array_get(json_object_get(eval, "models"), (size_t)i);
}

static int model_count(const json_t *eval)
{
    return (int)kd_min_i64((int64_t)json_array_size(json_object_get(eval, "models")),
                           KD_MAX_EVAL_ROWS);
}

static bool is_teacher(const json_t *model)
{
    return json_is_true(json_object_get(model, "teacher"));
}

static const json_t *teacher_of(const json_t *eval)
{
    return is_teacher(model_at(eval, 0)) ? model_at(eval, 0) : NULL;
}

static int colour_of(const json_t *eval, int i)
{
    if (is_teacher(model_at(eval, i))) return KD_NEUTRAL;
    return (teacher_of(eval) ? i - 1 : i) % KD_COLOURS;
}

/* ---- tables ----------------------------------------------------------------------------------- */

static void cell(FILE *out, const char *text)
{
    fputs("<td>", out);
    kd_html_text(out, text);
    fputs("</td>", out);
}

static void number_cell(FILE *out, double value, int digits)
{
    char text[CELL];
    cell(out, kd_html_number(text, sizeof text, value, digits));
}

/* "18.31 ± 0.21": the error with two digits, the mean as far as that. */
static void measure_cell(FILE *out, const json_t *model, const char *key, double scale)
{
    char text[2 * CELL];
    const double mean = scale * kd_json_number(model, key, "mean");
    const double error = scale * kd_json_number(model, key, "error");
    if (isnan(mean) || !(error > 0.0)) {
        snprintf(text, sizeof text, isnan(mean) ? "–" : "%.4g", mean);
    } else {
        const int digits = (int)fmin(fmax(1.0 - floor(log10(error)), 0.0), 9.0);
        snprintf(text, sizeof text, "%.*f ± %.*f", digits, mean, digits, error);
    }
    cell(out, text);
}

static void begin_table(FILE *out, const char *const *heads)
{
    fputs("<div class=\"table\"><table><thead><tr>", out);
    for (int i = 0; heads[i]; i++) fprintf(out, "<th>%s</th>", heads[i]);
    fputs("</tr></thead><tbody>\n", out);
}

static void begin_row(FILE *out, const json_t *eval, int i)
{
    fprintf(out, "<tr><th><i class=\"k%d\"></i>", colour_of(eval, i));
    kd_html_text(out, kd_json_text(model_at(eval, i), "name"));
    fputs("</th>", out);
}

static void end_table(FILE *out) { fputs("</tbody></table></div>\n", out); }

/* ---- agreement -------------------------------------------------------------------------------- */

static void put_pair(FILE *out, const json_t *eval)
{
    const json_t *pair = json_object_get(eval, "pair");
    const double mean = kd_json_number(pair, "kl", "mean");
    if (isnan(mean)) return;
    fputs("<p class=\"note\">KL of ", out);
    kd_html_text(out, kd_json_text(pair, "a"));
    fputs(" minus KL of ", out);
    kd_html_text(out, kd_json_text(pair, "b"));
    fprintf(out, ", paired over documents: %.4g ± %.2g; lower in %.0f of %.0f documents.</p>\n",
            mean, kd_json_number(pair, "kl", "error"), kd_json_number(pair, "better", NULL),
            kd_json_number(pair, "documents", NULL));
}

static void agreement_table(FILE *out, const json_t *eval)
{
    static const char *const heads[] = { "",        "same top, %", "KL, nats per token",
                                         "50 %",    "90 %",        "99 %",
                                         "largest", NULL };
    begin_table(out, heads);
    for (int i = 0; i < model_count(eval); i++) {
        if (is_teacher(model_at(eval, i))) continue;
        const json_t *model = model_at(eval, i), *q = json_object_get(model, "kl_quantiles");
        begin_row(out, eval, i);
        measure_cell(out, model, "same_top", 100.0);
        measure_cell(out, model, "kl", 1.0);
        for (size_t k = 0; k < 4; k++) {
            const json_t *value = json_array_get(q, k);
            number_cell(out, json_is_number(value) ? json_number_value(value) : NAN, 3);
        }
        fputs("</tr>\n", out);
    }
    end_table(out);
    fputs("<p class=\"note\">Quantiles are those of KL over tokens; ± is the standard error over "
          "documents.</p>\n",
          out);
    put_pair(out, eval);
}

/* ---- KL by something -------------------------------------------------------------------------- */

/* Bins of one chart: what stands at each place, and the values of every student there. */
typedef struct places {
    double x[KD_REPORT_BINS], share[KD_REPORT_BINS], y[KD_MAX_EVAL_ROWS][KD_REPORT_BINS];
    char names[KD_REPORT_BINS][16];
    const char *ticks[KD_REPORT_BINS];
} places;

/* What every bin of `list` is and how many tokens it has; how many there are. */
static int read_bins(places *p, const json_t *list)
{
    double all = 0.0;
    const int count = (int)kd_min_i64((int64_t)json_array_size(list), KD_REPORT_BINS);
    for (int i = 0; i < count; i++) {
        const json_t *bin = json_array_get(list, (size_t)i);
        p->x[i] = i;
        p->share[i] = kd_json_number(bin, "tokens", NULL);
        if (!(p->share[i] >= 0.0)) p->share[i] = 0.0;
        all += p->share[i];
        p->ticks[i] =
            kd_html_tick(p->names[i], sizeof p->names[i], kd_json_number(bin, "from", NULL));
    }
    for (int i = 0; i < count && all > 0.0; i++) p->share[i] /= all;
    return count;
}

static void draw_bins(FILE *out, const json_t *eval, const char *key, const char *title,
                      const char *x_name)
{
    places p;
    kd_chart chart = { .title = title,
                       .unit = "mean of the tokens there, nats",
                       .x_name = x_name,
                       .from_zero = true,
                       .share = p.share,
                       .ticks = p.ticks };
    for (int i = 0; i < model_count(eval) && chart.count < KD_CHART_LINES; i++) {
        const json_t *model = model_at(eval, i), *list = json_object_get(model, key);
        if (json_array_size(list) == 0) continue;
        if (chart.bars == 0) chart.bars = read_bins(&p, list);
        for (int b = 0; b < chart.bars; b++)
            p.y[i][b] = kd_json_number(json_array_get(list, (size_t)b), "kl", NULL);
        chart.lines[chart.count++] = (kd_line){ .name = kd_json_text(model, "name"),
                                                .x = p.x,
                                                .y = p.y[i],
                                                .count = chart.bars,
                                                .colour = colour_of(eval, i),
                                                .points = true };
    }
    if (chart.count > 0) kd_chart_draw(out, &chart);
}

static void draw_where(FILE *out, const json_t *eval)
{
    draw_bins(out, eval, "by_context", "KL to the teacher by position",
              "tokens of context, from (each bin twice as long)");
    draw_bins(out, eval, "by_teacher_entropy", "KL to the teacher by its entropy",
              "entropy of the teacher, from, nats (bins of 0.5)");
}

/* ---- calibration ------------------------------------------------------------------------------ */

static void draw_calibration(FILE *out, const json_t *eval)
{
    for (int i = 0; i < model_count(eval); i++) {
        const json_t *model = model_at(eval, i), *c = json_object_get(model, "calibration");
        const json_t *list = json_object_get(c, "bins");
        kd_eval_profile p = { .ece = kd_json_number(c, "ece", NULL),
                              .confidence = kd_json_number(c, "confidence", NULL),
                              .accuracy = kd_json_number(c, "accuracy", NULL),
                              .mean_entropy = kd_json_number(c, "entropy", NULL) };
        if (json_array_size(list) == 0) continue;
        for (int b = 0; b < KD_EVAL_CONFIDENCES; b++) {
            const json_t *bin = json_array_get(list, (size_t)b);
            const double tokens = kd_json_number(bin, "tokens", NULL);
            p.trust[b] =
                (kd_eval_trust){ .tokens = tokens >= 0.0 && tokens < 1e15 ? (int64_t)tokens : 0,
                                 .confidence = kd_json_number(bin, "confidence", NULL),
                                 .accuracy = kd_json_number(bin, "accuracy", NULL) };
            p.tokens += p.trust[b].tokens;
        }
        kd_chart_trust(out, kd_json_text(model, "name"), &p, colour_of(eval, i));
    }
}

/* ---- compression ------------------------------------------------------------------------------ */

static void compression_row(FILE *out, const json_t *eval, int i)
{
    const json_t *model = model_at(eval, i), *teacher = teacher_of(eval);
    const double bytes = kd_json_number(model, "bytes", NULL);
    const double ms = kd_json_number(model, "ms_per_token", NULL);
    const double retained = kd_json_number(model, "retained", NULL);
    const double count = kd_json_number(model, "parameters", NULL);
    char text[CELL];
    begin_row(out, eval, i);
    if (count >= 1e6)
        snprintf(text, sizeof text, "%.1f M", 1e-6 * count);
    else
        kd_format_count(text, sizeof text, count >= 0.0 ? (int64_t)count : 0);
    cell(out, text);
    cell(out, kd_format_bytes(text, sizeof text, bytes));
    if (!teacher)
        snprintf(text, sizeof text, "–");
    else
        snprintf(text, sizeof text, "%.2f×", kd_json_number(teacher, "bytes", NULL) / bytes);
    cell(out, text);
    number_cell(out, ms, ms < 0.1 ? 4 : 2);
    cell(out, ms > 0.0 ? kd_format_count(text, sizeof text, (int64_t)fmin(1e3 / ms, 1e15)) : "–");
    measure_cell(out, model, "ppl", 1.0);
    measure_cell(out, model, "kl", 1.0);
    measure_cell(out, model, "same_top", 100.0);
    number_cell(out, 100.0 * kd_json_number(model, "calibration", "ece"), 2);
    number_cell(out, 100.0 * retained, 1);
    fputs("</tr>\n", out);
}

static void compression_table(FILE *out, const json_t *eval)
{
    static const char *const heads[] = { "",           "parameters",  "weights",
                                         "smaller",    "ms/token",    "tokens/s",
                                         "perplexity", "KL, nats",    "same top, %",
                                         "ECE, %",     "retained, %", NULL };
    const double unigram = kd_json_number(eval, "unigram_ppl", NULL);
    begin_table(out, heads);
    for (int i = 0; i < model_count(eval); i++) compression_row(out, eval, i);
    end_table(out);
    fputs("<p class=\"note\">Weights as they lie on disk. Speed is that of a forward pass over the "
          "data in batches, on the machine that evaluated. Retained: log perplexity of the teacher "
          "by that of the model.",
          out);
    if (!isnan(unigram))
        fprintf(out, " Unigram perplexity %.4g: a model above it has learnt nothing.", unigram);
    fputs("</p>\n", out);
}

/* ---- sections --------------------------------------------------------------------------------- */

static void eval_title(FILE *out, const kd_left *left, int i)
{
    char tokens[CELL], documents[CELL];
    const json_t *eval = left->evals[i];
    const double n = kd_json_number(eval, "tokens", NULL);
    const double d = kd_json_number(eval, "documents", NULL);
    fputs("<p class=\"source\"><code>", out);
    kd_html_text(out, left->eval_names[i]);
    fputs("</code>: ", out);
    kd_html_text(out, kd_json_text(eval, "data"));
    fprintf(out, ", %s tokens of %s documents",
            kd_format_count(tokens, sizeof tokens, n >= 0.0 ? (int64_t)n : 0),
            kd_format_count(documents, sizeof documents, d >= 0.0 ? (int64_t)d : 0));
    if (kd_json_text(eval, "dtype")[0]) fputs(", in ", out);
    kd_html_text(out, kd_json_text(eval, "dtype"));
    fputs("</p>\n", out);
}

/* Does some model of the evaluation have it?  `key` NULL: there is a model. */
static bool has(const json_t *eval, const char *key)
{
    for (int i = 0; i < model_count(eval); i++)
        if (!key || json_object_get(model_at(eval, i), key)) return true;
    return false;
}

static void each_eval(FILE *out, const kd_left *left, const char *key, eval_part part, bool charts)
{
    bool any = false;
    for (int i = 0; i < left->eval_count; i++) {
        if (!has(left->evals[i], key)) continue;
        any = true;
        eval_title(out, left, i);
        if (charts) fputs("<div class=\"charts\">", out);
        part(out, left->evals[i]);
        if (charts) fputs("</div>\n", out);
    }
    if (!any) kd_report_command(out, left);
}

void kd_report_evals(FILE *out, const kd_left *left)
{
    kd_html_section(out, "agreement", "Agreement with the teacher");
    kd_report_agreement(out, left);
    each_eval(out, left, "by_context", agreement_table, false);
    fputs("</section>\n", out);
    kd_html_section(out, "where", "KL by position and by the teacher’s entropy");
    each_eval(out, left, "by_context", draw_where, true);
    fputs("</section>\n", out);
    kd_html_section(out, "calibration", "Calibration");
    fputs(
        "<p class=\"note\">Of the tokens where a model gives its likeliest class this probability, "
        "a bar shows how many had that class, its mark what the model expected: on the dashed line "
        "both are the same. The fuller a bar’s colour, the more tokens it stands for. ECE is the "
        "mean distance of bar and mark.</p>\n",
        out);
    each_eval(out, left, "calibration", draw_calibration, true);
    fputs("</section>\n", out);
    kd_html_section(out, "compression", "Compression");
    each_eval(out, left, NULL, compression_table, false);
    fputs("</section>\n", out);
}
