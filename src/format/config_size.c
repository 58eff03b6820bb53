/*
 * config_size.c - what follows from a configuration: parameters, operations, rotary frequencies.
 *
 * The bounds of hf_config.c keep every product here below 2^62.
 */
#include "format/format.h"

#include <math.h>

/* Weights of the matrix products of one block. */
static int64_t block_matrices(const kd_config *c)
{
    const int64_t q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    const int64_t mlp = (c->mlp == KD_MLP_SWIGLU ? 3 : 2) * c->width * c->ffn;
    return c->width * (2 * q + 2 * kv) + mlp;
}

/* Biases and gains of one block. */
static int64_t block_vectors(const kd_config *c)
{
    const int64_t q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    const int64_t norm = (c->norm == KD_NORM_LAYER ? 2 : 1) * c->width;
    int64_t n = 2 * norm;
    if (c->qkv_bias) n += q + 2 * kv;
    if (c->output_bias) n += c->width;
    if (c->mlp_bias) n += (c->mlp == KD_MLP_SWIGLU ? 2 : 1) * c->ffn + c->width;
    if (c->qk_norm) n += 2 * c->head_size;
    return n;
}

/* Weights of the products of a model of samples but its head. */
static int64_t sample_matrices(const kd_config *c)
{
    int64_t n = 0;
    for (int64_t l = 0; l < c->layers; l++) n += c->hidden[l] * kd_config_width(c, l);
    return n;
}

static int64_t sample_parameters(const kd_config *c)
{
    int64_t n = sample_matrices(c) + c->vocabulary * (c->width + 1);
    for (int64_t l = 0; l < c->layers; l++) n += c->hidden[l];
    return n;
}

int64_t kd_config_parameters(const kd_config *config)
{
    const kd_config *c = config;
    if (c->inputs) return sample_parameters(c);
    const int64_t table = c->vocabulary * c->width;
    int64_t n = table + c->layers * (block_matrices(c) + block_vectors(c));
    if (c->position == KD_POSITION_LEARNED) n += c->max_positions * c->width;
    n += (c->norm == KD_NORM_LAYER ? 2 : 1) * c->width;
    return c->tied ? n : n + table;
}

int64_t kd_config_flops(const kd_config *config)
{
    const int64_t head = config->vocabulary * config->width;
    if (config->inputs) return 2 * (sample_matrices(config) + head);
    return 2 * (config->layers * block_matrices(config) + head);
}

int64_t kd_config_width(const kd_config *config, int64_t layer)
{
    if (!config->inputs) return config->width;
    return layer ? config->hidden[layer - 1] : config->inputs;
}

/* Llama 3.1: slow turns are slowed by `factor`, fast ones kept, those between interpolated
 * (transformers, modeling_rope_utils.py, _compute_llama3_parameters). */
static double llama3(double frequency, const kd_config *c)
{
    const double turn = 2 * acos(-1) / frequency; /* positions */
    if (turn < c->rope_original / c->rope_high) return frequency;
    if (turn > c->rope_original / c->rope_low) return frequency / c->rope_factor;
    const double kept = (c->rope_original / turn - c->rope_low) / (c->rope_high - c->rope_low);
    return (1 - kept) * frequency / c->rope_factor + kept * frequency;
}

void kd_config_rope(float *frequencies, float *scale, const kd_config *config)
{
    const int64_t columns = (int64_t)((double)config->head_size * config->rotary_share);
    *scale = 1;
    for (int64_t i = 0; i < columns / 2; i++) {
        double f = pow(config->rope_theta, -2.0 * (double)i / (double)columns);
        if (config->rope_scaling == KD_ROPE_LINEAR) f /= config->rope_factor;
        if (config->rope_scaling == KD_ROPE_LLAMA3) f = llama3(f, config);
        frequencies[i] = (float)f;
    }
}
