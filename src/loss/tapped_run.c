/* Terms over taps, one pair of layers after the other. */
#include "loss/relate.h"
#include "loss/tapped.h"

/* ---- operands --------------------------------------------------------------------------------- */

typedef struct sides {
    kd_tap *student, *student_k, *teacher, *teacher_k; /* keys of maps only */
} sides;

static kd_status find_sides(sides *s, const kd_tapped *t, const kd_layer_pair *pair,
                            kd_taps *student, kd_taps *teacher)
{
    *s = (sides){ .student = kd_taps_find(student, t->kind, pair->student),
                  .teacher = kd_taps_find(teacher, t->kind, pair->teacher) };
    if (kd_tapped_form_of(t->type) == KD_TAPPED_MAPS) {
        s->student_k = kd_taps_find(student, KD_TAP_KEY, pair->student);
        s->teacher_k = kd_taps_find(teacher, KD_TAP_KEY, pair->teacher);
    }
    if (s->student && s->teacher) return KD_OK;
    return kd_fail(KD_EINTERNAL, "%s: layers %d-%d have no tap", t->type->name, pair->student,
                   pair->teacher);
}

/* What attention has saved is of the pairs and scores that it has seen. */
static kd_tensor lse_of(const kd_tap *tap, const kd_relate_options *o, double softcap)
{
    const bool same = o->causal && o->window == tap->window && (float)softcap == tap->softcap;
    return same ? tap->lse : (kd_tensor){ 0 };
}

/* Where the run does not say, rows see what the models' attention lets them. */
static void see_as_models(kd_relate_options *o, const sides *s)
{
    const int64_t a = s->student->window, b = s->teacher->window;
    if (o->window == 0) o->window = a && b ? kd_min_i64(a, b) : kd_max_i64(a, b);
    if (s->student_k && o->softcap == 0) o->softcap = (double)s->student->softcap;
    if (s->teacher_k && o->teacher_softcap == 0) o->teacher_softcap = (double)s->teacher->softcap;
}

static void give_attention(kd_feature_args *args, const kd_relate_options *o, const sides *s)
{
    if (!s->student_k) {
        args->student = s->student->value;
        args->d_student = s->student->gradient;
        args->teacher = s->teacher->value;
        return;
    }
    args->student_q = s->student->value;
    args->d_student_q = s->student->gradient;
    args->student_k = s->student_k->value;
    args->d_student_k = s->student_k->gradient;
    args->teacher_q = s->teacher->value;
    args->teacher_k = s->teacher_k->value;
    args->student_lse = lse_of(s->student, o, o->softcap);
    args->teacher_lse = lse_of(s->teacher, o, o->teacher_softcap);
}

/* [B, D] seen as [B, D, 1, 1] by losses over maps. */
static kd_tensor as_read(const kd_tensor *rows, const kd_feature_type *type)
{
    kd_tensor t = *rows;
    if (kd_read_rank(&type->reads[0]) != 4 || !kd_present(rows)) return t;
    t.rank = 4;
    t.shape[2] = t.shape[3] = 1;
    t.stride[2] = t.stride[3] = 1;
    return t;
}

/* ---- one pair --------------------------------------------------------------------------------- */

static kd_status run_attention(kd_exec *exec, const kd_tapped *t, kd_feature_args *args,
                               const sides *s)
{
    kd_relate_options options;
    memcpy(&options, t->options, sizeof options);
    see_as_models(&options, s);
    give_attention(args, &options, s);
    args->options = &options;
    return kd_feature_run(exec, t->type, args);
}

/* Rows of this rank among those of all, f32 [ranks N, ...]. */
static kd_status gather(kd_tensor *all, kd_exec *exec, const kd_tensor *own,
                        const kd_ranks_sum *ranks)
{
    const int64_t n = own->shape[0];
    kd_shape shape = kd_shape_of(own);
    shape.dim[0] = ranks->size * n;
    KD_TRY(kd_push(all, exec, "rows of all ranks", KD_F32, shape));
    KD_TRY(KD_RUN(exec, fill, .y = all, .value = 0.0f));
    const kd_tensor part = kd_tensor_slice(all, 0, ranks->rank * n, n);
    KD_TRY(KD_RUN(exec, copy, .y = &part, .x = own));
    return ranks->sum(ranks->context, exec, all);
}

/* The loss over the rows of all ranks; values and gradients of one's own are kept. */
static kd_status run_gathered(kd_exec *exec, const kd_feature_type *type,
                              const kd_feature_args *own, const kd_ranks_sum *ranks)
{
    const int64_t n = own->student.shape[0], at = ranks->rank * n;
    kd_feature_args all = *own;
    kd_tensor d_own;
    KD_TRY(gather(&all.student, exec, &own->student, ranks));
    KD_TRY(gather(&all.teacher, exec, &own->teacher, ranks));
    KD_TRY(gather(&all.weight, exec, &own->weight, ranks));
    KD_TRY(kd_push(&all.loss, exec, "losses of all ranks", KD_F32, KD_SHAPE(ranks->size * n)));
    KD_TRY(kd_push(&all.d_student, exec, "d rows of all ranks", KD_F32, kd_shape_of(&all.student)));
    KD_TRY(KD_RUN(exec, fill, .y = &all.d_student, .value = 0.0f));
    KD_TRY(kd_feature_run(exec, type, &all));
    const kd_tensor loss = kd_tensor_slice(&all.loss, 0, at, n);
    const kd_tensor d = kd_tensor_slice(&all.d_student, 0, at, n);
    KD_TRY(KD_RUN(exec, copy, .y = &own->loss, .x = &loss));
    KD_TRY(kd_push(&d_own, exec, "d rows", own->d_student.dtype, kd_shape_of(&own->d_student)));
    KD_TRY(KD_RUN(exec, copy, .y = &d_own, .x = &d));
    return KD_RUN(exec, add, .y = &own->d_student, .a = &own->d_student, .b = &d_own);
}

