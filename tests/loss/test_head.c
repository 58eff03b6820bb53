/*
 * What the head of a student owes against a teacher of whom the K largest classes are known: value and
 * gradients of the formulas in double, whatever the chunk; all classes where K is all of them; the dense
 * values wherever it is measured.
 */
#include "loss/loss.h"
#include "oracle/topk.h"
#include "support/support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum { ROWS = 10, COUNTED = 7, CLASSES = 23, OWN = 6, ITS = 5, MOST = 3, ROOM = 12 };

static const int32_t counted[COUNTED] = { 8, 0, 3, 4, 9, 6, 1 };

typedef struct head_fixture {
    test_bench *bench;
    kd_taps taps[2]; /* the teacher's, the student's */
    kd_targets targets;
    kd_tensor totals, scalars;
    kd_step_scalars values;
    kd_term terms[MOST];
    kd_objective objective;
    kd_row_results results;
} head_fixture;

static kd_head random_head(test_bench *b, kd_dtype dtype, int64_t width, int64_t vocabulary,
                           bool bias)
{
    kd_head head = { .classes = CLASSES };
    head.hidden = test_filled(b, dtype, KD_SHAPE(ROWS, width), 1, -1, 1);
    head.weight = test_filled(b, dtype, KD_SHAPE(vocabulary, width), 0, -2, 2);
    head.d_weight = test_tensor(b, KD_F32, KD_SHAPE(vocabulary, width), 0);
    test_fill_constant(&head.d_weight, 0.25);
    if (!bias) return head;
    head.bias = test_filled(b, dtype, KD_SHAPE(vocabulary), 0, -1, 1);
    head.d_bias = test_tensor(b, KD_F32, KD_SHAPE(vocabulary), 0);
    test_fill_constant(&head.d_bias, 0.5);
    return head;
}

static void add_term(head_fixture *f, kd_row_kind kind, double temperature, double weight)
{
    f->terms[f->objective.count++] = (kd_term){ .name = kd_row_types[kind].name,
                                                .kind = kind,
                                                .weight = { weight, weight, 0 },
                                                .student = 1,
                                                .teacher = kd_row_types[kind].teacher ? 0 : -1,
                                                .temperature = temperature,
                                                .t_squared = temperature > 1.0,
                                                .option = kd_row_types[kind].option_default };
}

/* Cross entropy, where it is asked for, and two terms over the teacher. */
static void open_fixture(head_fixture *f, test_bench *b, const kd_dtype *dtypes, kd_logit_view view,
                         int64_t chunk, bool bias, bool labels)
{
    *f = (head_fixture){ .bench = b };
    b->seed = 5;
    f->taps[0].head = random_head(b, dtypes[0], ITS, CLASSES + 4, !bias);
    f->taps[1].head = random_head(b, dtypes[1], OWN, CLASSES + 2, bias);
    const kd_shape room = KD_SHAPE(ROOM);
    f->targets = (kd_targets){ test_tensor(b, KD_I32, room, 0), test_tensor(b, KD_I32, room, 0),
                               test_tensor(b, KD_F32, KD_SHAPE(ROWS), 0), COUNTED };
    test_fill_constant(&f->targets.rows, -1);
    test_fill_constant(&f->targets.labels, -1);
    test_fill_constant(&f->targets.weight, 0);
    for (int i = 0; i < COUNTED; i++) {
        test_set(&f->targets.rows, i, counted[i]);
        test_set(&f->targets.labels, i, (5 * i + 2) % CLASSES);
        test_set(&f->targets.weight, counted[i], 1);
    }
    f->objective =
        (kd_objective){ .terms = f->terms, .chunk = chunk, .classes = CLASSES, .logits = view };
    if (labels) add_term(f, KD_ROW_cross_entropy, 1.0, 0.25);
    add_term(f, KD_ROW_forward_kl, 2.0, 0.75);
    add_term(f, KD_ROW_jsd, view.others == KD_OTHERS_TAIL ? 2.0 : 1.5, 0.5);
    kd_objective_scalars(&f->values, &f->objective, 1, 0, COUNTED);
    f->scalars = kd_tensor_of(&f->values, KD_U8, KD_SHAPE((int64_t)sizeof f->values));
    f->totals = test_tensor(b, KD_F32, KD_SHAPE(f->objective.count + 1), 0);
    test_fill_constant(&f->totals, 0);
    f->results = (kd_row_results){
        test_tensor(b, KD_F32, KD_SHAPE(f->objective.count, ROOM), 0),
        test_tensor(b, KD_F32, room, 0),
    };
}

static kd_status run_fixture(head_fixture *f, bool train)
{
    kd_taps *taps[] = { &f->taps[0], &f->taps[1] };
    return kd_objective_head(&f->objective, &f->bench->exec, 1, taps, &f->targets, &f->scalars,
                             &f->totals, &f->results, train);
}

