/*
 * Decoding: after every prefix the logits of the whole document's forward pass, however the document
 * went in; and sampling from what it gives.
 */
#include "model/model.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 23 };

/* ---- tiny models with weights that matter ----------------------------------------------------- */

static kd_config llama(void)
{
    return (kd_config){ .family = "llama",
                        .architecture = "LlamaForCausalLM",
                        .layers = 3,
                        .width = 18,
                        .heads = 6,
                        .kv_heads = 2,
                        .head_size = 6,
                        .ffn = 21,
                        .vocabulary = 37,
                        .max_positions = 64,
                        .norm_eps = 1e-5,
                        .position = KD_POSITION_ROPE,
                        .rope_theta = 100,
                        .rotary_share = 1,
                        .causal = true,
                        .bos = -1,
                        .eos = { -1 },
                        .pad = -1 };
}

static kd_config windowed(void)
{
    kd_config c = llama();
    c.family = "mistral";
    c.architecture = "MistralForCausalLM";
    c.window = 5;
    c.tied = true;
    return c;
}

static kd_config qwen3(void)
{
    kd_config c = llama();
    c.family = "qwen3";
    c.architecture = "Qwen3ForCausalLM";
    c.qk_norm = true;
    c.head_size = 10; /* heads that are wider than the model together */
    c.kv_heads = 3;
    return c;
}

static kd_config gpt2(void)
{
    kd_config c = llama();
    c.family = "gpt2";
    c.architecture = "GPT2LMHeadModel";
    c.heads = c.kv_heads = 3;
    c.norm = KD_NORM_LAYER;
    c.position = KD_POSITION_LEARNED;
    c.max_positions = ROWS + 1;
    c.qkv_bias = c.output_bias = c.mlp_bias = c.tied = true;
    c.mlp = KD_MLP_GELU_TANH;
    return c;
}

typedef struct decode_case {
    const char *name;
    kd_config (*config)(void);
} decode_case;

static const decode_case cases[] = {
    { "llama", llama }, { "mistral", windowed }, { "qwen3", qwen3 }, { "gpt2", gpt2 }
};

/* Every parameter is random, biases and gains too. */
static void open_model(kd_model **model, kd_device *device, const decode_case *c, kd_dtype dtype)
{
    const kd_model_options options = { .label = c->name, .dtype = dtype };
    const kd_config config = c->config();
    test_ok(kd_model_create(model, device, &config, &options));
    for (int p = 0; p < (*model)->slab.params.count; p++) {
        const kd_tensor w = kd_slab_weight(&(*model)->slab, p);
        for (int64_t i = 0; i < kd_tensor_elements(&w); i++) {
            const double x = kd_random_normal(7, (uint64_t)p, (uint64_t)i);
            test_set(&w, i, w.rank == 2 ? 0.4 * x : 1.0 + 0.3 * x);
        }
    }
}

static const int32_t *document(void)
{
    static int32_t tokens[ROWS];
    for (int i = 0; i < ROWS; i++)
        tokens[i] = (int32_t)(37.0 * kd_random_uniform(3, 0, (uint64_t)i));
    return tokens;
}

/* ---- against the forward pass ----------------------------------------------------------------- */

static kd_status forward(kd_tensor *logits, kd_exec *exec, kd_model *model)
{
    const int32_t cu[2] = { 0, ROWS };
    int32_t positions[ROWS];
    kd_batch batch;
    kd_taps taps = { .count = 0 };
    for (int i = 0; i < ROWS; i++) positions[i] = i;
    KD_TRY(kd_push(logits, exec, "logits", KD_F32, KD_SHAPE(ROWS, model->config.vocabulary)));
    KD_TRY(kd_push(&batch.tokens, exec, "tokens", KD_I32, KD_SHAPE(ROWS)));
    KD_TRY(kd_push(&batch.geometry.positions, exec, "positions", KD_I32, KD_SHAPE(ROWS)));
    KD_TRY(kd_push(&batch.geometry.cu, exec, "starts", KD_I32, KD_SHAPE(2)));
    KD_TRY(kd_upload(exec, &batch.tokens, document()));
    KD_TRY(kd_upload(exec, &batch.geometry.positions, positions));
    KD_TRY(kd_upload(exec, &batch.geometry.cu, cu));
    KD_TRY(kd_model_forward(model, exec, &batch, &taps));
    const kd_tensor weight = kd_tensor_transposed(&taps.head.weight);
    return KD_RUN(exec, matmul, .y = logits, .a = &taps.head.hidden, .b = &weight);
}

