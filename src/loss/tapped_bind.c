/* Terms over taps meet the models: layers, widths, taps and parameters. */
#include "loss/tapped.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- refusals --------------------------------------------------------------------------------- */

/* "student (LlamaForCausalLM) offers logits, hidden[0..20], query, key and value[0..19]" */
static const char *print_offer(char *text, size_t size, const kd_offer *o)
{
    int n = snprintf(text, size, "%s (%s) offers logits, hidden[0..%d]%s", o->label,
                     o->architecture, o->layers, o->samples ? " of samples" : "");
    if (o->heads && n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, ", query, key and value[0..%d]", o->layers - 1);
    return text;
}

static kd_status check_offer(const kd_term *term, const kd_offer *offer)
{
    const kd_feature_type *type = term->tapped->type;
    const bool features = kd_tapped_form_of(type) == KD_TAPPED_FEATURES;
    const int projector = term->tapped->projector.kind;
    char text[192];
    if (projector == KD_PROJECTOR_CONV1X1 || projector == KD_PROJECTOR_CONV)
        return kd_fail(KD_EINVAL, "loss.%s.projector: %s reads feature maps [B, C, H, W]; %s",
                       term->name, projector == KD_PROJECTOR_CONV ? "conv" : "conv1x1",
                       print_offer(text, sizeof text, offer));
    if (!features && offer->heads == 0)
        return kd_fail(KD_EINVAL, "loss.%s: %s needs queries, keys and values; %s", term->name,
                       type->name, print_offer(text, sizeof text, offer));
    if (type->places)
        return kd_fail(KD_EINVAL, "loss.%s: %s compares places of feature maps; %s", term->name,
                       type->name, print_offer(text, sizeof text, offer));
    if (features && type->unit == KD_UNIT_SAMPLE && !offer->samples)
        return kd_fail(KD_EINVAL, "loss.%s: %s needs features of samples; %s", term->name,
                       type->name, print_offer(text, sizeof text, offer));
    return KD_OK;
}

/* The last that a term may read. */
static int last_layer(const kd_tapped *t, const kd_offer *offer)
{
    return t->kind == KD_TAP_HIDDEN ? offer->layers : offer->layers - 1;
}

static kd_status check_layer(const kd_term *term, int layer, const kd_offer *offer)
{
    char text[192];
    if (layer <= last_layer(term->tapped, offer)) return KD_OK;
    return kd_fail(KD_EINVAL, "loss.%s.layers: found %d, but %s", term->name, layer,
                   print_offer(text, sizeof text, offer));
}

/* ---- layers ----------------------------------------------------------------------------------- */

static kd_status find_pairs(kd_tapped *t, kd_arena *arena, const kd_offer *student,
                            const kd_offer *teacher)
{
    const int s = last_layer(t, student), e = last_layer(t, teacher);
    const int64_t m = student->layers, n = teacher->layers;
    if (t->rule == KD_LAYERS_LIST) return KD_OK;
    t->count = t->rule == KD_LAYERS_LAST ? 1 : s + 1;
    KD_TRY(KD_ARENA_ARRAY(&t->pairs, arena, t->count));
    if (t->rule == KD_LAYERS_LAST) {
        t->pairs[0] = (kd_layer_pair){ .student = s, .teacher = e };
        return KD_OK;
    }
    /* The output of block i is hidden[i + 1], and the attention of block i is mapped as that. */
    const int shift = t->kind == KD_TAP_HIDDEN ? 0 : 1;
    for (int i = 0; i <= s; i++) {
        const int64_t to = m > 0 ? (i + shift) * n / m - shift : 0;
        t->pairs[i] = (kd_layer_pair){ .student = i, .teacher = (int)kd_max_i64(to, 0) };
    }
    return KD_OK;
}