/* ---- the formulas in double --------------------------------------------------------------------- */

/* In the model's type, if not `whole`. */
static void logits_of(double *z, const kd_head *head, int64_t row, bool whole)
{
    const int64_t width = head->hidden.shape[1];
    for (int64_t j = 0; j < CLASSES; j++) {
        z[j] = kd_present(&head->bias) ? test_get(&head->bias, j) : 0.0;
        for (int64_t i = 0; i < width; i++)
            z[j] +=
                test_get(&head->hidden, row * width + i) * test_get(&head->weight, j * width + i);
        if (!whole && head->hidden.dtype == KD_BF16)
            z[j] = (double)kd_bf16_to_f32(kd_f32_to_bf16((float)z[j]));
    }
}

static const double *sorted_by;

static int larger_first(const void *a, const void *b)
{
    const double x = sorted_by[(int)*(const double *)a], y = sorted_by[(int)*(const double *)b];
    if (x == y) return *(const double *)a < *(const double *)b ? -1 : 1;
    return x < y ? 1 : -1;
}

/* The logits of few classes are products in f32, whatever the models compute in. */
static bool restricts(const head_fixture *f, const kd_term *term)
{
    const kd_logit_view *view = &f->objective.logits;
    return view->top_k && view->others == KD_OTHERS_RESTRICTED && term->teacher >= 0;
}

/* Value and gradient over all classes of a row of one term. */
static double term_of(double *gradient, const head_fixture *f, const kd_term *term, int64_t label,
                      const double *z, const double *t)
{
    const kd_logit_view *view = &f->objective.logits;
    const double capture = view->others == KD_OTHERS_TAIL ? 2.0 : 1.0;
    const bool all_classes = term->teacher < 0 || view->top_k == 0;
    double ids[CLASSES], log_p[CLASSES], every[CLASSES], own[CLASSES], g[CLASSES];
    oracle_row row = { .kind = term->kind,
                       .classes = CLASSES,
                       .student = z,
                       .teacher = t,
                       .label = label,
                       .temperature = term->temperature,
                       .option = term->option };
    for (int j = 0; j < CLASSES; j++) ids[j] = j, gradient[j] = 0.0;
    sorted_by = t;
    qsort(ids, CLASSES, sizeof *ids, larger_first);
    oracle_log_softmax(every, t, CLASSES, capture);
    for (int64_t k = 0; k < view->top_k; k++) {
        log_p[k] = every[(int)ids[k]];
        own[k] = z[(int)ids[k]];
    }
    if (all_classes) {
        oracle_row_gradient(gradient, &row);
        return oracle_row_value(&row);
    }
    if (!restricts(f, term)) {
        const oracle_topk known = {
            row,     view->others == KD_OTHERS_TAIL ? KD_TOPK_TAIL : KD_TOPK_RENORMALISED,
            capture, view->top_k,
            ids,     log_p,
            NULL,    NAN
        };
        oracle_topk_gradient(gradient, &known);
        return oracle_topk_value(&known);
    }
    row.classes = view->top_k;
    row.student = own;
    row.teacher = log_p;
    oracle_row_gradient(g, &row);
    for (int64_t k = 0; k < view->top_k; k++) gradient[(int)ids[k]] = g[k];
    return oracle_row_value(&row);
}

typedef struct wanted {
    double total[MOST], hidden[ROWS * OWN], weight[(CLASSES + 2) * OWN], bias[CLASSES + 2];
} wanted;

static void want_of(wanted *w, const head_fixture *f)
{
    const kd_head *head = &f->taps[1].head;
    *w = (wanted){ .total = { 0 } };
    for (int i = 0; i < (CLASSES + 2) * OWN; i++) w->weight[i] = 0.25;
    for (int j = 0; j < CLASSES + 2; j++) w->bias[j] = 0.5;
    for (int r = 0; r < COUNTED; r++) {
        double z[CLASSES], exact[CLASSES], t[CLASSES], gradient[CLASSES], g[CLASSES] = { 0 };
        const int64_t n = counted[r];
        logits_of(z, head, n, f->objective.logits.f32);
        logits_of(exact, head, n, true);
        logits_of(t, &f->taps[0].head, n, f->objective.logits.f32);
        for (int k = 0; k < f->objective.count; k++) {
            const kd_term *term = &f->terms[k];
            const double squared = term->t_squared ? term->temperature * term->temperature : 1.0;
            w->total[k] +=
                squared * term_of(gradient, f, term, (int64_t)test_get(&f->targets.labels, r),
                                  restricts(f, term) ? exact : z, t);
            for (int j = 0; j < CLASSES; j++)
                g[j] += term->weight.to / COUNTED * squared * gradient[j];
        }
        for (int j = 0; j < CLASSES; j++) {
            w->bias[j] += g[j];
            for (int i = 0; i < OWN; i++) {
                w->hidden[n * OWN + i] += g[j] * test_get(&head->weight, j * OWN + i);
                w->weight[j * OWN + i] += g[j] * test_get(&head->hidden, n * OWN + i);
            }
        }
    }
}

