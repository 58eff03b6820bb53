/*
 * What the correlation of neighbours owes: the loss per row, the gradient added to what is there, no
 * neighbour for the last row and for a lone one, rows that do not count and are not read, weights, either
 * type on either side.
 */
#include "oracle/pairs.h"
#include "support/support.h"

#include <math.h>
#include <omp.h>

static const kd_dtype dtypes[] = { KD_F32, KD_BF16 };
static const float scale_of_d = 0.75f;

typedef struct operands {
    kd_tensor student, teacher, weight, scale, loss, d;
} operands;

static operands make(test_bench *b, int64_t rows, int64_t columns, kd_dtype s, kd_dtype t)
{
    const double scale = scale_of_d;
    const kd_shape shape = KD_SHAPE(rows, columns);
    return (operands){ .student = test_filled(b, s, shape, 3, -1, 1),
                       .teacher = test_filled(b, t, shape, 2, -1, 1),
                       .weight = test_filled(b, KD_F32, KD_SHAPE(rows), 0, 0, 2),
                       .scale = test_values(b, KD_F32, KD_SHAPE(1), &scale),
                       .loss = test_tensor(b, KD_F32, KD_SHAPE(rows), 0),
                       .d = test_filled(b, s, shape, 1, -1, 1) };
}

static kd_status run(kd_exec *exec, const operands *o, const kd_tensor *weight, const kd_tensor *d)
{
    return KD_RUN(exec, correlation, .d_student = d, .loss = &o->loss, .student = &o->student,
                  .teacher = &o->teacher, .weight = weight, .scale = &o->scale);
}

/* A row that is not to be read. */
static void leave_out(const operands *o, const kd_tensor *weight, int64_t row)
{
    const int64_t columns = o->student.shape[1];
    if (!weight) return;
    test_set(weight, row, 0);
    for (int64_t i = 0; i < columns; i++) test_set(&o->student, row * columns + i, NAN);
}

Test(correlation, agrees_with_the_oracle)
{
    static const int64_t rows[] = { 0, 1, 2, 5, 37 }, widths[] = { 1, 7, 513 };
    test_bench b;
    test_open(&b, 0);
    for (int c = 0; c < KD_COUNT(rows) * KD_COUNT(widths) * 8; c++) {
        const int64_t n = rows[c / 8 % KD_COUNT(rows)], width = widths[c / 8 / KD_COUNT(rows)];
        const int mark = test_mark(&b);
        const operands o = make(&b, n, width, dtypes[c & 1], dtypes[c >> 1 & 1]);
        const kd_tensor *weight = c >> 2 & 1 ? &o.weight : NULL;
        if (n > 2) test_set(&o.student, 0, test_get(&o.teacher, 0));
        if (n > 4) leave_out(&o, weight, 1), leave_out(&o, weight, 2), leave_out(&o, weight, n - 1);
        const oracle_pairs p = { test_doubles(&b, &o.student), test_doubles(&b, &o.teacher),
                                 weight ? test_doubles(&b, weight) : NULL, scale_of_d, n };
        double *loss = test_zeros(&b, n), *d = test_doubles(&b, &o.d);
        if (n > 0) oracle_correlation(d, loss, &p, width);
        test_ok(run(&b.exec, &o, weight, &o.d));
        test_near(&o.loss, loss, (double)width, (double)width, "%d rows of %d: loss", (int)n,
                  (int)width);
        test_near(&o.d, d, 8, 4, "%d rows of %d: d", (int)n, (int)width);
        test_fill_constant(&o.loss, NAN);
        test_ok(run(&b.exec, &o, weight, NULL));
        test_near(&o.loss, loss, (double)width, (double)width, "%d rows of %d: loss alone", (int)n,
                  (int)width);
        test_release(&b, mark);
    }
    test_close(&b);
}

enum { ROWS = 4, COLUMNS = 3 };

static double value(void *data)
{
    const oracle_pairs *p = data;
    double loss[ROWS], total = 0;
    oracle_correlation(NULL, loss, p, COLUMNS);
    for (int i = 0; i < ROWS; i++) total += p->scale * loss[i];
    return total;
}

Test(correlation, oracle_gradient_is_central_differences)
{
    test_bench b;
    test_open(&b, 0);
    for (int round = 0; round < 4; round++) {
        double x[ROWS * COLUMNS], t[ROWS * COLUMNS], w[ROWS], loss[ROWS];
        double d[ROWS * COLUMNS] = { 0 };
        for (int i = 0; i < ROWS * COLUMNS; i++) {
            x[i] = 2 * test_uniform(&b) - 1;
            t[i] = 2 * test_uniform(&b) - 1;
        }
        for (int i = 0; i < ROWS; i++) w[i] = test_uniform(&b);
        oracle_pairs p = { x, t, round % 2 ? w : NULL, 1.5, ROWS };
        oracle_correlation(d, loss, &p, COLUMNS);
        test_gradient(value, &p, x, ROWS * COLUMNS, d, "round %d", round);
    }
    test_close(&b);
}

Test(correlation, same_bits_plans_and_refusals)
{
    test_bench b;
    test_open(&b, 0);
    operands o[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i + 1);
        b.seed = 5;
        o[i] = make(&b, 70, 600, KD_F32, KD_BF16);
        test_ok(run(&b.exec, &o[i], &o[i].weight, &o[i].d));
    }
    test_same_bits(&o[0].loss, &o[1].loss, "loss");
    test_same_bits(&o[0].d, &o[1].d, "d");

    const operands f = { test_untouchable(&o[0].student), test_untouchable(&o[0].teacher),
                         test_untouchable(&o[0].weight),  test_untouchable(&o[0].scale),
                         test_untouchable(&o[0].loss),    test_untouchable(&o[0].d) };
    kd_stack counting;
    kd_exec plan = test_planning(&b, &counting);
    test_ok(run(&plan, &f, &f.weight, &f.d));
    operands odd = o[0];
    odd.teacher = test_filled(&b, KD_F32, KD_SHAPE(70, 5), 0, -1, 1);
    test_refused(run(&b.exec, &odd, NULL, NULL), KD_EINVAL, "correlation: teacher");
    odd = o[0];
    odd.scale = (kd_tensor){ 0 };
    test_ok(run(&b.exec, &odd, NULL, NULL));
    test_refused(run(&b.exec, &odd, NULL, &o[0].d), KD_EINVAL, "scale: absent");
    test_refused(run(&b.exec, &odd, &o[1].scale, NULL), KD_EINVAL, "weight: found");
    test_close(&b);
}