/* [ROWS, V] of the whole document; free() it. */
static double *forward_logits(kd_model *model)
{
    kd_arena *arena;
    kd_stack stack;
    kd_tensor logits;
    kd_exec exec = { .device = model->slab.device, .stack = &stack };
    test_ok(kd_arena_create(&arena));
    test_ok(kd_stack_plan(&stack, arena));
    test_ok(forward(&logits, &exec, model));
    test_ok(kd_stack_open(&stack, exec.device));
    memset(stack.base, 0xff, stack.capacity); /* NaN: what is not written is not read */
    test_ok(forward(&logits, &exec, model));
    const int64_t n = kd_tensor_elements(&logits);
    double *copy = malloc((size_t)n * sizeof *copy);
    cr_assert_not_null(copy);
    for (int64_t i = 0; i < n; i++) copy[i] = test_get(&logits, i);
    kd_stack_close(&stack, exec.device);
    kd_arena_destroy(arena);
    return copy;
}

/* In bf16 both passes round every activation, each after sums in its own order: the operands of the
 * next sum differ by bf16's epsilon, not f32's. */
static void near(const kd_model *model, const float *got, const double *want, int64_t row,
                 int64_t step, int64_t chunk)
{
    const kd_config *c = &model->config;
    const double eps = model->dtype == KD_BF16 ? 0x1p-8 : 0x1p-23;
    const double length = (double)(c->layers * (3 * c->width + c->ffn + ROWS) + c->width);
    double scale = 1.0;
    for (int64_t v = 0; v < c->vocabulary; v++) scale = fmax(scale, fabs(want[v]));
    for (int64_t v = 0; v < c->vocabulary; v++) {
        const double tolerance =
            eps * (fabs((double)got[v]) + fabs(want[v]) + scale) * sqrt(length);
        cr_assert(fabs((double)got[v] - want[v]) <= tolerance,
                  "%s in %s, by %lld in chunks of %lld, row %lld: logit %lld is %g, expected %g "
                  "within %.2g",
                  model->label, kd_dtype_name(model->dtype), (long long)step, (long long)chunk,
                  (long long)row, (long long)v, (double)got[v], want[v], tolerance);
    }
}

/* The document goes in by `step` tokens a call, each cut into chunks. */
static void decode(kd_model *model, const double *want, int64_t step, int64_t chunk)
{
    const int64_t v = model->config.vocabulary;
    kd_decoder decoder;
    float *logits = malloc((size_t)v * sizeof *logits);
    cr_assert_not_null(logits);
    test_ok(kd_decoder_open(&decoder, model, ROWS + 1, chunk));
    memset(decoder.stack.base, 0xff, decoder.stack.capacity);
    for (int64_t at = 0; at < ROWS; at += step) {
        const int64_t n = kd_min_i64(step, ROWS - at);
        memset(logits, 0xff, (size_t)v * sizeof *logits);
        test_ok(kd_decoder_extend(&decoder, logits, document() + at, n));
        cr_assert_eq(decoder.length, at + n);
        near(model, logits, want + (at + n - 1) * v, at + n - 1, step, chunk);
    }
    kd_decoder_close(&decoder);
    free(logits);
}

Test(decode, equals_the_forward_pass_after_every_prefix)
{
    static const int64_t ways[][2] = { { 1, 1 }, { 1, 8 },  { 2, 8 },    { 5, 8 },
                                       { 7, 3 }, { 11, 4 }, { ROWS, 6 }, { ROWS, 64 } };
    kd_device *device;
    test_ok(kd_device_open(&device, "cpu"));
    for (int i = 0; i < 2 * KD_COUNT(cases); i++) {
        kd_model *model;
        open_model(&model, device, &cases[i / 2], i % 2 ? KD_BF16 : KD_F32);
        double *want = forward_logits(model);
        for (int w = 0; w < KD_COUNT(ways); w++) decode(model, want, ways[w][0], ways[w][1]);
        free(want);
        kd_model_close(model);
    }
    kd_device_close(device);
}

Test(decode, refuses_what_does_not_fit)
{
    kd_device *device;
    kd_model *model;
    kd_decoder decoder;
    float logits[37];
    test_ok(kd_device_open(&device, "cpu"));
    open_model(&model, device, &cases[KD_COUNT(cases) - 1], KD_F32);
    test_refused(kd_decoder_open(&decoder, model, ROWS + 2, 4), KD_EINVAL, "24 positions");
    test_ok(kd_decoder_open(&decoder, model, 4, 64));
    test_ok(kd_decoder_extend(&decoder, logits, document(), 3));
    test_refused(kd_decoder_extend(&decoder, logits, document(), 2), KD_EINVAL, "holds 4");
    test_refused(kd_decoder_extend(&decoder, logits, document(), 0), KD_EINVAL, "0 tokens");
    cr_assert_eq(decoder.length, 3, "a refused extend moved the decoder");
    test_ok(kd_decoder_extend(&decoder, logits, document() + 3, 1));
    double *want = forward_logits(model);
    near(model, logits, want + 3 * 37, 3, 1, 4);
    free(want);
    kd_decoder_close(&decoder);
    kd_model_close(model);
    kd_device_close(device);
}

