/*
 * nst - the student's channels are distributed over the places as the teacher's are: maximum mean discrepancy
 * with the polynomial kernel (x y)^2 (NST; Huang and Wang, Like What You Like: Knowledge Distill via Neuron
 * Selectivity Transfer, 2017, eq. 7 and 8 with d = 2, c = 0).
 *
 *     x_i, y_j  =  f_i / max(|f_i|, eps)      one row of H W places per channel of student, teacher
 *     value of sample  =  mean_ij (x_i x_j)^2 + mean_ij (y_i y_j)^2 - 2 mean_ij (x_i y_j)^2
 *                      =  |x'x / C - y'y / C'|^2       which is what is computed
 *     d / d x          =  4 / C x (x'x / C - y'y / C')
 *
 * Reads     student [B, C, H, W], teacher [B, C', H, W]: any C and C', the same places.
 * Unit      sample: the term is the mean over the batch.
 * Defaults  eps 1e-12; RepDistiller weighs it with 50, summed over stages.
 * Invariant under permutation of either side's channels, and a factor for each channel.
 * Odd cases A channel of zeros is a row of zeros.  With one place every channel that is not 0 is the same: no
 *           gradient.
 * Cost      products over places or over channels, whichever are fewer operations, for as many samples at a
 *           time as 64 MB hold: never B C C' H W.  Over channels a value has an error of about 1e-7 (it is at
 *           most 2) and is not below 0.
 * Elsewhere RepDistiller pools the larger maps to the smaller, and holds B C C' H W products.  The paper's
 *           MXNet code has eps 1e-10 and leaves out mean (y_i y_j)^2, which has no gradient.
 */
#include "loss/maps.h"

typedef struct options {
    double eps;
} options;

static const kd_option rows[] = {
    { "eps", KD_FLOAT, offsetof(options, eps), "1e-12", 0, 1e6, "",
      "the least that a channel's length counts as" },
    { 0 },
};

enum { CHUNK_BYTES = 64 << 20 };

typedef struct plan {
    int64_t c, ct, places;
    int64_t samples; /* at a time */
    bool by_channel;
} plan;

/* Multiplications by places s^2 (2c + ct), by channels s (2 c^2 + 2 c ct + ct^2). */
static plan plan_of(const kd_tensor *student, const kd_tensor *teacher)
{
    plan p = { .c = student->shape[1],
               .ct = teacher->shape[1],
               .places = student->shape[2] * student->shape[3] };
    const int64_t s = p.places, c = p.c, ct = p.ct;
    const double squares = 2.0 * (double)c * (double)(c + ct) + (double)ct * (double)ct;
    p.by_channel = (double)s * (double)(2 * c + ct) > squares;
    const double products = p.by_channel ? (double)(c * (c + ct) + ct * ct) : 2.0 * (double)(s * s);
    const double each = (double)sizeof(float) * (products + (double)(s * (5 * c + 3 * ct)));
    p.samples = kd_min_i64(kd_max_i64((int64_t)(CHUNK_BYTES / (each + 1)), 1), student->shape[0]);
    return p;
}

/* Samples that are done at a time. */
typedef struct chunk {
    kd_tensor student, teacher, d_student, loss, weight;
} chunk;

static kd_tensor part(const kd_tensor *t, int64_t first, int64_t count)
{
    return kd_present(t) ? kd_tensor_slice(t, 0, first, count) : (kd_tensor){ 0 };
}

static kd_tensor turned(const kd_tensor *t)
{
    kd_tensor to = *t;
    to.shape[1] = t->shape[2], to.stride[1] = t->stride[2];
    to.shape[2] = t->shape[1], to.stride[2] = t->stride[1];
    return to;
}

/* `maps` [B, C, H, W] flat, or where samples have weights a copy in f32 with zeros in those of weight 0. */
static kd_status counted(kd_tensor *flat, kd_exec *exec, const kd_tensor *maps,
                         const kd_tensor *weight, const char *what)
{
    kd_tensor from, share;
    KD_TRY(kd_maps_flat(flat, maps, what));
    if (!kd_present(weight)) return KD_OK;
    KD_TRY(kd_maps_rows(&from, maps, what));
    KD_TRY(kd_push(flat, exec, "nst.counted", KD_F32, kd_shape_of(flat)));
    KD_TRY(kd_push(&share, exec, "nst.share", KD_F32, KD_SHAPE(from.shape[0])));
    const kd_tensor to = kd_tensor_of(flat->data, KD_F32, kd_shape_of(&from));
    return KD_RUN(exec, keep_rows, .y = &to, .share = &share, .x = &from, .weight = weight);
}

static kd_status unit(kd_tensor *norm, kd_exec *exec, const kd_tensor *y, const kd_tensor *x,
                      float eps)
{
    KD_TRY(kd_push(norm, exec, "nst.norm", KD_F32, KD_SHAPE(x->shape[0] * x->shape[1])));
    return KD_RUN(exec, normalise, .y = y, .norm = norm, .x = x, .eps = eps);
}