/* Both features have one shape in the formula. */
static bool wants_equal(const kd_feature_type *type)
{
    const char *student = NULL, *teacher = NULL;
    for (const kd_read *r = type->reads; r->name; r++) {
        if (strcmp(r->name, "student") == 0) student = r->shape;
        if (strcmp(r->name, "teacher") == 0) teacher = r->shape;
    }
    return student && teacher && strcmp(student, teacher) == 0;
}

/* One projector for all pairs wants all as wide. */
static kd_status check_shared(const kd_term *term, const kd_layer_pair *pair, const kd_projector *a,
                              const kd_projector *b)
{
    const kd_layer_pair *first = &term->tapped->pairs[0];
    if (!term->tapped->projector.shared || (a->in == b->in && a->out == b->out)) return KD_OK;
    return kd_fail(KD_EINVAL,
                   "loss.%s.projector.shared: layers %d-%d want one from %lld to %lld, layers "
                   "%d-%d from %lld to %lld",
                   term->name, first->student, first->teacher, (long long)a->in, (long long)a->out,
                   pair->student, pair->teacher, (long long)b->in, (long long)b->out);
}

/* Both sides go to the banks' dimension. */
static kd_status bind_banks(const kd_term *term, kd_layer_pair *pair, const kd_offer *student,
                            const kd_offer *teacher)
{
    const kd_tapped *t = term->tapped;
    const int64_t in = student->widths[pair->student], its = teacher->widths[pair->teacher];
    pair->projector = (kd_projector){ .options = &t->projector, .in = in, .out = t->dimension };
    pair->to_teacher = (kd_projector){ .options = &t->projector, .in = its, .out = t->dimension };
    KD_TRY(check_shared(term, pair, &t->pairs[0].projector, &pair->projector));
    KD_TRY(check_shared(term, pair, &t->pairs[0].to_teacher, &pair->to_teacher));
    if (t->projector.kind != KD_PROJECTOR_NONE || (in == t->dimension && its == t->dimension))
        return KD_OK;
    return kd_fail(
        KD_EINVAL,
        "loss.%s: hidden[%d] of %s is %lld wide, hidden[%d] of %s %lld, and dimension is "
        "%lld: `projector: linear` (or mlp) brings both to it",
        term->name, pair->student, student->label, (long long)in, pair->teacher, teacher->label,
        (long long)its, (long long)t->dimension);
}

static kd_status bind_pair(const kd_term *term, kd_layer_pair *pair, const kd_offer *student,
                           const kd_offer *teacher)
{
    const kd_tapped *t = term->tapped;
    pair->parameter = -1;
    KD_TRY(check_layer(term, pair->student, student));
    KD_TRY(check_layer(term, pair->teacher, teacher));
    if (t->kind != KD_TAP_HIDDEN) return KD_OK;
    if (t->dimension) return bind_banks(term, pair, student, teacher);
    const int64_t in = student->widths[pair->student], out = teacher->widths[pair->teacher];
    pair->projector = (kd_projector){ .options = &t->projector, .in = in, .out = out };
    KD_TRY(check_shared(term, pair, &t->pairs[0].projector, &pair->projector));
    if (in == out || t->projector.kind != KD_PROJECTOR_NONE || !wants_equal(t->type)) return KD_OK;
    return kd_fail(KD_EINVAL,
                   "loss.%s: hidden[%d] of %s is %lld wide, hidden[%d] of %s %lld: `projector: "
                   "linear` (or mlp) brings one to the other",
                   term->name, pair->student, student->label, (long long)in, pair->teacher,
                   teacher->label, (long long)out);
}

kd_status kd_terms_bind(kd_term *terms, int count, kd_arena *arena, const kd_offer *offers)
{
    for (int i = 0; i < count; i++) {
        kd_term *term = &terms[i];
        if (!term->tapped) continue;
        const kd_offer *student = &offers[term->student], *teacher = &offers[term->teacher];
        KD_TRY(check_offer(term, student));
        KD_TRY(check_offer(term, teacher));
        KD_TRY(find_pairs(term->tapped, arena, student, teacher));
        for (int k = 0; k < term->tapped->count; k++)
            KD_TRY(bind_pair(term, &term->tapped->pairs[k], student, teacher));
    }
    return KD_OK;
}

