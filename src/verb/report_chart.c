/* Text and drawings of a page: HTML that is escaped, SVG whose colours the page's style gives. */
#include "verb/report.h"

#include <math.h>
#include <stdio.h>

/* ---- text ------------------------------------------------------------------------------------- */

/* Bytes of the UTF-8 character at `at`; 0: it is none, or not one for a page. */
static int character(const unsigned char *at)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    const int bytes = *at < 0x80 ? 1 : *at < 0xc2 ? 0 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : 4;
    uint32_t code = bytes == 1 ? *at : *at & (0x7fu >> bytes);
    for (int i = 1; i < bytes; i++) {
        if ((at[i] & 0xc0) != 0x80) return 0;
        code = code << 6 | (at[i] & 0x3fu);
    }
    if (bytes == 0 || code < least[bytes] || code > 0x10ffff) return 0;
    const bool control = code < 0x20 ? code != '\t' && code != '\n' : code >= 0x7f && code < 0xa0;
    return control || (code >= 0xd800 && code < 0xe000) || (code & 0xfffe) == 0xfffe ? 0 : bytes;
}

void kd_html_text(FILE *out, const char *text)
{
    for (const unsigned char *at = (const unsigned char *)text; *at;) {
        const int bytes = character(at);
        if (bytes == 0)
            fputs("\xef\xbf\xbd", out);
        else if (strchr("&<>\"'", *at))
            fprintf(out, "&#%d;", *at);
        else
            fwrite(at, 1, (size_t)bytes, out);
        at += bytes ? bytes : 1;
    }
}

const char *kd_html_number(char *buffer, size_t size, double value, int digits)
{
    if (isfinite(value))
        snprintf(buffer, size, "%.*f", digits, value);
    else
        snprintf(buffer, size, "–");
    return buffer;
}

/* Without the zeros of "3e-04". */
static void short_exponent(char *buffer, size_t size, double value)
{
    const int exponent = (int)floor(log10(fabs(value)) + 1e-9);
    snprintf(buffer, size, "%.3ge%d", value / pow(10.0, exponent), exponent);
}

const char *kd_html_tick(char *buffer, size_t size, double value)
{
    static const char *const units[] = { "", "k", "M", "G", "T" };
    const double least = 1e-12;
    int unit = 0;
    if (fabs(value) < least) value = 0.0;
    if (value != 0.0 && fabs(value) < 9.99e-4) {
        short_exponent(buffer, size, value);
    } else if (fabs(value) >= 1e15) {
        short_exponent(buffer, size, value);
    } else {
        while (fabs(value) >= 9999.5 || (unit > 0 && fabs(value) >= 999.95)) {
            value /= 1000.0;
            unit++;
        }
        snprintf(buffer, size, "%.4g%s", value, units[unit]);
    }
    return buffer;
}

/* ---- axes ------------------------------------------------------------------------------------- */

enum { WIDTH = 440, HEIGHT = 250, LEFT = 50, RIGHT = 12, TOP = 10, BOTTOM = 40 };

typedef struct axis {
    double low, high; /* of the logarithm where it is one */
    double from, to;  /* pixels */
    bool log;
} axis;

static double place(const axis *a, double value)
{
    const double v = a->log ? log10(fmax(value, 1e-300)) : value;
    const double part = (v - a->low) / (a->high - a->low);
    return a->from + fmin(fmax(part, 0.0), 1.0) * (a->to - a->from);
}

/* 1, 2 or 5 times a power of ten, so that about `count` of them make the range. */
static double nice_step(double range, int count)
{
    const double raw = range / count, power = pow(10.0, floor(log10(raw)));
    const double digit = raw / power;
    return power * (digit < 1.5 ? 1.0 : digit < 3.5 ? 2.0 : digit < 7.5 ? 5.0 : 10.0);
}

/* The nth tick; NaN after the last. */
static double tick_of(const axis *a, int n, int wanted)
{
    if (a->log) {
        static const double digits[] = { 1.0, 2.0, 5.0 };
        const bool every = a->high - a->low < 2.5; /* decades */
        const int by = every ? 3 : 1;
        const int stride = every ? 1 : (int)ceil((a->high - a->low) / wanted);
        const double decade = floor(a->low) + (double)(n / by) * stride;
        const double value = pow(10.0, decade) * digits[every ? n % 3 : 0];
        return decade > a->high + 1 ? NAN : value;
    }
    const double step = nice_step(a->high - a->low, wanted);
    const double value = step * (ceil(a->low / step - 1e-9) + n);
    return value > a->high + 1e-9 * step ? NAN : value;
}

