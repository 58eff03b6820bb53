/*
 * row_distance - how far a student's row x is from its teacher's y.
 *
 *     squared           |x - y|^2         gradient  2 (x - y)
 *     cosine            1 - x' y'                   (e - x' |e|^2 / 2) / |x|
 *     normalised        |x' - y'|^2                 2 (e - x' |e|^2 / 2) / |x|
 *     normalised_root   |x' - y'|                   (e - x' |e|^2 / 2) / (|x| |e|)
 *
 * with x' = x / |x|, y' = y / |y| and e = x' - y'.  For unit vectors 1 - x' y' = |e|^2 / 2, which keeps
 * its relative precision where x and y nearly agree, as 1 - x' y' does not; and x' e = |e|^2 / 2.
 *
 * A row no longer than 1e-12 is dead: x' is 0 and the row gets no gradient (PyTorch's normalize divides
 * it by 1e-12 and gives it one of that size).  Then a normalised distance is |y'|, and a cosine distance
 * is 1, of two dead rows too.  The root has gradient 0 where e is 0.
 */
#include "ops/rowio.h"

#include <math.h>

static const double dead = 1e-12;

kd_status kd_row_distance_check(const kd_row_distance_args *args)
{
    KD_TRY(kd_expect_rows(args->student, "student"));
    KD_TRY(kd_tensor_expect(args->student, "student", -1, KD_SHAPE(-1, -1)));
    const kd_shape shape = kd_shape_of(args->student);
    KD_TRY(kd_expect_rows_of(args->teacher, "teacher", args->teacher->dtype, shape));
    KD_TRY(kd_expect_rows(args->teacher, "teacher"));
    if (kd_present(args->d_student))
        KD_TRY(kd_expect_rows_of(args->d_student, "d_student", args->student->dtype, shape));
    if (kd_present(args->weight))
        KD_TRY(kd_expect_list(args->weight, "weight", KD_F32, shape.dim[0]));
    KD_TRY(kd_expect_list(args->scale, "scale", KD_F32, 1));
    KD_TRY(kd_expect_list(args->loss, "loss", KD_F32, shape.dim[0]));
    if ((unsigned)args->kind < KD_DISTANCE_COUNT) return KD_OK;
    return kd_fail(KD_EINVAL, "kind: found %d, expected 0 to %d", (int)args->kind,
                   KD_DISTANCE_COUNT - 1);
}

/* Both rows, each by a factor: 1, or what makes it a unit vector; 0 of a dead one. */
typedef struct pair {
    kd_row x, y;
    float x_factor, y_factor;
    int64_t columns;
} pair;

static float unit_factor(kd_row row, int64_t columns)
{
    const double length = sqrt(kd_row_dot(row, row, columns));
    return length <= dead ? 0.0f : (float)(1.0 / length); /* NaN is not dead */
}

static double squared_difference(const pair *p)
{
    float xb[KD_STRIP], yb[KD_STRIP];
    double total = 0;
    for (int64_t at = 0; at < p->columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, p->columns - at);
        const float *x = kd_row_load(xb, p->x, at, n), *y = kd_row_load(yb, p->y, at, n);
        float strip = 0;
#pragma omp simd reduction(+ : strip)
        for (int64_t i = 0; i < n; i++) {
            const float e = x[i] * p->x_factor - y[i] * p->y_factor;
            strip += e * e;
        }
        total += strip;
    }
    return total;
}

/* d += slope (e - back x'). */
static void add_gradient(kd_row d, const pair *p, float slope, float back)
{
    float xb[KD_STRIP], yb[KD_STRIP], db[KD_STRIP], ob[KD_STRIP];
    for (int64_t at = 0; at < p->columns; at += KD_STRIP) {
        const int64_t n = kd_min_i64(KD_STRIP, p->columns - at);
        const float *x = kd_row_load(xb, p->x, at, n), *y = kd_row_load(yb, p->y, at, n);
        const float *before = kd_row_load(db, d, at, n);
        float *out = kd_row_begin(ob, d, at);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            const float u = x[i] * p->x_factor;
            out[i] = before[i] + slope * (u - y[i] * p->y_factor - back * u);
        }
        kd_row_finish(d, at, out, n);
    }
}

/* The value, and what its gradient is in the terms of add_gradient. */
static double measure(const pair *p, kd_distance kind, float *slope, float *back)
{
    const double squares = squared_difference(p), root = sqrt(squares);
    *back = (float)(squares / 2);
    switch (kind) {
    case KD_DISTANCE_COSINE:
        *slope = p->x_factor;
        return p->x_factor == 0.0f || p->y_factor == 0.0f ? 1.0 : squares / 2;
    case KD_DISTANCE_NORMALISED: *slope = 2 * p->x_factor; return squares;
    case KD_DISTANCE_NORMALISED_ROOT:
        *slope = root > 0 ? (float)(p->x_factor / root) : 0.0f;
        return root;
    default: *slope = 2, *back = 0; return squares;
    }
}

/* A dead row of the teacher leaves e = x': back is 1 / 2 there, and the cosine is flat. */
static float measured_row(const kd_row_distance_args *args, int64_t row, float weight)
{
    const int64_t columns = args->student->shape[1];
    const bool unit = args->kind != KD_DISTANCE_SQUARED;
    pair p = { kd_row_of(args->student, row), kd_row_of(args->teacher, row), 1, 1, columns };
    float slope, back;
    if (unit) p.x_factor = unit_factor(p.x, columns), p.y_factor = unit_factor(p.y, columns);
    const double value = measure(&p, args->kind, &slope, &back);
    const float share = weight * args->factor;
    if (unit && p.y_factor == 0.0f) slope = 0; /* |x'| is 1 whatever x is */
    if (kd_present(args->d_student) && slope != 0.0f)
        add_gradient(kd_row_of(args->d_student, row), &p,
                     *(const float *)args->scale->data * share * slope, back);
    return (float)(share * value);
}

kd_status kd_row_distance_cpu(kd_exec *exec, const kd_row_distance_args *args)
{
    if (kd_planning(exec)) return KD_OK;
    const int64_t rows = args->student->shape[0];
    const float *weight = kd_present(args->weight) ? args->weight->data : NULL;
    float *loss = args->loss->data;
#pragma omp parallel for schedule(static) if (kd_tensor_elements(args->student) > KD_PARALLEL_ABOVE)
    for (int64_t row = 0; row < rows; row++) {
        const float w = weight ? weight[row] : 1.0f;
        loss[row] = w == 0.0f ? 0.0f : measured_row(args, row, w);
    }
    return KD_OK;
}