/* ---- sampling --------------------------------------------------------------------------------- */

enum { CLASSES = 9, DRAWS = 40000 };

static const float logits[CLASSES] = {
    0.5f, -2.0f, 1.75f, 1.5f, -INFINITY, 0.0f, 1.75f, -9.0f, 1.0f
};

/* What softmax, top-k and then top-p leave, in the order of logits; written from the definitions. */
static void expected(double *p, const kd_sampling *s)
{
    double sum = 0.0, all = 0.0, kept[CLASSES] = { 0 };
    int order[CLASSES];
    for (int i = 0; i < CLASSES; i++) {
        int at = i;
        for (; at > 0 && logits[order[at - 1]] < logits[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    const int most = s->top_k ? (int)s->top_k : CLASSES;
    for (int i = 0; i < most; i++) all += exp((double)logits[order[i]] / s->temperature);
    for (int i = 0; i < most && (s->top_p >= 1.0 || sum < s->top_p * all); i++) {
        kept[order[i]] = exp((double)logits[order[i]] / s->temperature);
        sum += kept[order[i]];
    }
    for (int i = 0; i < CLASSES; i++) p[i] = kept[i] / sum;
}

Test(sample, frequencies_are_those_of_the_distribution)
{
    static const kd_sampling ways[] = {
        { .temperature = 1, .top_p = 1, .seed = 1 },
        { .temperature = 0.5, .top_p = 1, .seed = 2 },
        { .temperature = 3, .top_p = 1, .seed = 3 },
        { .temperature = 1, .top_k = 3, .top_p = 1, .seed = 4 },
        { .temperature = 1, .top_k = CLASSES, .top_p = 0.7, .seed = 5 },
        { .temperature = 2, .top_k = 5, .top_p = 0.6, .seed = 6 },
        { .temperature = 1, .top_p = 1e-9, .seed = 7 },
    };
    for (int w = 0; w < KD_COUNT(ways); w++) {
        double p[CLASSES];
        int64_t count[CLASSES] = { 0 };
        int32_t scratch[CLASSES];
        expected(p, &ways[w]);
        for (int64_t i = 0; i < DRAWS; i++) {
            const int32_t id = kd_sample(logits, CLASSES, &ways[w], i, scratch);
            cr_assert(id >= 0 && id < CLASSES);
            count[id]++;
        }
        for (int i = 0; i < CLASSES; i++) {
            const double sigma = sqrt(DRAWS * p[i] * (1.0 - p[i]));
            cr_assert(fabs((double)count[i] - DRAWS * p[i]) <= 4.0 * sigma + 1e-6,
                      "way %d: class %d came %lld times, expected %.1f +/- %.1f", w, i,
                      (long long)count[i], DRAWS * p[i], sigma);
        }
    }
}

Test(sample, greedy_and_seeds)
{
    int32_t scratch[CLASSES];
    int same = 0, moved = 0;
    for (int shift = 0; shift < CLASSES; shift++) {
        float turned[CLASSES];
        int best = 0;
        for (int i = 0; i < CLASSES; i++) turned[i] = logits[(i + shift) % CLASSES];
        for (int i = 1; i < CLASSES; i++)
            if (turned[i] > turned[best]) best = i;
        const kd_sampling greedy = { .temperature = 0, .top_p = 1 };
        cr_expect_eq(kd_sample(turned, CLASSES, &greedy, shift, NULL), best, "shift %d", shift);
        for (uint64_t seed = 0; seed < 50; seed++) {
            const kd_sampling one = { .temperature = 5, .top_k = 1, .top_p = 1, .seed = seed };
            cr_expect_eq(kd_sample(turned, CLASSES, &one, shift, scratch), best, "shift %d", shift);
        }
    }
    for (int64_t i = 0; i < 1000; i++) {
        const kd_sampling a = { .temperature = 2, .top_p = 1, .seed = 11 };
        const kd_sampling b = { .temperature = 2, .top_p = 1, .seed = 12 };
        const int32_t first = kd_sample(logits, CLASSES, &a, i, scratch);
        cr_expect_eq(kd_sample(logits, CLASSES, &a, i, scratch), first, "draw %lld", (long long)i);
        same += kd_sample(logits, CLASSES, &b, i, scratch) == first;
        moved += kd_sample(logits, CLASSES, &a, i + 1, scratch) != first;
    }
    cr_expect(same < 500, "another seed gives the same %d of 1000 times", same);
    cr_expect(moved > 500, "another draw moves %d of 1000 times", moved);
}
