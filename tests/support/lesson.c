#include "support/lesson.h"

#include "support/support.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { CLASSES = 61, LAYERS = 2, WIDTH = 24, HEADS = 3, POSITIONS = 64 };

/* ---- models ----------------------------------------------------------------------------------- */

static kd_config config_of(const test_pupil *p)
{
    const bool gpt2 = p->family && strcmp(p->family, "gpt2") == 0;
    const int64_t width = p->width ? p->width : WIDTH;
    const int64_t heads = width % HEADS == 0 ? HEADS : 2;
    return (kd_config){ .family = p->family ? p->family : "llama",
                        .architecture = gpt2        ? "GPT2LMHeadModel"
                                        : p->family ? "Qwen3ForCausalLM"
                                                    : "LlamaForCausalLM",
                        .layers = p->layers ? p->layers : LAYERS,
                        .width = width,
                        .heads = heads,
                        .kv_heads = gpt2 ? heads : 1,
                        .head_size = width / heads,
                        .ffn = p->ffn ? p->ffn : 3 * width / 2 + 1,
                        .vocabulary = p->vocabulary ? p->vocabulary : CLASSES,
                        .max_positions = POSITIONS,
                        .norm = gpt2 ? KD_NORM_LAYER : KD_NORM_RMS,
                        .norm_eps = 1e-5,
                        .position = gpt2 ? KD_POSITION_LEARNED : KD_POSITION_ROPE,
                        .rope_theta = 10000,
                        .rotary_share = 1,
                        .qkv_bias = gpt2,
                        .output_bias = gpt2,
                        .mlp_bias = gpt2,
                        .qk_norm = p->family && !gpt2,
                        .tied = p->tied || gpt2,
                        .causal = true,
                        .mlp = gpt2 ? KD_MLP_GELU_TANH : KD_MLP_SWIGLU,
                        .bos = -1,
                        .eos = { -1 },
                        .pad = -1 };
}

static bool is_vocabulary(const kd_model *model, int param)
{
    return param == model->embedding || param == model->head_weight;
}

/* Gains around 1, all else around 0; wide enough that a wrong term is seen. */
static float draw(const kd_param *p, uint64_t seed, int param, int64_t element)
{
    const float x = (float)kd_random_normal(seed, (uint64_t)param, (uint64_t)element);
    const bool gain = p->shape.rank == 1 && !strstr(p->name, "bias");
    return gain ? 1.0f + 0.1f * x : 0.25f * x;
}

static kd_status upload(kd_device *device, const kd_tensor *to, const float *values)
{
    kd_stack stack = { 0 };
    kd_exec exec = { .device = device, .stack = &stack };
    void *converted = malloc(kd_tensor_bytes(to));
    if (!converted) return kd_fail(KD_ENOMEM, "no memory");
    kd_status status = kd_convert(converted, to->dtype, values, KD_F32, kd_tensor_elements(to));
    if (status == KD_OK) status = kd_upload(&exec, to, converted);
    free(converted);
    return status;
}

static kd_status download(void *to, kd_device *device, const kd_tensor *from)
{
    kd_stack stack = { 0 };
    kd_exec exec = { .device = device, .stack = &stack };
    KD_TRY(kd_download(&exec, to, from));
    return kd_sync(&exec);
}

static kd_status fill_param(const kd_slab *slab, int index, const test_pupil *pupil, int64_t limit)
{
    const kd_param *p = &slab->params.items[index];
    const kd_tensor master = kd_slab_master(slab, index), weight = kd_slab_weight(slab, index);
    const int64_t n = kd_tensor_elements(&weight);
    float *values = malloc((size_t)n * sizeof *values);
    if (!values) return kd_fail(KD_ENOMEM, "%s: no memory", p->name);
    for (int64_t i = 0; i < n; i++)
        values[i] = i < limit ? draw(p, pupil->seed, index, i) : (float)pupil->junk;
    kd_status status = upload(slab->device, &weight, values);
    if (status == KD_OK && slab->trainable) status = upload(slab->device, &master, values);
    free(values);
    return status;
}

/* Of which of the lesson's models. */
typedef struct extension {
    const test_lesson *lesson;
    int model;
} extension;

static kd_status extend(void *context, kd_params *params, int block)
{
    const extension *e = context;
    return kd_terms_declare(e->lesson->terms, e->lesson->term_count, params, e->model, block);
}

