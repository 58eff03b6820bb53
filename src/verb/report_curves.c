/* Sections of a report that come from metrics.jsonl: loss by component, optimisation, agreement. */
#include "verb/report.h"

#include <math.h>

/* ---- lines ------------------------------------------------------------------------------------ */

static void add_line(kd_chart *chart, const char *name, const kd_series *s, int colour, bool points)
{
    if (!s || s->count == 0 || chart->count == KD_CHART_LINES) return;
    chart->lines[chart->count++] = (kd_line){
        .name = name, .x = s->x, .y = s->y, .count = s->count, .colour = colour, .points = points
    };
}

/* Values of held-out tokens, with their standard errors where there is one for each. */
static void add_valid(kd_chart *chart, const char *name, const kd_split *valid, const char *key,
                      const char *error)
{
    const int before = chart->count;
    const kd_series *errors = error ? kd_split_find(valid, error) : NULL;
    add_line(chart, name, kd_split_find(valid, key), 1, true);
    if (chart->count > before && errors && errors->count == chart->lines[before].count)
        chart->lines[before].error = errors->y;
}

static void draw_some(FILE *out, const kd_chart *chart)
{
    if (chart->count > 0) kd_chart_draw(out, chart);
}

static void model_title(FILE *out, const kd_left *left, const kd_curves *model)
{
    if (left->model_count < 2) return;
    fputs("<h3>", out);
    kd_html_text(out, model->label);
    fputs("</h3>", out);
}

/* ---- loss ------------------------------------------------------------------------------------- */

/* Keys of a step's record that are no term of the loss. */
static bool is_common(const char *key)
{
    static const char *const common[] = { "loss",
                                          "same_top",
                                          "gradient_norm",
                                          "loss_z",
                                          "norm_z",
                                          "skipped",
                                          "lr",
                                          "valid",
                                          "tokens",
                                          "seconds",
                                          "tokens_per_s",
                                          "device_bytes",
                                          "device_peak_bytes",
                                          "host_bytes" };
    for (int i = 0; i < KD_COUNT(common); i++)
        if (strcmp(key, common[i]) == 0) return true;
    return false;
}

/* The term's section of the configuration; NULL: there is none. */
static const json_t *term_of(const kd_left *left, const char *key)
{
    return json_object_get(json_object_get(left->config, "loss"), key);
}

/* What the run's terms see of the teacher's logits; NULL: all classes. */
static const json_t *top_of(const kd_left *left) { return term_of(left, "top_k"); }

/* Its logits: of terms over taps there is no such loss. */
static bool reads_teacher(const json_t *term)
{
    int loss;
    kd_loss_info info;
    return kd_loss_find(&loss, kd_json_text(term, "type")) == KD_OK &&
           kd_loss_describe(&info, loss) == KD_OK && info.teacher;
}

/* Does the term say of the training tokens what `type` at T = 1 says of held-out ones? */
static bool compares(const kd_left *left, const json_t *term, const char *type)
{
    const double smoothing = kd_json_number(term, "label_smoothing", NULL);
    return !(top_of(left) && reads_teacher(term)) &&
           strcmp(kd_json_text(term, "type"), type) == 0 && !(smoothing > 0.0) &&
           !json_is_true(json_object_get(term, "standardise")) &&
           kd_json_number(term, "temperature", NULL) == 1.0;
}

static void describe_term(char *text, size_t size, const kd_left *left, const json_t *term)
{
    const json_t *top = reads_teacher(term) ? top_of(left) : NULL;
    char weight[48] = "", seen[64] = "";
    const json_t *ramp = json_object_get(term, "weight");
    if (json_is_object(ramp))
        snprintf(weight, sizeof weight, ", weight %g to %g", kd_json_number(ramp, "from", NULL),
                 kd_json_number(ramp, "to", NULL));
    else if (json_is_number(ramp))
        snprintf(weight, sizeof weight, ", weight %g", json_number_value(ramp));
    if (top)
        snprintf(seen, sizeof seen, " of the %g largest classes, %.16s",
                 kd_json_number(top, "k", NULL), kd_json_text(top, "others"));
    if (json_object_get(term, "layers")) /* over taps */
        snprintf(text, size, "%.60s%s; mean, summed over layers", kd_json_text(term, "type"),
                 weight);
    else
        snprintf(text, size, "%.60s%s%s%s, T %g; nats per token", kd_json_text(term, "type"),
                 json_is_true(json_object_get(term, "standardise")) ? " of z-scores" : "", seen,
                 weight, kd_json_number(term, "temperature", NULL));
}

static void draw_term(FILE *out, const kd_left *left, const kd_curves *model, const kd_series *s,
                      bool shown[2])
{
    const json_t *term = term_of(left, s->key);
    char unit[256] = "nats per token";
    if (term) describe_term(unit, sizeof unit, left, term);
    kd_chart chart = { .title = s->key, .unit = unit, .x_name = "step" };
    add_line(&chart, "train", s, 0, false);
    if (compares(left, term, "cross_entropy")) {
        add_valid(&chart, "valid", &model->valid, "nll", "nll_error");
        shown[0] = true;
    } else if (compares(left, term, "forward_kl")) {
        add_valid(&chart, "valid", &model->valid, "kl", "kl_error");
        shown[1] = true;
    }
    draw_some(out, &chart);
}

