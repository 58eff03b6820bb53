/* Terms over taps meet the models: layers, widths, taps and parameters. */
#include "loss/tapped.h"

#include <stdio.h>

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

static kd_status bind_pair(const kd_term *term, kd_layer_pair *pair, const kd_offer *student,
                           const kd_offer *teacher)
{
    const kd_tapped *t = term->tapped;
    pair->parameter = -1;
    KD_TRY(check_layer(term, pair->student, student));
    KD_TRY(check_layer(term, pair->teacher, teacher));
    if (t->kind != KD_TAP_HIDDEN) return KD_OK;
    const int64_t in = student->widths[pair->student], out = teacher->widths[pair->teacher];
    pair->projector = (kd_projector){ .options = &t->projector, .in = in, .out = out };
    const kd_projector *first = &t->pairs[0].projector;
    if (t->projector.shared && (first->in != in || first->out != out))
        return kd_fail(KD_EINVAL,
                       "loss.%s.projector.shared: layers %d-%d want one from %lld to %lld, layers "
                       "%d-%d from %lld to %lld",
                       term->name, t->pairs[0].student, t->pairs[0].teacher, (long long)first->in,
                       (long long)first->out, pair->student, pair->teacher, (long long)in,
                       (long long)out);
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

/* Of pair `k`: its projector, where it is its own, and what the loss trains beside it. */
static kd_status declare_pair(const kd_term *term, int k, kd_params *params, int block)
{
    const kd_tapped *t = term->tapped;
    kd_layer_pair *pair = &t->pairs[k];
    const kd_read *own = kd_tapped_parameter(t->type);
    char name[64], full[96];
    pair->parameter = -1;
    if (t->kind != KD_TAP_HIDDEN) return KD_OK;
    snprintf(name, sizeof name, "loss.%s.%d", term->name, k);
    if (k > 0 && t->projector.shared)
        pair->projector = t->pairs[0].projector;
    else
        KD_TRY(kd_projector_declare(&pair->projector, params, name, block));
    if (!own) return KD_OK;
    /* One for each channel of what is compared. */
    snprintf(full, sizeof full, "%s.%s", name, own->name);
    return kd_params_declare(&pair->parameter, params, full, KD_SHAPE(pair->projector.out),
                             KD_PARAM_EXTRA, block);
}

kd_status kd_terms_declare(const kd_term *terms, int count, kd_params *params, int student,
                           int block)
{
    for (int i = 0; i < count; i++) {
        const kd_tapped *t = terms[i].tapped;
        if (!t || terms[i].student != student) continue;
        for (int k = 0; k < t->count; k++) KD_TRY(declare_pair(&terms[i], k, params, block));
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

kd_status kd_terms_initialise(const kd_term *terms, int count, kd_exec *exec, const kd_slab *slab,
                              int student, uint64_t seed)
{
    for (int i = 0; i < count; i++) {
        const kd_tapped *t = terms[i].tapped;
        if (!t || terms[i].student != student || t->kind != KD_TAP_HIDDEN) continue;
        for (int k = 0; k < t->count; k++) {
            const kd_layer_pair *pair = &t->pairs[k];
            if (k == 0 || !t->projector.shared)
                KD_TRY(kd_projector_initialise(&pair->projector, exec, slab, seed));
            if (pair->parameter >= 0) KD_TRY(begin(t, exec, slab, pair->parameter));
        }
    }
    return kd_sync(exec);
}