static kd_status open_pupil(kd_model **model, test_lesson *l, int m, const test_lesson_options *o)
{
    const test_pupil *pupil = &o->models[m];
    extension more = { l, m };
    kd_device *device = l->device;
    const kd_model_options options = { .label = pupil->label       ? pupil->label
                                                : pupil->trainable ? "student"
                                                                   : "teacher",
                                       .dtype = pupil->e4m3 ? KD_F8_E4M3 : o->dtype,
                                       .trainable = pupil->trainable,
                                       .moments = pupil->trainable ? 2 : 0,
                                       .recompute = pupil->recompute,
                                       .extend = pupil->trainable ? extend : NULL,
                                       .context = &more };
    if (pupil->dir) {
        kd_stack stack = { 0 };
        kd_exec exec = { .device = device, .stack = &stack };
        KD_TRY(kd_model_open(model, device, pupil->dir, &options));
        return kd_terms_initialise(l->terms, l->term_count, &exec, &(*model)->slab, m, 1);
    }
    const kd_config config = config_of(pupil);
    const int64_t classes = o->classes ? o->classes : CLASSES;
    KD_TRY(kd_model_create(model, device, &config, &options));
    for (int i = 0; i < (*model)->slab.params.count; i++) {
        const bool cut = is_vocabulary(*model, i) && pupil->junk != 0.0;
        KD_TRY(fill_param(&(*model)->slab, i, pupil, cut ? classes * config.width : INT64_MAX));
    }
    return KD_OK;
}

/* ---- the step --------------------------------------------------------------------------------- */

int test_distil(kd_term *terms, int student, int teacher)
{
    terms[0] = (kd_term){ .name = "ce",
                          .kind = KD_ROW_cross_entropy,
                          .weight = { 0.4, 0.4, 0 },
                          .temperature = 1,
                          .student = student,
                          .teacher = -1 };
    terms[1] = (kd_term){ .name = "kl",
                          .kind = KD_ROW_forward_kl,
                          .weight = { 0.6, 0.6, 0 },
                          .temperature = 2,
                          .t_squared = true,
                          .student = student,
                          .teacher = teacher };
    return 2;
}

/* Buckets of another size than the engine's own. */
static kd_status cut_buckets(test_lesson *l, int64_t elements)
{
    for (int m = 0; m < l->count && elements; m++)
        if (l->models[m]->slab.trainable)
            KD_TRY(kd_buckets_create(&l->step.members[m].buckets, l->step.arena, l->comm,
                                     &l->models[m]->slab, elements));
    return KD_OK;
}

/* Those of a run file, bound to what the models offer. */
static kd_status parse_terms(test_lesson *l, const test_lesson_options *o)
{
    int students[TEST_LESSON_MODELS], teachers[TEST_LESSON_MODELS], s = 0, t = 0;
    kd_offer offers[TEST_LESSON_MODELS];
    kd_node *loss;
    KD_TRY(kd_yaml_parse(&loss, l->arena, "loss", o->loss, strlen(o->loss)));
    for (int m = 0; m < o->count; m++) {
        const test_pupil *pupil = &o->models[m];
        kd_config config = config_of(pupil);
        *(pupil->trainable ? &students[s++] : &teachers[t++]) = m;
        if (pupil->dir) KD_TRY(kd_config_read(&config, l->arena, pupil->dir));
        const kd_status status =
            kd_model_offer(&offers[m], l->arena, &config, pupil->trainable ? "student" : "teacher");
        json_decref(config.raw);
        KD_TRY(status);
    }
    KD_TRY(kd_terms_parse(&l->terms, &l->term_count, &l->logits, l->arena, loss, students, s,
                          teachers, t));
    KD_TRY(kd_terms_bind(l->terms, l->term_count, l->arena, offers));
    kd_terms_give_data(l->terms, l->term_count, o->data);
    return KD_OK;
}

static kd_status open_terms(test_lesson *l, const test_lesson_options *o)
{
    l->logits = o->logits;
    if (o->loss) return parse_terms(l, o);
    KD_TRY(KD_ARENA_ARRAY(&l->terms, l->arena, TEST_LESSON_TERMS));
    memcpy(l->terms, o->terms, sizeof o->terms);
    l->term_count = o->term_count ? o->term_count : test_distil(l->terms, 1, 0);
    return KD_OK;
}

