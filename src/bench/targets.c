/* What a CPU's cells are to reach beside their peers, and where the time goes in one that does not. */
#include "bench/bench.h"

#include <math.h>
#include <stdlib.h>

enum { SHOWN_OPS = 8 };

static const struct target {
    const char *row, *peer; /* the one that it is said of; NULL: each */
    double speed;           /* their time over ours, at least */
    double memory;          /* our peak over theirs, at most; 0: none is set */
} targets[] = {
    { "step", NULL, 1.1, 0.5 },
    { "prefill", NULL, 1.0, 0 },
    { "decode", NULL, 1.0, 0 },
    { "row_loss", "eager", 4.0, 0 },
    { "loss", NULL, 1.0, 0 },
    { "loss attention_transfer", "eager", 4.0, 0 },
    { "loss nst", "eager", 4.0, 0 },
    { "loss pkt", "eager", 4.0, 0 },
    { "loss rkd_angle", "eager", 20.0, 0.02 },
    { "loss sp", "eager", 4.0, 0 },
};

typedef struct tally {
    int missed, met;
} tally;

/* Where a program's time went, the most first. */
static void print_profile(FILE *out, const bench_result *r)
{
    bool shown[KD_OP_COUNT] = { false };
    double all = 0;
    for (int op = 0; op < KD_OP_COUNT; op++) all += r->op_seconds[op];
    fprintf(out, "    profile:");
    for (int n = 0; n < SHOWN_OPS; n++) {
        int most = 0;
        for (int op = 1; op < KD_OP_COUNT; op++)
            if (!shown[op] && (shown[most] || r->op_seconds[op] > r->op_seconds[most])) most = op;
        if (shown[most] || !(r->op_seconds[most] > 0)) break;
        shown[most] = true;
        fprintf(out, "%s %s %.1f %%", n ? "," : "", kd_op_infos[most].name,
                100 * r->op_seconds[most] / all);
    }
    fprintf(out, " of the time in ops\n");
}

/* How far a cell is from what the machine allows, which is all of its profile. */
static void print_rate(FILE *out, const bench_report *report, const bench_result *r)
{
    const bench_work work = r->row->work(r->shape);
    const double rate = work.bytes / r->time.median;
    if (work.flops > 0) {
        const double products =
            r->shape->dtype == KD_F32 ? report->rates.flops_f32 : report->rates.flops_bf16;
        fprintf(out, "    profile: %.1f GFLOP/s, products have %.1f\n",
                1e-9 * work.flops / r->time.median, 1e-9 * products);
        return;
    }
    fprintf(out, "    profile: %.1f GB/s of operands, a copy has %.1f\n", 1e-9 * rate,
            1e-9 * report->rates.copy);
}

static void judge(FILE *out, tally *count, const bench_report *report, const bench_result *r,
                  const struct target *target)
{
    char name[128];
    const int before = count->missed;
    kd_bench_cell_name(name, sizeof name, r->row, r->shape);
    for (int p = 0; p < r->peer_count; p++) {
        const bench_peer *peer = &r->peers[p];
        const double speed = kd_bench_ratio(r, peer), memory = 1 / kd_bench_memory_ratio(r, peer);
        if (target->peer && strcmp(peer->name, target->peer) != 0) continue;
        if (speed < target->speed)
            fprintf(out, "%s  %-40s %-8s %5.2f x as fast, target %.1f x\n",
                    count->missed++ ? "" : "missed\n", name, peer->name, speed, target->speed);
        if (target->memory > 0 && memory > target->memory)
            fprintf(out, "%s  %-40s %-8s takes %.1f %% of its memory, target %.0f %%\n",
                    count->missed++ ? "" : "missed\n", name, peer->name, 100 * memory,
                    100 * target->memory);
        count->met += speed >= target->speed;
        count->met += target->memory > 0 && memory <= target->memory;
    }
    if (count->missed == before) return;
    if (r->row->program)
        print_profile(out, r);
    else
        print_rate(out, report, r);
}

/* ---- bf16 beside f32 -------------------------------------------------------------------------- */

static bool has_amx(void)
{
    char *text;
    size_t bytes;
    if (kd_file_read(&text, &bytes, "/proc/cpuinfo", 1 << 24) != KD_OK) return false;
    const bool found = strstr(text, " amx_bf16") != NULL;
    free(text);
    return found;
}

/* Our step in bf16 beside the same in f32. */
static void print_types(FILE *out, const bench_report *report)
{
    double f32 = NAN, bf16 = NAN;
    for (int i = 0; i < report->count; i++) {
        const bench_result *r = &report->results[i];
        if (strcmp(r->row->name, "step") != 0 || !(r->time.median > 0)) continue;
        *(r->shape->dtype == KD_F32 ? &f32 : &bf16) = r->time.median;
    }
    if (isnan(f32 / bf16)) return;
    const bool amx = has_amx();
    fprintf(out, "step: bf16 is %.2f x f32; %s\n", f32 / bf16,
            !amx                ? "no AMX here, so the target of 1.5 x on AMX is not measured"
            : f32 / bf16 >= 1.5 ? "the target of 1.5 x on AMX is met"
                                : "missed: the target on AMX is 1.5 x");
}

void kd_bench_print_targets(FILE *out, const bench_report *report)
{
    tally count = { 0, 0 };
    if (strcmp(report->device.type, "cpu") != 0) return;
    for (int i = 0; i < report->count; i++)
        for (int t = 0; t < KD_COUNT(targets); t++)
            if (kd_bench_row_is(report->results[i].row, targets[t].row))
                judge(out, &count, report, &report->results[i], &targets[t]);
    if (count.missed + count.met > 0)
        fprintf(out, "%d of %d targets missed\n", count.missed, count.missed + count.met);
    print_types(out, report);
    if (count.missed + count.met > 0) fputc('\n', out);
}