static bool inside(const axis *a, double value)
{
    const double v = a->log ? log10(value) : value, slack = 1e-9 * (a->high - a->low);
    return v >= a->low - slack && v <= a->high + slack;
}

/* "2k" beside "10k". */
static const char *axis_tick(char *buffer, size_t size, const axis *a, double value)
{
    if (a->log || a->high < 9999.5 || value < 999.5 || value >= 9999.5)
        return kd_html_tick(buffer, size, value);
    snprintf(buffer, size, "%.4gk", value / 1000.0);
    return buffer;
}

static void draw_y_axis(FILE *out, const axis *y)
{
    char text[32];
    for (int n = 0; n < 64; n++) {
        const double value = tick_of(y, n, 5);
        if (isnan(value)) break;
        if (!inside(y, value)) continue;
        const double at = place(y, value);
        fprintf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT,
                WIDTH - RIGHT, at, at);
        fprintf(out, "<text class=\"y\" x=\"%d\" y=\"%.1f\">%s</text>", LEFT - 6, at + 3.6,
                axis_tick(text, sizeof text, y, value));
    }
}

static void draw_x_name(FILE *out, const char *name)
{
    fprintf(out, "<text class=\"x\" x=\"%d\" y=\"%d\">", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6);
    kd_html_text(out, name);
    fputs("</text>", out);
}

static void draw_x_axis(FILE *out, const axis *x)
{
    char text[32];
    for (int n = 0; n < 64; n++) {
        const double value = tick_of(x, n, 6);
        if (isnan(value)) break;
        if (!inside(x, value)) continue;
        fprintf(out, "<text class=\"x\" x=\"%.1f\" y=\"%d\">%s</text>", place(x, value),
                HEIGHT - BOTTOM + 15, axis_tick(text, sizeof text, x, value));
    }
}

/* ---- lines ------------------------------------------------------------------------------------ */

enum { POINTS = 240 }; /* of a line as it is drawn */

/* A line with at most POINTS points, each the mean of its neighbourhood, with what that spans. */
typedef struct thinned {
    double x[POINTS], mean[POINTS], low[POINTS], high[POINTS];
    int count;
    bool spans; /* some point stands for several */
} thinned;

static void thin(thinned *t, const kd_line *line, double scale)
{
    t->count = 0;
    t->spans = line->count > POINTS;
    const int64_t points = kd_min_i64(line->count, POINTS);
    for (int64_t p = 0; p < points; p++) {
        const int64_t begin = p * line->count / points, end = (p + 1) * line->count / points;
        double sum = 0.0, x = 0.0, low = INFINITY, high = -INFINITY;
        int n = 0;
        for (int64_t i = begin; i < end; i++) {
            if (isnan(line->y[i])) continue;
            const double y = scale * line->y[i];
            const double error = line->error && !isnan(line->error[i]) ? line->error[i] : 0.0;
            sum += y;
            x += line->x[i];
            low = fmin(low, y - scale * error);
            high = fmax(high, y + scale * error);
            n++;
        }
        if (n == 0) continue;
        t->x[t->count] = x / n;
        t->mean[t->count] = sum / n;
        t->low[t->count] = low;
        t->high[t->count++] = high;
    }
}

static void draw_band(FILE *out, const thinned *t, const axis *x, const axis *y, int colour)
{
    fprintf(out, "<polygon class=\"f%d band\" points=\"", colour);
    for (int i = 0; i < t->count; i++)
        fprintf(out, "%.1f,%.1f ", place(x, t->x[i]), place(y, t->high[i]));
    for (int i = t->count - 1; i >= 0; i--)
        fprintf(out, "%.1f,%.1f ", place(x, t->x[i]), place(y, t->low[i]));
    fputs("\"/>", out);
}

