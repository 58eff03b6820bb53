/* What was found: lost comparisons first, then a line per cell; as JSON; against an earlier one. */
#include "bench/bench.h"

#include <math.h>

double kd_bench_floor(const bench_rates *rates, const bench_row *row, const bench_shape *shape)
{
    const bench_work work = row->work(shape);
    const double rate = shape->dtype == KD_F32 ? rates->flops_f32 : rates->flops_bf16;
    const double moved = work.bytes / rates->copy, computed = work.flops / rate;
    return work.in_turn ? moved + computed : fmax(moved, computed);
}

const char *kd_bench_cell_name(char *name, size_t size, const bench_row *row,
                               const bench_shape *shape)
{
    int used = snprintf(name, size, "%s%s%s %s", row->name, shape->variant[0] ? " " : "",
                        shape->variant, kd_dtype_name(shape->dtype));
    for (int i = 0; row->letters[i] && used > 0 && (size_t)used < size; i++)
        used += snprintf(name + used, size - (size_t)used, " %c=%lld", row->letters[i],
                         (long long)shape->dim[i]);
    return name;
}

/* ---- the table -------------------------------------------------------------------------------- */

double kd_bench_ratio(const bench_result *r, const bench_peer *peer)
{
    if (peer->error[0] || peer->differs || !(r->time.median > 0)) return NAN;
    return peer->time.median / r->time.median;
}

double kd_bench_memory_ratio(const bench_result *r, const bench_peer *peer)
{
    if (peer->error[0] || !(r->taken > 0)) return NAN;
    return peer->bytes / r->taken;
}

static double least_ratio(const bench_result *r)
{
    double least = NAN;
    for (int i = 0; i < r->peer_count; i++) least = fmin(least, kd_bench_ratio(r, &r->peers[i]));
    return least;
}

static void print_lost(FILE *out, const bench_report *report)
{
    int lost = 0, compared = 0;
    char name[128];
    for (int i = 0; i < report->count; i++) {
        const bench_result *r = &report->results[i];
        for (int p = 0; p < r->peer_count; p++) {
            const double x = kd_bench_ratio(r, &r->peers[p]);
            compared += !isnan(x);
            if (!(x < 1)) continue;
            if (!lost++) fprintf(out, "lost\n");
            fprintf(out, "  %-52s %-16s %5.2f x\n",
                    kd_bench_cell_name(name, sizeof name, r->row, r->shape), r->peers[p].name, x);
        }
    }
    if (compared) fprintf(out, "%d of %d comparisons lost\n\n", lost, compared);
}

void kd_bench_print_cell(FILE *out, const bench_report *report, const bench_result *r)
{
    char name[128];
    const bench_work work = r->row->work(r->shape);
    kd_bench_cell_name(name, sizeof name, r->row, r->shape);
    if (r->error[0]) {
        fprintf(out, "%-52s not run: %s\n", name, r->error);
        return;
    }
    const bool predicted = strcmp(report->rates.how, "predicted") == 0;
    const double seconds = predicted ? r->floor : r->time.median;
    fprintf(out, "%-52s %10.4f ms", name, 1e3 * seconds);
    if (!predicted) fprintf(out, " [%.4f, %.4f]", 1e3 * r->time.low, 1e3 * r->time.high);
    if (r->row->program)
        fprintf(out, " %8.1f tokens/s", kd_bench_tokens(r->row, r->shape) / seconds);
    else if (work.flops > 0)
        fprintf(out, " %8.2f TFLOP/s", 1e-12 * work.flops / seconds);
    else
        fprintf(out, " %8.1f GB/s   ", 1e-9 * work.bytes / seconds);
    if (!r->row->program)
        fprintf(out, predicted ? " predicted" : " %3.0f %% of floor", 100 * r->floor / seconds);
    if (r->taken > 0) fprintf(out, " %.0f MB", 1e-6 * r->taken);
    for (int p = 0; p < r->peer_count; p++) {
        const bench_peer *peer = &r->peers[p];
        if (peer->error[0])
            fprintf(out, "; %s: %s", peer->name, peer->error);
        else if (peer->differs)
            fprintf(out, "; %s: another loss", peer->name);
        else
            fprintf(out, "; %s %.2f x", peer->name, kd_bench_ratio(r, peer));
        if (peer->error[0] || !isfinite(peer->bytes)) continue;
        fprintf(out, " %.0f MB", 1e-6 * peer->bytes);
        const double memory = kd_bench_memory_ratio(r, peer);
        if (isfinite(memory)) fprintf(out, " (%.1f %%)", 100 / memory);
    }
    fputc('\n', out);
}

/* One line per row that has peers: the geometric mean of the least ratios. */
static void print_means(FILE *out, const bench_report *report)
{
    for (int i = 0; i < report->count;) {
        const bench_row *row = report->results[i].row;
        double sum = 0;
        int n = 0;
        for (; i < report->count && report->results[i].row == row; i++) {
            const double x = least_ratio(&report->results[i]);
            if (isnan(x)) continue;
            sum += log(x);
            n++;
        }
        if (n) fprintf(out, "%-24s %5.2f x its best peer (%d cells)\n", row->name, exp(sum / n), n);
    }
}