static kd_status run_features(kd_exec *exec, const kd_tapped *t, const kd_layer_pair *pair,
                              kd_feature_args *args, const sides *s, const kd_tapped_batch *batch)
{
    const bool projects = t->projector.kind != KD_PROJECTOR_NONE || t->projector.normalise;
    const bool gathers = t->type->relates && batch->ranks->size > 1;
    const kd_tensor *x = &s->student->value, *dx = &s->student->gradient;
    kd_projected projected = { .y = *x };
    kd_tensor dy = *dx;
    if (projects) {
        KD_TRY(kd_projector_forward(&projected, exec, x, batch->slab, &pair->projector));
        KD_TRY(kd_push(&dy, exec, "d projector output", x->dtype, kd_shape_of(&projected.y)));
        KD_TRY(KD_RUN(exec, fill, .y = &dy, .value = 0.0f));
    }
    args->student = as_read(&projected.y, t->type);
    args->d_student = as_read(&dy, t->type);
    args->teacher = as_read(&s->teacher->value, t->type);
    if (pair->parameter >= 0) {
        const char *name = kd_tapped_parameter(t->type)->name;
        *kd_feature_operand(args, name, false) = kd_slab_master(batch->slab, pair->parameter);
        *kd_feature_operand(args, name, true) = kd_slab_gradient(batch->slab, pair->parameter);
    }
    KD_TRY(gathers ? run_gathered(exec, t->type, args, batch->ranks)
                   : kd_feature_run(exec, t->type, args));
    return projects
               ? kd_projector_backward(exec, dx, &dy, x, &projected, batch->slab, &pair->projector)
               : KD_OK;
}

kd_status kd_tapped_run(const kd_term *term, int pair, kd_exec *exec, const kd_tapped_batch *batch,
                        const kd_tensor *scale, const kd_tensor *loss)
{
    const kd_tapped *t = term->tapped;
    const kd_layer_pair *layers = &t->pairs[pair];
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_feature_args args = { .weight = batch->targets->weight,
                             .scale = *scale,
                             .loss = *loss,
                             .documents = *batch->documents,
                             .options = t->options };
    sides s;
    KD_TRY(find_sides(&s, t, layers, batch->taps[term->student], batch->taps[term->teacher]));
    const kd_status status = t->kind == KD_TAP_HIDDEN
                                 ? run_features(exec, t, layers, &args, &s, batch)
                                 : run_attention(exec, t, &args, &s);
    kd_stack_release(exec->stack, mark);
    return status == KD_OK ? KD_OK : kd_fail(status, "loss.%s: %s", term->name, kd_last_error());
}

/* ---- all of a student ------------------------------------------------------------------------- */

/* Where the device finds the scale of term `slot`. */
static kd_tensor scale_of(const kd_tensor *scalars, int slot)
{
    const size_t at = offsetof(kd_step_scalars, term) + (size_t)slot * sizeof(kd_term_scalars) +
                      offsetof(kd_term_scalars, scale);
    return kd_tensor_of((unsigned char *)scalars->data + at, KD_F32, KD_SHAPE(1));
}

static kd_status run_term(kd_exec *exec, const kd_term *term, const kd_tapped_batch *batch,
                          const kd_tensor *scale, const kd_tensor *total)
{
    const int64_t rows = batch->targets->weight.shape[0];
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor loss;
    KD_TRY(kd_push(&loss, exec, "losses over taps", KD_F32, KD_SHAPE(rows)));
    const kd_tensor row = kd_tensor_of(loss.data, KD_F32, KD_SHAPE(1, rows));
    for (int k = 0; k < term->tapped->count; k++) {
        KD_TRY(kd_tapped_run(term, k, exec, batch, scale, &loss));
        KD_TRY(KD_RUN(exec, sum_rows, .y = total, .x = &row));
    }
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

kd_status kd_objective_taps(const kd_objective *objective, kd_exec *exec, int student,
                            const kd_tapped_batch *batch, const kd_tensor *scalars,
                            const kd_tensor *totals)
{
    int slot = kd_objective_row_terms(objective, student);
    for (int i = 0; i < objective->count; i++) {
        const kd_term *term = &objective->terms[i];
        if (term->student != student || !term->tapped) continue;
        const kd_tensor scale = scale_of(scalars, slot);
        const kd_tensor total = kd_tensor_slice(totals, 0, slot++, 1);
        KD_TRY(run_term(exec, term, batch, &scale, &total));
    }
    return KD_OK;
}
