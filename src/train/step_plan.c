/* The plan of a step: the same code with stacks that only count, then one allocation each. */
#include "train/train.h"

/* Those of the trained members lie together, since one op decides about all of them. */
static void share_scalars(kd_step *step)
{
    const int64_t bytes = sizeof(kd_step_scalars);
    int64_t trained = 0, next[2] = { 0 };
    for (int m = 0; m < step->count; m++) trained += step->members[m].model->slab.trainable;
    next[0] = trained;
    for (int m = 0; m < step->count; m++) {
        const int64_t at = next[step->members[m].model->slab.trainable]++;
        step->members[m].scalars = kd_tensor_slice(&step->scalars, 0, at * bytes, bytes);
    }
    step->trained = kd_tensor_slice(&step->scalars, 0, 0, trained * bytes);
}

/* Of terms that keep banks, with room for all ranks. */
static kd_status take_negatives(kd_step *step)
{
    const kd_objective *o = &step->objective;
    const int64_t n = kd_max_i64(o->ranks.size, 1) * step->rows;
    if (!kd_terms_keep_banks(o->terms, o->count)) return KD_OK;
    KD_TRY(kd_stack_push(&step->samples, &step->fixed, "samples", KD_I32, KD_SHAPE(n)));
    for (int i = 0; i < o->count; i++) {
        const int64_t k = o->terms[i].tapped ? o->terms[i].tapped->negatives : 0;
        if (k)
            KD_TRY(kd_stack_push(&step->negatives[i], &step->fixed, "negatives", KD_I32,
                                 KD_SHAPE(n, k)));
    }
    return KD_OK;
}

/* Tensors that live as long as the step; run once to count and once to take. */
static kd_status take_fixed(kd_step *step)
{
    kd_stack *fixed = &step->fixed;
    const int64_t n = step->rows, r = step->target_rows;
    KD_TRY(kd_stack_push(&step->batch.tokens, fixed, "tokens", KD_I32, KD_SHAPE(n)));
    if (step->inputs)
        KD_TRY(
            kd_stack_push(&step->batch.inputs, fixed, "inputs", KD_F32, KD_SHAPE(n, step->inputs)));
    KD_TRY(kd_stack_push(&step->batch.geometry.positions, fixed, "positions", KD_I32, KD_SHAPE(n)));
    KD_TRY(
        kd_stack_push(&step->batch.geometry.cu, fixed, "document starts", KD_I32, KD_SHAPE(n + 1)));
    KD_TRY(kd_stack_push(&step->targets.rows, fixed, "target rows", KD_I32, KD_SHAPE(r)));
    KD_TRY(kd_stack_push(&step->targets.labels, fixed, "target labels", KD_I32, KD_SHAPE(r)));
    KD_TRY(kd_stack_push(&step->targets.weight, fixed, "target weights", KD_F32, KD_SHAPE(n)));
    KD_TRY(kd_stack_push(&step->guard, fixed, "guard", KD_U8, KD_SHAPE((int64_t)sizeof(kd_guard))));
    KD_TRY(kd_stack_push(&step->scalars, fixed, "step scalars", KD_U8,
                         KD_SHAPE(step->count * (int64_t)sizeof(kd_step_scalars))));
    share_scalars(step);
    KD_TRY(take_negatives(step));
    for (int m = 0; m < step->count; m++) {
        kd_member *member = &step->members[m];
        const int64_t terms = kd_objective_terms(&step->objective, m);
        KD_TRY(kd_stack_push(&member->totals, fixed, "loss totals", KD_F32,
                             KD_SHAPE(kd_max_i64(terms, 2) + 1)));
    }
    return KD_OK;
}

/* A micro-batch of the largest size, for the plan: nothing reads its values. */
static kd_status plan_batch(kd_micro_batch *micro, kd_step *step)
{
    int32_t *zeros;
    KD_TRY(KD_ARENA_ARRAY(&zeros, step->arena, step->rows + 1));
    *micro = (kd_micro_batch){ .tokens = zeros,
                               .positions = zeros,
                               .labels = zeros,
                               .documents = zeros,
                               .cu = zeros,
                               .valid = zeros,
                               .valid_count = step->rows,
                               .rows = step->rows };
    return KD_OK;
}