bool kd_terms_keep_banks(const kd_term *terms, int count)
{
    for (int i = 0; i < count; i++)
        if (terms[i].tapped && terms[i].tapped->dimension) return true;
    return false;
}

void kd_terms_give_data(kd_term *terms, int count, const kd_crd_classes *data)
{
    for (int i = 0; i < count; i++)
        if (terms[i].tapped && terms[i].tapped->dimension) terms[i].tapped->data = data;
}

/* ---- taps and parameters ---------------------------------------------------------------------- */

kd_status kd_terms_request(const kd_term *terms, int count, kd_taps *const *taps)
{
    for (int i = 0; i < count; i++) {
        const kd_tapped *t = terms[i].tapped;
        kd_taps *student = taps[terms[i].student], *teacher = t ? taps[terms[i].teacher] : NULL;
        const bool maps = t && kd_tapped_form_of(t->type) == KD_TAPPED_MAPS;
        for (int k = 0; t && k < t->count; k++) {
            KD_TRY(kd_taps_request(student, t->kind, t->pairs[k].student, true));
            KD_TRY(kd_taps_request(teacher, t->kind, t->pairs[k].teacher, false));
            if (!maps) continue;
            KD_TRY(kd_taps_request(student, KD_TAP_KEY, t->pairs[k].student, true));
            KD_TRY(kd_taps_request(teacher, KD_TAP_KEY, t->pairs[k].teacher, false));
        }
    }
    return KD_OK;
}

/* Of pair `k`: its projectors, where they are its own, and what the loss trains beside them. */
static kd_status declare_pair(const kd_term *term, int k, kd_params *params, int block)
{
    const kd_tapped *t = term->tapped;
    kd_layer_pair *pair = &t->pairs[k];
    const kd_read *own = kd_tapped_parameter(t->type);
    char name[64], full[96];
    pair->parameter = -1;
    if (t->kind != KD_TAP_HIDDEN) return KD_OK;
    snprintf(name, sizeof name, "loss.%s.%d", term->name, k);
    if (k > 0 && t->projector.shared) {
        pair->projector = t->pairs[0].projector;
        pair->to_teacher = t->pairs[0].to_teacher;
    } else {
        KD_TRY(kd_projector_declare(&pair->projector, params, name, block));
        snprintf(full, sizeof full, "%s.teacher", name);
        if (t->dimension) KD_TRY(kd_projector_declare(&pair->to_teacher, params, full, block));
    }
    if (!own) return KD_OK;
    /* One for each channel of what is compared. */
    snprintf(full, sizeof full, "%s.%s", name, own->name);
    return kd_params_declare(&pair->parameter, params, full, KD_SHAPE(pair->projector.out),
                             KD_PARAM_EXTRA, block);
}

/* "[n, D]" of a bank, "[2]": the number of samples, the dimension, or as it says. */
static kd_shape state_shape(const kd_read *state, const kd_tapped *t)
{
    kd_shape shape = { .rank = 0 };
    for (const char *c = state->shape; *c; c++) {
        if (strchr("[, ]", *c)) continue;
        shape.dim[shape.rank++] = *c == 'n'   ? t->data->samples
                                  : *c == 'D' ? t->dimension
                                              : *c - '0';
    }
    return shape;
}

static kd_status declare_states(const kd_term *term, int k, kd_params *params, int block)
{
    const kd_tapped *t = term->tapped;
    const kd_read *state = kd_tapped_state(t->type->reads);
    char name[96];
    for (int i = 0; state; state = kd_tapped_state(state + 1), i++) {
        snprintf(name, sizeof name, "loss.%s.%d.%s", term->name, k, state->name);
        KD_TRY(kd_params_declare(&t->pairs[k].states[i], params, name, state_shape(state, t),
                                 KD_PARAM_EXTRA | KD_PARAM_STATE, block));
    }
    return KD_OK;
}