void kd_bench_print(FILE *out, const bench_report *report)
{
    const bench_rates *rates = &report->rates;
    fprintf(out, "%s: copy %.1f GB/s, products %.2f f32 and %.2f bf16 TFLOP/s, %s\n\n",
            report->device.name, 1e-9 * rates->copy, 1e-12 * rates->flops_f32,
            1e-12 * rates->flops_bf16, rates->how);
    print_lost(out, report);
    kd_bench_print_targets(out, report);
    for (int i = 0; i < report->count; i++) kd_bench_print_cell(out, report, &report->results[i]);
    print_means(out, report);
}

/* ---- JSON ------------------------------------------------------------------------------------- */

static json_t *real(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *time_json(const bench_time *t)
{
    return json_pack("{s:o, s:o, s:o, s:i}", "low", real(t->low), "median", real(t->median), "high",
                     real(t->high), "samples", t->samples);
}

static json_t *peer_json(const bench_peer *peer)
{
    if (peer->error[0]) return json_pack("{s:s, s:s}", "name", peer->name, "error", peer->error);
    return json_pack("{s:s, s:o, s:o, s:b}", "name", peer->name, "seconds", time_json(&peer->time),
                     "bytes", real(peer->bytes), "differs", (int)peer->differs);
}

static json_t *cell_json(const bench_result *r)
{
    char name[128];
    kd_bench_cell_name(name, sizeof name, r->row, r->shape);
    if (r->error[0]) return json_pack("{s:s, s:s}", "cell", name, "error", r->error);
    const bench_work work = r->row->work(r->shape);
    json_t *peers = json_array(), *ops = json_object();
    for (int op = 0; op < KD_OP_COUNT && r->op_seconds; op++)
        if (r->op_seconds[op] > 0)
            (void)json_object_set_new(ops, kd_op_infos[op].name, json_real(r->op_seconds[op]));
    for (int p = 0; p < r->peer_count; p++)
        (void)json_array_append_new(peers, peer_json(&r->peers[p]));
    return json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "cell", name, "seconds",
                     time_json(&r->time), "floor", real(r->floor), "bytes", real(work.bytes),
                     "flops", real(work.flops), "taken", real(r->taken), "value", real(r->value),
                     "ops", ops, "peers", peers);
}

kd_status kd_bench_write(const char *path, const bench_report *report)
{
    const int64_t before = kd_json_refused();
    json_t *cells = json_array();
    for (int i = 0; i < report->count; i++)
        (void)json_array_append_new(cells, cell_json(&report->results[i]));
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o}", "device",
                             report->device.name, "software", report->device.software, "version",
                             KD_VERSION, "how", report->rates.how, "copy", real(report->rates.copy),
                             "flops_f32", real(report->rates.flops_f32), "flops_bf16",
                             real(report->rates.flops_bf16), "cells", cells);
    KD_TRY(kd_json_made(&root, before, path));
    const kd_status status = kd_json_write(path, root);
    json_decref(root);
    return status;
}

/* ---- against an earlier one ------------------------------------------------------------------- */

static const json_t *find_cell(const json_t *root, const char *name)
{
    size_t i;
    const json_t *cell;
    json_array_foreach(json_object_get(root, "cells"), i, cell)
    {
        const char *text = json_string_value(json_object_get(cell, "cell"));
        if (text && strcmp(text, name) == 0) return cell;
    }
    return NULL;
}

/* Slower by more than both spreads together, and than 3 %. */
static bool slower(double *before, const json_t *cell, const bench_time *now)
{
    const json_t *then = json_object_get(cell, "seconds");
    *before = json_number_value(json_object_get(then, "median"));
    const double spread = json_number_value(json_object_get(then, "high")) -
                          json_number_value(json_object_get(then, "low"));
    if (!(*before > 0) || !(now->median > 0)) return false;
    return now->median - *before > fmax(spread + now->high - now->low, 0.03 * *before);
}

kd_status kd_bench_compare(FILE *out, const char *path, const bench_report *report)
{
    json_t *root = NULL;
    int compared = 0, worse = 0;
    KD_TRY(kd_json_read(&root, path));
    for (int i = 0; i < report->count; i++) {
        char name[128];
        double before;
        const bench_result *r = &report->results[i];
        const json_t *cell =
            find_cell(root, kd_bench_cell_name(name, sizeof name, r->row, r->shape));
        if (!cell || r->error[0]) continue;
        compared++;
        if (!slower(&before, cell, &r->time)) continue;
        worse++;
        fprintf(out, "slower: %-52s %.4f ms, was %.4f ms\n", name, 1e3 * r->time.median,
                1e3 * before);
    }
    json_decref(root);
    fprintf(out, "%d of %d cells slower than in %s\n", worse, compared, path);
    if (worse) return kd_fail(KD_EINTERNAL, "%d cells are slower than in %s", worse, path);
    return compared ? KD_OK
                    : kd_fail(KD_EFORMAT, "%s: holds none of the cells that were run", path);
}