/* Terms of evaluation: what every model is measured by, whatever it is trained with. */
static void open_measures(kd_step *step)
{
    const int reference = kd_step_reference(step);
    int n = 0;
    for (int m = 0; m < step->count; m++) {
        const kd_term term = {
            .kind = KD_ROW_cross_entropy, .temperature = 1.0, .student = m, .teacher = -1
        };
        step->measure_terms[n] = term;
        step->measure_terms[n++].name = "nll";
        if (m == reference || reference < 0) continue;
        step->measure_terms[n] = term;
        step->measure_terms[n].name = "kl";
        step->measure_terms[n].kind = KD_ROW_forward_kl;
        step->measure_terms[n++].teacher = reference;
    }
    step->measures = (kd_objective){ .terms = step->measure_terms,
                                     .count = n,
                                     .chunk = step->objective.chunk,
                                     .classes = step->objective.classes,
                                     .logits = { .f32 = true } };
}

static kd_status plan_measures(kd_step *step, const kd_step_options *options,
                               const kd_micro_batch *micro)
{
    kd_measured measured[KD_MAX_MODELS] = { { .nll = NULL } };
    KD_TRY(KD_ARENA_ARRAY(&step->host_values, step->arena, 6 * step->count * step->target_rows));
    int64_t widest = 0; /* of the logits that are looked at */
    const bool certain = !options->timing && (options->certainty || options->inputs);
    for (int m = 0; m < step->count && certain; m++)
        widest = kd_max_i64(widest, kd_ceil_div(options->models[m]->config.vocabulary, 16) * 16);
    if (widest) KD_TRY(KD_ARENA_ARRAY(&step->host_logits, step->arena, KD_SEEN_ROWS * widest));
    for (int m = 0; m < step->count; m++) measured[m] = kd_step_values(step, m);
    return kd_step_measure(step, micro, ~0u, measured);
}

/* Rows of the head at a time, where the run does not say. */
static int64_t chunk_of(const kd_step_options *options)
{
    int64_t vocabulary = 1, width = INT64_MAX;
    size_t element = 0;
    for (int m = 0; m < options->count; m++) {
        const kd_model *model = options->models[m];
        vocabulary = kd_max_i64(vocabulary, model->config.vocabulary);
        element = kd_dtype_size(model->dtype);
        if (model->slab.trainable) width = kd_min_i64(width, model->config.width);
    }
    /* Both logits in f32, and the gradient again in a narrower type; four more for z-scores. */
    bool standard = false;
    for (int i = 0; i < options->term_count; i++) standard |= options->terms[i].standardise;
    if (options->logits.f32 || standard) element = 4 + (element < 4 ? element / 2 : 0);
    kd_device_info info;
    kd_device_describe(&info, options->device);
    const int64_t row_bytes = vocabulary * (2 * (int64_t)element + (standard ? 16 : 0));
    return options->chunk ? options->chunk
                          : kd_objective_chunk(options->rows, row_bytes, width, &info);
}

static kd_status gather(void *context, kd_exec *exec, const kd_tensor *all)
{
    kd_comm *comm = context;
    const int64_t n = all->shape[0] / comm->size;
    for (int rank = 0; rank < comm->size; rank++) {
        const kd_tensor part = kd_tensor_slice(all, 0, rank * n, n);
        KD_TRY(comm->type->broadcast(comm, exec, &part, rank));
    }
    return KD_OK;
}