kd_status kd_terms_declare(const kd_term *terms, int count, kd_params *params, int student,
                           int block)
{
    for (int states = 0; states < 2; states++)
        for (int i = 0; i < count; i++) {
            const kd_tapped *t = terms[i].tapped;
            if (!t || terms[i].student != student) continue;
            for (int k = 0; k < t->count; k++)
                KD_TRY(states ? declare_states(&terms[i], k, params, block)
                              : declare_pair(&terms[i], k, params, block));
        }
    return KD_OK;
}

static kd_status begin(const kd_tapped *t, kd_exec *exec, const kd_slab *slab, int parameter)
{
    const kd_tensor weight = kd_slab_weight(slab, parameter);
    const kd_tensor master = kd_slab_master(slab, parameter);
    const float value = t->type->begin(t->options);
    KD_TRY(KD_RUN(exec, fill, .y = &weight, .value = value));
    return KD_RUN(exec, fill, .y = &master, .value = value);
}

/* Rows of a bank point anywhere and are about 1 long; any other state is not known yet: 0. */
static kd_status begin_state(kd_exec *exec, const kd_tensor *state, uint64_t stream, uint64_t seed)
{
    enum { PIECE = 1 << 18 };
    const int64_t n = kd_tensor_elements(state);
    const kd_tensor all = kd_tensor_of(state->data, KD_F32, KD_SHAPE(n));
    const double reach = state->rank == 2 ? sqrt(3.0 / (double)state->shape[1]) : 0.0;
    float *values = malloc(PIECE * sizeof *values);
    if (!values) return kd_fail(KD_ENOMEM, "no memory for rows of a bank");
    kd_status status = KD_OK;
    for (int64_t at = 0; at < n && status == KD_OK; at += PIECE) {
        const kd_tensor piece = kd_tensor_slice(&all, 0, at, kd_min_i64(PIECE, n - at));
        for (int64_t i = 0; i < piece.shape[0]; i++) {
            const double u = kd_random_uniform(seed, stream, (uint64_t)(at + i));
            values[i] = (float)(reach * (2.0 * u - 1.0));
        }
        status = kd_upload(exec, &piece, values);
        if (status == KD_OK) status = kd_sync(exec);
    }
    free(values);
    return status;
}

static kd_status begin_states(const kd_tapped *t, const kd_layer_pair *pair, kd_exec *exec,
                              const kd_slab *slab, uint64_t seed)
{
    const kd_read *state = kd_tapped_state(t->type->reads);
    for (int i = 0; state; state = kd_tapped_state(state + 1), i++) {
        const kd_tensor to = kd_slab_weight(slab, pair->states[i]);
        KD_TRY(begin_state(exec, &to, (uint64_t)pair->states[i], seed));
    }
    return KD_OK;
}

kd_status kd_terms_initialise(const kd_term *terms, int count, kd_exec *exec, const kd_slab *slab,
                              int student, uint64_t seed)
{
    for (int i = 0; i < count; i++) {
        const kd_tapped *t = terms[i].tapped;
        if (!t || terms[i].student != student || t->kind != KD_TAP_HIDDEN) continue;
        for (int k = 0; k < t->count; k++) {
            const kd_layer_pair *pair = &t->pairs[k];
            if (k == 0 || !t->projector.shared) {
                KD_TRY(kd_projector_initialise(&pair->projector, exec, slab, seed));
                if (t->dimension)
                    KD_TRY(kd_projector_initialise(&pair->to_teacher, exec, slab, seed));
            }
            if (pair->parameter >= 0) KD_TRY(begin(t, exec, slab, pair->parameter));
            KD_TRY(begin_states(t, pair, exec, slab, seed));
        }
    }
    return kd_sync(exec);
}