static void check(const kd_tensor *got, const double *want, double slack, const char *name,
                  const char *what)
{
    for (int64_t i = 0; i < kd_tensor_elements(got); i++)
        cr_assert(fabs(test_get(got, i) - want[i]) <= slack * (1.0 + fabs(want[i])),
                  "%s: %s[%lld] is %.9g, expected %.9g", name, what, (long long)i, test_get(got, i),
                  want[i]);
}

static void check_fixture(head_fixture *f, const char *name)
{
    const kd_head *head = &f->taps[1].head;
    const bool whole = head->hidden.dtype == KD_F32;
    const double own = whole ? 1e-5 : 0x1p-7;
    const kd_tensor totals = kd_tensor_slice(&f->totals, 0, 0, f->objective.count);
    wanted w;
    want_of(&w, f);
    check(&totals, w.total, 2e-5, name, "total");
    check(&head->d_hidden, w.hidden, own, name, "d hidden");
    check(&head->d_weight, w.weight, own, name, "d weight");
    if (kd_present(&head->d_bias)) check(&head->d_bias, w.bias, own, name, "d bias");
}

/* Teacher and student in f32 or bf16, logits of either model in its type or all in f32; K 0: all. */
Test(head, is_the_formula)
{
    static const int64_t known[] = { 0, 1, 5, CLASSES }, chunks[] = { 3, 4, ROOM };
    test_bench b;
    test_open(&b, 1 << 20);
    for (int i = 0; i < 4 * 3 * 4 * 2 * 2; i++) {
        const kd_others others = (kd_others)(i / 4 % 3);
        const kd_logit_view view = { i / 48 % 2, known[i % 4], others };
        const kd_dtype dtypes[] = { i / 12 % 2 ? KD_BF16 : KD_F32, i / 24 % 2 ? KD_BF16 : KD_F32 };
        const int mark = test_mark(&b);
        const kd_mark stack = kd_stack_mark(&b.stack);
        char name[96];
        head_fixture f;
        open_fixture(&f, &b, dtypes, view, chunks[i % 3], i % 5 < 3, i / 96 % 2);
        snprintf(name, sizeof name, "K %d, others %d, %s from %s, f32 logits %d", (int)view.top_k,
                 (int)others, kd_dtype_name(dtypes[1]), kd_dtype_name(dtypes[0]), view.f32);
        test_ok(run_fixture(&f, true));
        check_fixture(&f, name);
        kd_stack_release(&b.stack, stack);
        test_release(&b, mark);
    }
    test_close(&b);
}

static const kd_dtype both_f32[] = { KD_F32, KD_F32 };

/* Rows do not change with the chunk, bit for bit. */
Test(head, of_known_classes_has_the_same_rows_in_any_chunk)
{
    test_bench b;
    test_open(&b, 1 << 20);
    for (int others = KD_OTHERS_TAIL; others <= KD_OTHERS_RESTRICTED; others++) {
        head_fixture f[2];
        const kd_mark stack = kd_stack_mark(&b.stack);
        const int mark = test_mark(&b);
        for (int i = 0; i < 2; i++) {
            open_fixture(&f[i], &b, both_f32, (kd_logit_view){ false, 4, (kd_others)others },
                         i ? 3 : ROOM, true, true);
            test_ok(run_fixture(&f[i], true));
        }
        test_same_bits(&f[0].results.losses, &f[1].results.losses, "others %d", others);
        test_same_bits(&f[0].taps[1].head.d_hidden, &f[1].taps[1].head.d_hidden, "others %d",
                       others);
        kd_stack_release(&b.stack, stack);
        test_release(&b, mark);
    }
    test_close(&b);
}

Test(head, measures_all_classes_whatever_is_trained_on)
{
    test_bench b;
    test_open(&b, 1 << 20);
    for (int others = KD_OTHERS_TAIL; others <= KD_OTHERS_RESTRICTED; others++) {
        head_fixture f;
        wanted w;
        const int mark = test_mark(&b);
        open_fixture(&f, &b, both_f32, (kd_logit_view){ false, 4, (kd_others)others }, 4, false,
                     true);
        test_ok(run_fixture(&f, false));
        f.objective.logits = (kd_logit_view){ false, CLASSES, KD_OTHERS_RENORMALISED };
        want_of(&w, &f);
        const kd_tensor totals = kd_tensor_slice(&f.totals, 0, 0, f.objective.count);
        check(&totals, w.total, 1e-5, "measured", "total");
        test_release(&b, mark);
    }
    test_close(&b);
}