static kd_status plan(kd_step *step, const kd_step_options *options)
{
    kd_micro_batch micro;
    if (options->logits.top_k > options->classes)
        return kd_fail(KD_EINVAL,
                       "loss.top_k.k: %lld, expected at most %lld: all classes that losses compare",
                       (long long)options->logits.top_k, (long long)options->classes);
    for (int m = 0; m < options->count; m++) {
        step->members[m].model = options->models[m];
        step->members[m].taps.head.classes = options->classes;
    }
    step->objective =
        (kd_objective){ .terms = options->terms,
                        .count = options->term_count,
                        .chunk = chunk_of(options),
                        .classes = options->classes,
                        .logits = options->logits,
                        .ranks = { step->comm->rank, step->comm->size, gather, step->comm } };
    const int64_t chunk = step->objective.chunk;
    kd_taps *taps[KD_MAX_MODELS];
    for (int m = 0; m < options->count; m++) taps[m] = &step->members[m].taps;
    KD_TRY(kd_terms_request(options->terms, options->term_count, taps));
    open_measures(step);
    step->target_rows = kd_ceil_div(options->rows, chunk) * chunk;
    KD_TRY(KD_ARENA_ARRAY(&step->negatives, step->arena, options->term_count));
    KD_TRY(KD_ARENA_ARRAY(&step->host_rows, step->arena, step->target_rows));
    KD_TRY(KD_ARENA_ARRAY(&step->host_labels, step->arena, step->target_rows));
    KD_TRY(KD_ARENA_ARRAY(&step->host_weight, step->arena, step->rows));
    KD_TRY(plan_batch(&micro, step));
    KD_TRY(kd_stack_plan(&step->fixed, step->arena));
    KD_TRY(kd_stack_plan(&step->stack, step->arena));
    step->exec = (kd_exec){ .device = options->device, .stack = &step->stack };
    KD_TRY(take_fixed(step));
    for (int m = 0; m < step->count; m++)
        if (options->models[m]->slab.trainable)
            KD_TRY(kd_buckets_create(&step->members[m].buckets, step->arena, step->comm,
                                     &options->models[m]->slab, KD_BUCKET_ELEMENTS));
    const kd_step_batch batch = { &micro, 1, micro.valid_count, 0 };
    if (options->optim.lr > 0.0) KD_TRY(kd_step_run(step, &batch, 0));
    return plan_measures(step, options, &micro);
}

kd_status kd_step_plan(kd_step *step, const kd_step_options *options)
{
    if (options->count < 1 || options->count > KD_MAX_MODELS)
        return kd_fail(KD_EINVAL, "%d models in one step; at most %d", options->count,
                       KD_MAX_MODELS);
    *step = (kd_step){ .device = options->device,
                       .comm = options->comm,
                       .count = options->count,
                       .optim = options->optim,
                       .steps = options->steps,
                       .seed = options->seed,
                       .rows = options->rows,
                       .inputs = options->inputs };
    KD_TRY(kd_arena_create(&step->arena));
    const kd_status status = plan(step, options);
    if (status != KD_OK) kd_step_close(step);
    return status;
}

kd_status kd_step_open(kd_step *step)
{
    void *pending;
    int64_t most = 0;
    KD_TRY(kd_stack_open(&step->fixed, step->device));
    KD_TRY(take_fixed(step));
    for (int i = 0; i < step->objective.count && step->device->type != &kd_device_cpu; i++)
        if (kd_present(&step->negatives[i])) most = kd_max_i64(most, step->negatives[i].shape[1]);
    KD_TRY(KD_ARENA_ARRAY(&step->host_negatives, step->arena, step->rows * most));
    if (kd_present(&step->samples)) KD_TRY(kd_event_create(&step->passed, step->device));
    KD_TRY(kd_device_alloc_host(&pending, step->device, 2 * KD_MAX_MODELS * sizeof *step->pending));
    step->pending = pending;
    for (int i = 0; i < 2; i++) KD_TRY(kd_event_create(&step->done[i], step->device));
    KD_TRY(kd_stack_open(&step->stack, step->device));
    return kd_device_tune(&step->exec);
}

void kd_step_close(kd_step *step)
{
    if (!step->arena) return;
    kd_step_forget(step);
    kd_stack_close(&step->stack, step->device);
    kd_stack_close(&step->fixed, step->device);
    for (int i = 0; i < 2; i++) kd_event_destroy(step->device, step->done[i]);
    kd_event_destroy(step->device, step->passed);
    kd_device_release_host(step->device, step->pending);
    kd_arena_destroy(step->arena);
    *step = (kd_step){ 0 };
}

size_t kd_step_bytes(const kd_step *step) { return step->stack.peak + step->fixed.peak; }