static void draw_line(FILE *out, const kd_line *line, const thinned *t, const axis *x,
                      const axis *y)
{
    char text[32];
    if (t->spans || line->error) draw_band(out, t, x, y, line->colour);
    fprintf(out, "<polyline class=\"s%d\" points=\"", line->colour);
    for (int i = 0; i < t->count; i++)
        fprintf(out, "%.1f,%.1f ", place(x, t->x[i]), place(y, t->mean[i]));
    fputs("\"/>", out);
    for (int i = 0; i < t->count && (line->points || t->count == 1) && !t->spans; i++) {
        fprintf(out, "<circle class=\"f%d\" r=\"2.6\" cx=\"%.1f\" cy=\"%.1f\"><title>",
                line->colour, place(x, t->x[i]), place(y, t->mean[i]));
        kd_html_text(out, line->name);
        fprintf(out, ": %s</title></circle>", kd_html_tick(text, sizeof text, t->mean[i]));
    }
}

/* ---- one chart -------------------------------------------------------------------------------- */

static void extend(double *low, double *high, double value)
{
    *low = fmin(*low, value);
    *high = fmax(*high, value);
}

/* Room around what is drawn; an axis of one value gets some. */
static axis axis_of(double low, double high, double from, double to, double room)
{
    if (!(low <= high)) low = 0.0, high = 1.0;
    double margin = room * (high - low);
    if (high - low <= 1e-9 * fabs(high)) margin = high != 0.0 ? 0.5 * fabs(high) : 1.0;
    return (axis){ low - margin, high + margin, from, to, false };
}

static axis y_axis(const kd_chart *chart, const thinned *lines)
{
    double low = INFINITY, high = -INFINITY;
    for (int k = 0; k < chart->count; k++)
        for (int i = 0; i < lines[k].count; i++) {
            extend(&low, &high, lines[k].mean[i]);
            if (chart->lines[k].error && !lines[k].spans) {
                extend(&low, &high, lines[k].low[i]);
                extend(&low, &high, lines[k].high[i]);
            }
        }
    const double from = HEIGHT - BOTTOM, to = TOP;
    if (!chart->from_zero && low > 0.0 && high > 20.0 * low) {
        axis log = axis_of(log10(low), log10(high), from, to, 0.05);
        log.log = true;
        return log;
    }
    if (chart->from_zero) low = fmin(low, 0.0);
    axis y = axis_of(low, high, from, to, 0.06);
    if (low == 0.0) y.low = 0.0;
    return y;
}

static axis x_axis(const kd_chart *chart, const thinned *lines)
{
    double low = INFINITY, high = -INFINITY;
    if (chart->ticks) return (axis){ -0.5, chart->bars - 0.5, LEFT, WIDTH - RIGHT, false };
    for (int k = 0; k < chart->count; k++)
        for (int i = 0; i < lines[k].count; i++) extend(&low, &high, lines[k].x[i]);
    return axis_of(low, high, LEFT, WIDTH - RIGHT, 0.0);
}

static void draw_bars(FILE *out, const kd_chart *chart, const axis *x)
{
    const double bottom = HEIGHT - BOTTOM, tall = 0.8 * (bottom - TOP);
    double most = 0.0;
    for (int i = 0; i < chart->bars; i++) most = fmax(most, chart->share[i]);
    for (int i = 0; i < chart->bars && most > 0.0; i++) {
        const double left = place(x, i - 0.4), right = place(x, i + 0.4);
        const double height = tall * chart->share[i] / most;
        fprintf(out,
                "<rect class=\"share\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\">"
                "<title>%.1f %% of the tokens</title></rect>",
                left, bottom - height, right - left, height, 100.0 * chart->share[i]);
    }
}

static void draw_names(FILE *out, const kd_chart *chart, const axis *x)
{
    const int stride = chart->bars > 13 ? 2 : 1;
    for (int i = 0; i < chart->bars; i += stride)
        fprintf(out, "<text class=\"x\" x=\"%.1f\" y=\"%d\">%s</text>", place(x, i),
                HEIGHT - BOTTOM + 15, chart->ticks[i]);
}

static void begin_figure(FILE *out, const char *title, const char *unit)
{
    fputs("<figure><figcaption><b>", out);
    kd_html_text(out, title);
    fputs("</b> <span>", out);
    kd_html_text(out, unit);
    fputs("</span></figcaption>", out);
}