static kd_status open_step(test_lesson *l, const test_lesson_options *o)
{
    const kd_step_options options = { .device = l->device,
                                      .comm = l->comm,
                                      .models = l->models,
                                      .count = l->count,
                                      .terms = l->terms,
                                      .term_count = l->term_count,
                                      .classes = o->classes ? o->classes : CLASSES,
                                      .rows = o->rows,
                                      .inputs = o->inputs,
                                      .logits = l->logits,
                                      .certainty = o->certainty,
                                      .chunk = o->chunk,
                                      .optim = { .type = KD_OPTIM_ADAMW,
                                                 .schedule = KD_SCHEDULE_COSINE,
                                                 .lr = o->lr > 0 ? o->lr : 1e-3,
                                                 .min_lr = 0.1,
                                                 .warmup = "2 steps",
                                                 .decay = "0 steps",
                                                 .weight_decay = 0.1,
                                                 .beta1 = 0.9,
                                                 .beta2 = 0.95,
                                                 .eps = 1e-8,
                                                 .clip = 1,
                                                 .on_nonfinite = o->skip,
                                                 .skip_zscore = o->zscore,
                                                 .max_skips = o->max_skips },
                                      .steps = o->steps ? o->steps : 100 };
    KD_TRY(kd_step_plan(&l->step, &options));
    KD_TRY(cut_buckets(l, o->bucket));
    KD_TRY(kd_step_open(&l->step));
    /* NaN: what a step does not write it does not read. */
    return l->device->type->fill(l->device, NULL, l->step.stack.base, 0xff, l->step.stack.capacity);
}

kd_status test_lesson_open(test_lesson *l, const test_lesson_options *o)
{
    kd_status status;
    *l = (test_lesson){
        .comm = o->comm, .own_comm = !o->comm, .device = o->on, .own_device = !o->on
    };
    if (l->own_device)
        KD_TRY_GOTO(kd_device_open(&l->device, o->device ? o->device : "cpu"), status, failed);
    if (l->own_comm) KD_TRY_GOTO(kd_comm_solo(&l->comm), status, failed);
    KD_TRY_GOTO(kd_arena_create(&l->arena), status, failed);
    KD_TRY_GOTO(open_terms(l, o), status, failed);
    for (; l->count < o->count; l->count++)
        KD_TRY_GOTO(open_pupil(&l->models[l->count], l, l->count, o), status, failed);
    KD_TRY_GOTO(open_step(l, o), status, failed);
    return KD_OK;
failed:
    test_lesson_close(l);
    return status;
}

void test_lesson_close(test_lesson *l)
{
    kd_step_close(&l->step);
    for (int m = 0; m < TEST_LESSON_MODELS; m++) kd_model_close(l->models[m]);
    if (l->own_comm && l->comm) kd_comm_close(l->comm);
    if (l->own_device) kd_device_close(l->device);
    kd_arena_destroy(l->arena);
    *l = (test_lesson){ 0 };
}

kd_status test_lesson_step(test_lesson *l, kd_step_result *result, const kd_step_batch *batch,
                           int64_t index)
{
    const kd_step_result *found;
    KD_TRY(kd_step_run(&l->step, batch, index));
    KD_TRY(kd_step_result_of(&found, &l->step, index));
    if (result) *result = *found;
    return KD_OK;
}

kd_status test_find_param(int *param, const kd_slab *slab, const char *name)
{
    const kd_params *all = &slab->params;
    for (int i = 0; i < all->count; i++)
        if (strcmp(all->items[i].name, name) == 0) {
            *param = i;
            return KD_OK;
        }
    return kd_fail(KD_EINVAL, "no parameter %s", name);
}

static kd_status plant(kd_device *device, const kd_tensor *to, const test_planted *p)
{
    float *values = malloc(kd_tensor_bytes(to) * 2);
    void *raw = malloc(kd_tensor_bytes(to));
    const int64_t n = kd_tensor_elements(to);
    kd_status status = kd_fail(KD_ENOMEM, "%s: no memory", p->param);
    if (values && raw) status = download(raw, device, to);
    if (status == KD_OK) status = kd_convert(values, KD_F32, raw, to->dtype, n);
    for (int64_t i = 0; status == KD_OK && i < p->count; i++)
        values[p->begin + i * p->stride] = p->value;
    if (status == KD_OK) status = upload(device, to, values);
    free(values);
    free(raw);
    return status;
}

kd_status test_lesson_plant(const test_lesson *l, const test_planted *p)
{
    const kd_slab *slab = &l->models[p->model]->slab;
    int i;
    KD_TRY(test_find_param(&i, slab, p->param));
    const kd_tensor weight = kd_slab_weight(slab, i), master = kd_slab_master(slab, i);
    KD_TRY(plant(l->device, &weight, p));
    return slab->trainable ? plant(l->device, &master, p) : KD_OK;
}

/* ---- what it left ----------------------------------------------------------------------------- */

float *test_lesson_gradient(const test_lesson *l, int model)
{
    const kd_tensor *gradients = &l->models[model]->slab.gradients;
    float *copy = malloc(kd_tensor_bytes(gradients));
    if (copy && download(copy, l->device, gradients) == KD_OK) return copy;
    free(copy);
    return NULL;
}

