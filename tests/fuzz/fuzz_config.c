/* fuzz_config.c - config.json and generation_config.json: what is accepted lies within the bounds of
 * hf_config.c, and is the same after it was written. */
#include "fuzz/fuzz.h"

#include "format/format.h"

#include <math.h>

static const fuzz_slot slots[] = { { "config.json", FUZZ_JSON },
                                   { "generation_config.json", FUZZ_JSON } };

enum { MAX_HEAD = 1 << 13 };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    return fuzz_mutate(data, size, most, seed, slots, KD_COUNT(slots));
}

/* Of a model of samples: no attention, any number of hidden layers. */
static void check_samples(const kd_config *c)
{
    fuzz_require(c->layers >= 0 && c->layers <= KD_MLP_MAX_LAYERS && c->vocabulary > 0, "sizes");
    fuzz_require(c->inputs > 0 && c->heads == 0, "inputs %lld", (long long)c->inputs);
    for (int64_t l = 0; l < c->layers; l++) fuzz_require(c->hidden[l] > 0, "hidden");
    fuzz_require(kd_config_width(c, 0) == c->inputs && kd_config_width(c, c->layers) == c->width,
                 "widths");
    fuzz_require(kd_config_flops(c) > 0, "flops");
}

static void check_bounds(const kd_config *c)
{
    static float frequencies[MAX_HEAD / 2];
    float scale = 0;
    const int64_t parameters = kd_config_parameters(c), flops = kd_config_flops(c);
    fuzz_require(parameters > 0 && parameters <= INT64_C(1) << 50, "parameters");
    if (c->inputs) {
        check_samples(c);
        return;
    }
    fuzz_require(c->layers > 0 && c->width > 0 && c->ffn > 0 && c->vocabulary > 0, "sizes");
    fuzz_require(c->max_positions > 0 && c->window >= 0 && c->window_from <= c->layers, "window");
    fuzz_require(c->heads > 0 && c->kv_heads > 0 && c->heads % c->kv_heads == 0, "heads");
    fuzz_require(flops > 0, "flops");
    fuzz_require(c->head_size > 0, "head_size %lld", (long long)c->head_size);
    fuzz_require(c->norm_eps > 0 && c->norm_eps <= 1, "norm_eps");
    fuzz_require(c->bos >= -1 && c->bos < c->vocabulary && c->pad < c->vocabulary, "ids");
    for (int i = 0; c->eos[i] != -1; i++)
        fuzz_require(i < 7 && c->eos[i] >= 0 && c->eos[i] < c->vocabulary, "eos");
    if (c->position != KD_POSITION_ROPE) return;
    fuzz_require(c->head_size <= MAX_HEAD && c->head_size % 2 == 0, "head_size");
    kd_config_rope(frequencies, &scale, c);
    fuzz_require(isfinite(scale), "scale");
    for (int64_t i = 0; i < c->head_size / 2; i++)
        fuzz_require(isfinite(frequencies[i]), "frequency %lld", (long long)i);
}

static void check_same(const kd_config *a, const kd_config *b)
{
    kd_config x = *a, y = *b;
    x.raw = y.raw = NULL;
    x.dir = y.dir = NULL;
    fuzz_require(memcmp(x.eos, y.eos, sizeof x.eos) == 0, "eos");
    fuzz_require(x.layers == y.layers && x.width == y.width && x.heads == y.heads &&
                     x.kv_heads == y.kv_heads && x.head_size == y.head_size && x.ffn == y.ffn &&
                     x.vocabulary == y.vocabulary && x.max_positions == y.max_positions,
                 "sizes");
    fuzz_require(x.inputs == y.inputs && memcmp(x.hidden, y.hidden, sizeof x.hidden) == 0,
                 "hidden");
    fuzz_require(x.window == y.window && x.window_from == y.window_from, "window");
    fuzz_require(x.rope_theta == y.rope_theta && x.rope_scaling == y.rope_scaling &&
                     x.rope_factor == y.rope_factor && x.rope_low == y.rope_low &&
                     x.rope_high == y.rope_high && x.rope_original == y.rope_original,
                 "rope");
    fuzz_require(x.norm_eps == y.norm_eps && x.mlp == y.mlp && x.tied == y.tied &&
                     x.qkv_bias == y.qkv_bias && x.output_bias == y.output_bias &&
                     x.mlp_bias == y.mlp_bias && x.qk_norm == y.qk_norm,
                 "layers");
    fuzz_require(x.bos == y.bos && x.pad == y.pad && x.family == y.family, "ids");
}

static void check_again(const kd_config *c, kd_arena *arena)
{
    kd_config again;
    const char *dir = fuzz_path("again"), *path = fuzz_path("again/config.json");
    fuzz_ok(kd_dir_create(dir));
    fuzz_ok(kd_config_write(c, path, KD_BF16));
    fuzz_ok(kd_config_read(&again, arena, dir));
    check_same(c, &again);
    json_decref(again.raw);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part parts[FUZZ_MAX_SLOTS];
    kd_arena *arena;
    kd_config c;
    fuzz_split(parts, slots, KD_COUNT(slots), data, size);
    fuzz_write(slots[0].name, parts[0].data, parts[0].bytes);
    if (parts[1].bytes)
        fuzz_write(slots[1].name, parts[1].data, parts[1].bytes);
    else
        fuzz_remove(slots[1].name);
    fuzz_ok(kd_arena_create(&arena));
    fuzz_begin();
    if (fuzz_accepted(kd_config_read(&c, arena, fuzz_folder()), KD_EFORMAT, KD_ENOTSUP,
                      fuzz_folder())) {
        check_bounds(&c);
        check_again(&c, arena);
        json_decref(c.raw);
    }
    kd_arena_destroy(arena);
    return 0;
}