static void draw_legend(FILE *out, const kd_chart *chart)
{
    if (chart->count < 2 && !chart->share) return;
    fputs("<p class=\"legend\">", out);
    for (int k = 0; k < chart->count && chart->count > 1; k++) {
        fprintf(out, "<span><i class=\"k%d\"></i>", chart->lines[k].colour);
        kd_html_text(out, chart->lines[k].name);
        fputs("</span>", out);
    }
    if (chart->share) fputs("<span><i class=\"kshare\"></i>share of the tokens</span>", out);
    fputs("</p>", out);
}

static void begin_drawing(FILE *out, const char *title)
{
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    kd_html_text(out, title);
    fputs("\">", out);
}

static void end_drawing(FILE *out)
{
    fprintf(out, "<line class=\"axis\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/></svg></figure>\n",
            LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM);
}

void kd_chart_draw(FILE *out, const kd_chart *chart)
{
    thinned lines[KD_CHART_LINES];
    for (int k = 0; k < chart->count; k++)
        thin(&lines[k], &chart->lines[k], chart->scale != 0.0 ? chart->scale : 1.0);
    const axis x = x_axis(chart, lines), y = y_axis(chart, lines);
    begin_figure(out, chart->title, chart->unit);
    draw_legend(out, chart);
    begin_drawing(out, chart->title);
    if (chart->share) draw_bars(out, chart, &x);
    draw_y_axis(out, &y);
    if (chart->ticks)
        draw_names(out, chart, &x);
    else
        draw_x_axis(out, &x);
    draw_x_name(out, chart->x_name);
    for (int k = 0; k < chart->count; k++) draw_line(out, &chart->lines[k], &lines[k], &x, &y);
    end_drawing(out);
}

/* ---- reliability ------------------------------------------------------------------------------ */

/* A bar is as full as tokens are in it; the mark is where the model thought it would end. */
static void draw_trust_bar(FILE *out, const kd_eval_trust *t, int i, double share, const axis *x,
                           const axis *y, int colour)
{
    const double left = place(x, (i + 0.06) / KD_EVAL_CONFIDENCES);
    const double right = place(x, (i + 0.94) / KD_EVAL_CONFIDENCES);
    const double top = place(y, t->accuracy), bottom = HEIGHT - BOTTOM;
    const double thought = place(y, t->confidence);
    fprintf(out,
            "<g><title>%lld tokens (%.1f %%): confidence %.1f %%, accuracy %.1f %%</title>"
            "<rect class=\"f%d\" fill-opacity=\"%.2f\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
            "height=\"%.1f\"/><line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" "
            "y2=\"%.1f\"/></g>",
            (long long)t->tokens, 100.0 * share, 100.0 * t->confidence, 100.0 * t->accuracy, colour,
            0.25 + 0.7 * fmin(1.0, 5.0 * share), left, top, right - left, bottom - top, left, right,
            thought, thought);
}

void kd_chart_trust(FILE *out, const char *name, const kd_eval_profile *p, int colour)
{
    char unit[160];
    const axis x = { 0.0, 1.0, LEFT, WIDTH - RIGHT, false };
    const axis y = { 0.0, 1.0, HEIGHT - BOTTOM, TOP, false };
    snprintf(unit, sizeof unit,
             "ECE %.2f %%; accuracy %.1f %%, mean confidence %.1f %%, mean entropy %.2f nats",
             100.0 * p->ece, 100.0 * p->accuracy, 100.0 * p->confidence, p->mean_entropy);
    begin_figure(out, name, unit);
    begin_drawing(out, name);
    draw_y_axis(out, &y);
    draw_x_axis(out, &x);
    draw_x_name(out, "confidence: probability of the likeliest token");
    fprintf(out, "<line class=\"ideal\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>", LEFT,
            HEIGHT - BOTTOM, WIDTH - RIGHT, TOP);
    for (int i = 0; i < KD_EVAL_CONFIDENCES; i++) {
        const kd_eval_trust *t = &p->trust[i];
        if (t->tokens > 0)
            draw_trust_bar(out, t, i, (double)t->tokens / (double)p->tokens, &x, &y, colour);
    }
    end_drawing(out);
}