/* Their number where `to` is NULL; 0: a copy failed. */
static size_t copy_bits(unsigned char *to, const test_lesson *l)
{
    size_t total = 0;
    for (int m = 0; m < l->count; m++) {
        const kd_slab *s = &l->models[m]->slab;
        const kd_tensor *arrays[] = { &s->weights, &s->masters, &s->moment[0], &s->moment[1],
                                      &s->states };
        if (!s->trainable) continue;
        for (int i = 0; i < KD_COUNT(arrays); i++) {
            if (!kd_present(arrays[i])) continue;
            if (to && download(to + total, l->device, arrays[i]) != KD_OK) return 0;
            total += kd_tensor_bytes(arrays[i]);
        }
    }
    return total;
}

unsigned char *test_lesson_bits(const test_lesson *l, size_t *bytes)
{
    *bytes = copy_bits(NULL, l);
    unsigned char *copy = malloc(*bytes);
    if (copy && copy_bits(copy, l) > 0) return copy;
    free(copy);
    return NULL;
}

void test_near_gradient(const float *got, const kd_model *got_model, const float *want,
                        const kd_model *model, double most, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    for (int i = 0; i < model->slab.params.count; i++) {
        const kd_param *a = &got_model->slab.params.items[i], *b = &model->slab.params.items[i];
        const kd_tensor ta = kd_tensor_of(NULL, KD_F32, a->shape);
        const kd_tensor tb = kd_tensor_of(NULL, KD_F32, b->shape);
        const int64_t n = kd_tensor_elements(&tb);
        double difference = 0, size = 0;
        for (int64_t k = 0; k < n; k++) {
            const double x = (double)got[a->offset + k], y = (double)want[b->offset + k];
            difference += (x - y) * (x - y);
            size += y * y;
        }
        /* Not `>`: that would let NaN pass. */
        cr_assert(sqrt(difference) <= most * sqrt(size),
                  "%s: gradient of %s is off by %.3g of its norm %.3g, more than %.3g", what,
                  b->name, sqrt(difference / size), sqrt(size), most);
        for (int64_t k = n; k < kd_tensor_elements(&ta); k++)
            cr_assert(got[a->offset + k] == 0.0f, "%s: gradient of %s is %g in padded row %lld",
                      what, b->name, (double)got[a->offset + k],
                      (long long)(k / a->shape.dim[a->shape.rank - 1]));
    }
}

/* ---- slopes ----------------------------------------------------------------------------------- */

typedef struct slope {
    const test_lesson_options *options;
    const kd_loader_options *data;
    const char *param;
    int element;
    void (*prepare)(const test_lesson *lesson);
    double value, gradient; /* of the element; the step's, of it */
} slope;

/* The loss of a step with `by` more in the element. */
static double loss_at(slope *s, double by)
{
    const int m = s->options->count - 1;
    const kd_step_batch *batch;
    kd_step_result result;
    kd_loader *loader;
    test_lesson lesson;
    int param = 0;
    test_ok(kd_loader_open(&loader, s->data));
    test_ok(test_lesson_open(&lesson, s->options));
    const kd_slab *slab = &lesson.models[m]->slab;
    test_ok(test_find_param(&param, slab, s->param));
    if (s->prepare) s->prepare(&lesson);
    const kd_tensor weight = kd_slab_weight(slab, param), d = kd_slab_gradient(slab, param);
    float *at = (float *)weight.data + s->element;
    s->value = (double)*at;
    *at = (float)(s->value + by);
    test_ok(kd_loader_next(&batch, loader, NULL));
    test_ok(test_lesson_step(&lesson, &result, batch, 0));
    s->gradient = (double)((const float *)d.data)[s->element];
    test_lesson_close(&lesson);
    kd_loader_close(loader);
    return result.student[m].loss;
}

void test_lesson_slope(const test_lesson_options *options, const kd_loader_options *data,
                       const char *param, int element, double slack,
                       void (*prepare)(const test_lesson *lesson))
{
    slope s = {
        .options = options, .data = data, .param = param, .element = element, .prepare = prepare
    };
    (void)loss_at(&s, 0);
    const double h = 0.01 * fmax(fabs(s.value), 0.3), gradient = s.gradient;
    const double rise = (loss_at(&s, h) - loss_at(&s, -h)) / (2 * h);
    cr_expect(fabs(gradient) > 1e-6, "%s, %s: no gradient", options->loss, param);
    cr_expect(fabs(gradient - rise) <= 0.01 * fabs(rise) + slack,
              "%s, %s: gradient %.6g, the value rises by %.6g", options->loss, param, gradient,
              rise);
}
