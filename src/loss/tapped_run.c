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
static kd_status gather(kd_tensor *all, kd_exec *exec, const kd_tensor *own, const kd_peers *ranks)
{
    const int64_t n = own->shape[0];
    kd_shape shape = kd_shape_of(own);
    shape.dim[0] = ranks->size * n;
    KD_TRY(kd_push(all, exec, "rows of all ranks", KD_F32, shape));
    const kd_tensor part = kd_tensor_slice(all, 0, ranks->rank * n, n);
    KD_TRY(KD_RUN(exec, copy, .y = &part, .x = own));
    return ranks->gather(ranks->context, exec, all);
}

/* Room for the gradient of all rows; nothing where one's own has none. */
static kd_status gather_gradient(kd_tensor *d_all, kd_exec *exec, const kd_tensor *all,
                                 const kd_tensor *d_own)
{
    if (!kd_present(d_own)) return KD_OK;
    KD_TRY(kd_push(d_all, exec, "d rows of all ranks", KD_F32, kd_shape_of(all)));
    return KD_RUN(exec, fill, .y = d_all, .value = 0.0f);
}

/* Adds one's own part of the gradient of all rows. */
static kd_status keep_own(kd_exec *exec, const kd_tensor *d_own, const kd_tensor *d_all, int64_t at)
{
    kd_tensor part;
    if (!kd_present(d_own)) return KD_OK;
    const kd_tensor d = kd_tensor_slice(d_all, 0, at, d_own->shape[0]);
    KD_TRY(kd_push(&part, exec, "d rows", d_own->dtype, kd_shape_of(d_own)));
    KD_TRY(KD_RUN(exec, copy, .y = &part, .x = &d));
    return KD_RUN(exec, add, .y = d_own, .a = d_own, .b = &part);
}

/* The loss over the rows of all ranks, so that what it keeps is the same on all of them; values and
 * gradients of one's own are kept. */
static kd_status run_gathered(kd_exec *exec, const kd_feature_type *type,
                              const kd_feature_args *own, const kd_tapped_batch *batch)
{
    const kd_peers *ranks = batch->ranks;
    const int64_t n = own->student.shape[0], at = ranks->rank * n;
    kd_feature_args all = *own;
    KD_TRY(gather(&all.student, exec, &own->student, ranks));
    KD_TRY(gather(&all.teacher, exec, &own->teacher, ranks));
    KD_TRY(gather(&all.weight, exec, &own->weight, ranks));
    if (kd_present(&own->samples)) {
        all.samples = *batch->samples;
        all.negatives = *batch->negatives;
        KD_TRY(ranks->gather(ranks->context, exec, &all.samples));
        KD_TRY(ranks->gather(ranks->context, exec, &all.negatives));
    }
    KD_TRY(kd_push(&all.loss, exec, "losses of all ranks", KD_F32, KD_SHAPE(ranks->size * n)));
    KD_TRY(gather_gradient(&all.d_student, exec, &all.student, &own->d_student));
    KD_TRY(gather_gradient(&all.d_teacher, exec, &all.teacher, &own->d_teacher));
    KD_TRY(kd_feature_run(exec, type, &all));
    const kd_tensor loss = kd_tensor_slice(&all.loss, 0, at, n);
    KD_TRY(KD_RUN(exec, copy, .y = &own->loss, .x = &loss));
    KD_TRY(keep_own(exec, &own->d_student, &all.d_student, at));
    return keep_own(exec, &own->d_teacher, &all.d_teacher, at);
}

/* Rows of one side as a loss sees them, and where it leaves their gradient. */
typedef struct rows {
    const kd_tensor *x, *dx;
    const kd_projector *projector; /* NULL: as they are */
    kd_projected projected;
    kd_tensor dy, converted;
} rows;