static void draw_losses(FILE *out, const kd_left *left, const kd_curves *model)
{
    bool shown[2] = { false, false };
    kd_chart total = { .title = "loss", .unit = "weighted sum of the terms", .x_name = "step" };
    kd_chart nll = { .title = "cross entropy, held out",
                     .unit = "T 1; nats per token, with standard errors",
                     .x_name = "step" };
    kd_chart kl = { .title = "KL to the teacher, held out",
                    .unit = "T 1; nats per token, with standard errors",
                    .x_name = "step" };
    model_title(out, left, model);
    fputs("<div class=\"charts\">", out);
    add_line(&total, "train", kd_split_find(&model->train, "loss"), 0, false);
    draw_some(out, &total);
    for (int i = 0; i < model->train.count; i++) {
        const kd_series *s = &model->train.series[i];
        if (left->config ? term_of(left, s->key) != NULL : !is_common(s->key))
            draw_term(out, left, model, s, shown);
    }
    add_valid(&nll, "valid", &model->valid, "nll", "nll_error");
    add_valid(&kl, "valid", &model->valid, "kl", "kl_error");
    if (!shown[0]) draw_some(out, &nll);
    if (!shown[1]) draw_some(out, &kl);
    fputs("</div>\n", out);
}

/* ---- optimisation ----------------------------------------------------------------------------- */

/* Tokens per second over neighbouring records, from what was taken until each; false: not told.
 * Over several, since a step's result is read while the next runs, or at once before an evaluation. */
static bool rates(kd_series *out, kd_arena *arena, const kd_split *train)
{
    const kd_series *tokens = kd_split_find(train, "tokens");
    const kd_series *seconds = kd_split_find(train, "seconds");
    if (!tokens || !seconds || tokens->count != seconds->count) return false;
    const int64_t span = kd_max_i64(8, tokens->count / 100);
    if (tokens->count < 3 * span) return false;
    *out = (kd_series){ .key = "tokens_per_s" };
    if (KD_ARENA_ARRAY(&out->x, arena, tokens->count) != KD_OK ||
        KD_ARENA_ARRAY(&out->y, arena, tokens->count) != KD_OK)
        return false;
    for (int64_t i = span; i < tokens->count; i += span) {
        const double took = seconds->y[i] - seconds->y[i - span];
        if (!(took > 0.0)) continue;
        out->x[out->count] = tokens->x[i];
        out->y[out->count++] = (tokens->y[i] - tokens->y[i - span]) / took;
    }
    return true;
}

static void draw_optimisation(FILE *out, const kd_left *left, const kd_curves *model)
{
    const kd_split *train = &model->train;
    kd_series speed;
    kd_chart norm = { .title = "gradient norm", .unit = "before clipping", .x_name = "step" };
    kd_chart lr = { .title = "learning rate", .unit = "", .x_name = "step", .from_zero = true };
    kd_chart rate = { .title = "speed",
                      .unit = "tokens per second, evaluations and checkpoints included",
                      .x_name = "step",
                      .from_zero = true };
    kd_chart memory = {
        .title = "memory", .unit = "GB", .x_name = "step", .from_zero = true, .scale = 1e-9
    };
    model_title(out, left, model);
    fputs("<div class=\"charts\">", out);
    add_line(&norm, "train", kd_split_find(train, "gradient_norm"), 0, false);
    add_line(&lr, "train", kd_split_find(train, "lr"), 0, false);
    add_line(&rate, "train",
             rates(&speed, left->arena, train) ? &speed : kd_split_find(train, "tokens_per_s"), 0,
             false);
    add_line(&memory, "device", kd_split_find(train, "device_bytes"), 0, false);
    add_line(&memory, "device, peak", kd_split_find(train, "device_peak_bytes"), 1, false);
    add_line(&memory, "host", kd_split_find(train, "host_bytes"), 2, false);
    draw_some(out, &norm);
    draw_some(out, &lr);
    draw_some(out, &rate);
    draw_some(out, &memory);
    fputs("</div>\n", out);
}

static void no_metrics(FILE *out)
{
    fputs("<p class=\"missing\">There is no <code>metrics.jsonl</code> here: <code>kd train</code> "
          "writes it into <code>run.out</code>.</p>",
          out);
}

void kd_report_curves(FILE *out, const kd_left *left)
{
    kd_html_section(out, "loss", "Loss by component");
    for (int m = 0; m < left->model_count; m++) draw_losses(out, left, &left->models[m]);
    if (left->records == 0) no_metrics(out);
    fputs("</section>\n", out);
    kd_html_section(out, "optimisation", "Optimisation");
    for (int m = 0; m < left->model_count; m++) draw_optimisation(out, left, &left->models[m]);
    if (left->records == 0) no_metrics(out);
    fputs("</section>\n", out);
}

/* ---- agreement -------------------------------------------------------------------------------- */

static void draw_agreement(FILE *out, const kd_curves *model)
{
    kd_chart same = { .title = model->label,
                      .unit = "tokens whose likeliest class is the teacher's, %",
                      .x_name = "step",
                      .from_zero = true,
                      .scale = 100.0 };
    kd_chart kl = { .title = model->label,
                    .unit = "held-out KL to the teacher, T 1, nats per token",
                    .x_name = "step",
                    .from_zero = true };
    kd_chart right = { .title = model->label,
                       .unit = "held-out samples whose likeliest class is their own, %",
                       .x_name = "step",
                       .from_zero = true,
                       .scale = 100.0 };
    add_line(&same, "train", kd_split_find(&model->train, "same_top"), 0, false);
    add_valid(&same, "valid", &model->valid, "same_top", NULL);
    add_valid(&kl, "valid", &model->valid, "kl", "kl_error");
    add_valid(&right, "valid", &model->valid, "accuracy", NULL);
    draw_some(out, &same);
    draw_some(out, &kl);
    draw_some(out, &right);
}

void kd_report_agreement(FILE *out, const kd_left *left)
{
    fputs("<div class=\"charts\">", out);
    for (int m = 0; m < left->model_count; m++) draw_agreement(out, &left->models[m]);
    fputs("</div>\n", out);
}