/* d_student of rows x whose unit vectors have the gradient `d`. */
static kd_status backward(kd_exec *exec, const kd_tensor *d_student, const kd_tensor *d,
                          const kd_tensor *x, const kd_tensor *norm, float eps)
{
    kd_tensor dx = *d_student;
    const bool same = d_student->dtype == x->dtype;
    if (!same) {
        KD_TRY(kd_push(&dx, exec, "nst.gradient", KD_F32, kd_shape_of(d_student)));
        KD_TRY(KD_RUN(exec, copy, .y = &dx, .x = d_student));
    }
    KD_TRY(KD_RUN(exec, normalise_backward, .dx = &dx, .dy = d, .x = x, .norm = norm, .eps = eps));
    return same ? KD_OK : KD_RUN(exec, copy, .y = d_student, .x = &dx);
}

/* Both sides' rows are in one tensor, x above y. */
static kd_status run_chunk(kd_exec *exec, const chunk *k, const plan *p, const kd_tensor *scale,
                           float eps)
{
    const int64_t b = k->student.shape[0], c = p->c, ct = p->ct, s = p->places;
    const bool wide = p->by_channel, gradient = kd_present(&k->d_student);
    kd_tensor xs, xt, d_student, z, norm, teacher_norm, student, teacher, d;
    KD_TRY(counted(&xs, exec, &k->student, &k->weight, "student"));
    KD_TRY(counted(&xt, exec, &k->teacher, &k->weight, "teacher"));
    KD_TRY(kd_maps_flat(&d_student, &k->d_student, "d_student"));
    KD_TRY(kd_push(&z, exec, "nst.unit", KD_F32, KD_SHAPE(b, c + ct, s)));
    const kd_tensor x = kd_tensor_slice(&z, 1, 0, c), y = kd_tensor_slice(&z, 1, c, ct);
    const kd_tensor xx = turned(&x), yy = turned(&y), zz = turned(&z);
    KD_TRY(unit(&norm, exec, &x, &xs, eps));
    KD_TRY(unit(&teacher_norm, exec, &y, &xt, eps));
    KD_TRY(kd_push(&student, exec, "nst.student", KD_F32,
                   KD_SHAPE(b, wide ? c : s, wide ? c + ct : s)));
    KD_TRY(
        kd_push(&teacher, exec, "nst.teacher", KD_F32, KD_SHAPE(b, wide ? ct : s, wide ? ct : s)));
    KD_TRY(KD_RUN(exec, matmul_batched, .y = &student, .a = wide ? &x : &xx, .b = wide ? &zz : &x));
    KD_TRY(KD_RUN(exec, matmul_batched, .y = &teacher, .a = wide ? &y : &yy, .b = wide ? &yy : &y));
    KD_TRY(KD_RUN(exec, gram_distance, .student = &student, .loss = &k->loss, .teacher = &teacher,
                  .weight = &k->weight, .scale = gradient ? scale : NULL, .channels = c,
                  .teacher_channels = ct, .by_channel = wide));
    if (!gradient) return KD_OK;
    KD_TRY(kd_push(&d, exec, "nst.d_unit", KD_F32, KD_SHAPE(b, c, s)));
    KD_TRY(KD_RUN(exec, matmul_batched, .y = &d, .a = wide ? &student : &x,
                  .b = wide ? &z : &student));
    return backward(exec, &d_student, &d, &xs, &norm, eps);
}

static kd_status run(kd_exec *exec, const kd_feature_args *args)
{
    const float eps = (float)((const options *)args->options)->eps;
    KD_TRY(kd_maps_match(&args->student, &args->teacher));
    const plan p = plan_of(&args->student, &args->teacher);
    if (p.c < 1 || p.ct < 1)
        return kd_fail(KD_EINVAL, "found %lld and %lld channels, expected 1 or more",
                       (long long)p.c, (long long)p.ct);
    for (int64_t at = 0; at < args->student.shape[0]; at += p.samples) {
        const int64_t n = kd_min_i64(p.samples, args->student.shape[0] - at);
        const chunk k = { .student = part(&args->student, at, n),
                          .teacher = part(&args->teacher, at, n),
                          .d_student = part(&args->d_student, at, n),
                          .loss = part(&args->loss, at, n),
                          .weight = part(&args->weight, at, n) };
        const kd_mark mark = kd_stack_mark(exec->stack);
        KD_TRY(run_chunk(exec, &k, &p, &args->scale, eps));
        kd_stack_release(exec->stack, mark);
    }
    return KD_OK;
}

const kd_feature_type kd_feature_nst = {
    .name = "nst",
    .help = "channels spread over places alike (NST)",
    .unit = KD_UNIT_SAMPLE,
    .places = true,
    .reads = { { "student", "[B, C, H, W]", KD_READ_GRADIENT }, { "teacher", "[B, C', H, W]", 0 } },
    .options = rows,
    .run = run,
};