static kd_status project(rows *r, kd_exec *exec, const kd_slab *slab)
{
    r->projected = (kd_projected){ .y = *r->x };
    r->dy = *r->dx;
    if (!r->projector) return KD_OK;
    if (r->x->dtype != slab->dtype) { /* a teacher's */
        KD_TRY(kd_push(&r->converted, exec, "teacher rows", slab->dtype, kd_shape_of(r->x)));
        KD_TRY(KD_RUN(exec, copy, .y = &r->converted, .x = r->x));
        r->x = &r->converted;
    }
    KD_TRY(kd_projector_forward(&r->projected, exec, r->x, slab, r->projector));
    KD_TRY(kd_push(&r->dy, exec, "d projector output", r->x->dtype, kd_shape_of(&r->projected.y)));
    return KD_RUN(exec, fill, .y = &r->dy, .value = 0.0f);
}

static kd_status project_back(const rows *r, kd_exec *exec, const kd_slab *slab)
{
    if (!r->projector) return KD_OK;
    return kd_projector_backward(exec, r->dx, &r->dy, r->x, &r->projected, slab, r->projector);
}

/* What the loss trains and keeps of its own, and which samples it is about. */
static void give_own(kd_feature_args *args, const kd_tapped *t, const kd_layer_pair *pair,
                     const kd_tapped_batch *batch)
{
    const kd_read *state = kd_tapped_state(t->type->reads);
    if (pair->parameter >= 0) {
        const char *name = kd_tapped_parameter(t->type)->name;
        *kd_feature_operand(args, name, false) = kd_slab_master(batch->slab, pair->parameter);
        *kd_feature_operand(args, name, true) = kd_slab_gradient(batch->slab, pair->parameter);
    }
    if (!state) return;
    const int64_t n = args->student.shape[0], at = batch->ranks->rank * n;
    args->samples = kd_tensor_slice(batch->samples, 0, at, n);
    args->negatives = kd_tensor_slice(batch->negatives, 0, at, n);
    for (int i = 0; state; state = kd_tapped_state(state + 1), i++)
        *kd_feature_operand(args, state->name, false) =
            kd_slab_weight(batch->slab, pair->states[i]);
}

static kd_status run_features(kd_exec *exec, const kd_tapped *t, const kd_layer_pair *pair,
                              kd_feature_args *args, const sides *s, const kd_tapped_batch *batch)
{
    static const kd_tensor absent = { 0 };
    const bool projects = t->projector.kind != KD_PROJECTOR_NONE || t->projector.normalise;
    rows student = { .x = &s->student->value,
                     .dx = &s->student->gradient,
                     .projector = projects ? &pair->projector : NULL };
    rows teacher = { .x = &s->teacher->value,
                     .dx = &absent,
                     .projector = projects && t->dimension ? &pair->to_teacher : NULL };
    KD_TRY(project(&student, exec, batch->slab));
    KD_TRY(project(&teacher, exec, batch->slab));
    args->student = as_read(&student.projected.y, t->type);
    args->d_student = as_read(&student.dy, t->type);
    args->teacher = as_read(&teacher.projected.y, t->type);
    args->d_teacher = as_read(&teacher.dy, t->type);
    give_own(args, t, pair, batch);
    KD_TRY(t->type->relates && batch->ranks->size > 1 ? run_gathered(exec, t->type, args, batch)
                                                      : kd_feature_run(exec, t->type, args));
    KD_TRY(project_back(&student, exec, batch->slab));
    return project_back(&teacher, exec, batch->slab);
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
    const int64_t n = batch->targets->weight.shape[0];
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor loss;
    KD_TRY(kd_push(&loss, exec, "losses over taps", KD_F32, KD_SHAPE(n)));
    const kd_tensor row = kd_tensor_of(loss.data, KD_F32, KD_SHAPE(1, n));
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
    kd_tapped_batch own = *batch;
    for (int i = 0; i < objective->count; i++) {
        const kd_term *term = &objective->terms[i];
        if (term->student != student || !term->tapped) continue;
        const kd_tensor scale = scale_of(scalars, slot);
        const kd_tensor total = kd_tensor_slice(totals, 0, slot++, 1);
        own.negatives = batch->negatives + i;
        KD_TRY(run_term(exec, term, &own, &scale, &total));
    }
    return KD_OK;
}
