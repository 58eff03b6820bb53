/* kd/model.h - models as Hugging Face directories: what is in one, its logits, new students. */
#ifndef KD_MODEL_H
#define KD_MODEL_H

#include <kd/tensor.h>

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- looking ---------------------------------------------------------------------------------- */

typedef struct kd_model_info {
    char architecture[64]; /* "LlamaForCausalLM" */
    char family[32];       /* "llama" */
    int64_t layers, width, heads, kv_heads, head_size, ffn;
    int64_t vocabulary, max_positions, window; /* window 0: unlimited */
    int64_t
        inputs; /* numbers of a sample, of a model that classifies samples; 0: a model of tokens */
    bool tied;  /* the head is the embedding table */
    int64_t parameters;
    double flops_per_token; /* of a forward pass, without attention scores */
    int64_t weight_bytes;   /* of all tensors on disk; 0: there are none */
    int weight_files;
    char dtypes[64];        /* of those tensors: "bf16", "bf16 f32" */
    bool has_tokenizer;     /* tokenizer.json is there */
    char tokenizer[33];     /* its fingerprint, 32 hexadecimal digits */
    int64_t tokenizer_size; /* largest id + 1 */
    bool has_manifest;      /* a checkpoint: kd_checkpoint_check can verify it */
} kd_model_info;

/* From config.json, the weight files' headers and tokenizer.json; reads no weights.  KD_EFORMAT for
 * what is damaged or missing, KD_ENOTSUP naming an architecture that kd does not compute. */
KD_MUST_CHECK kd_status kd_model_describe(kd_model_info *info, const char *dir);

/*
 * Prints what `path` is on `out`.  A directory: kd_model_describe as a table, and, where it has a
 * MANIFEST.json, whether every file is as it was written (reads them all; KD_EFORMAT when one is
 * not).  A safetensors file: its tensors and metadata.  `json`: the same as one object.
 */
KD_MUST_CHECK kd_status kd_inspect(FILE *out, const char *path, bool json);

/* ---- logits ----------------------------------------------------------------------------------- */

typedef struct kd_logits_options {
    const char *model;  /* directory */
    const char *tokens; /* safetensors file with `tokens` [n], u16, u32, i32 or i64 */
    const char *out;    /* safetensors file that is written */
    const char *device; /* NULL: "auto" */
    const char *dtype; /* of weights and activations, "f32" or "bf16", or "f8_e4m3" as of a teacher;
                         * NULL: "f32" */
} kd_logits_options;

/*
 * Writes `logits` [n, V], f32: row i are the logits of the token after tokens[0..i], which are one
 * document; V is the model's vocabulary, padding included.  The head runs in chunks of rows, so no
 * [n, V] is held in memory; activations of n tokens are.
 *
 * KD_EFORMAT: a token outside the vocabulary, or more tokens than learned positions.  KD_ENOMEM
 * names what n tokens would take.
 */
KD_MUST_CHECK kd_status kd_logits_write(const kd_logits_options *options);

/* ---- new students ----------------------------------------------------------------------------- */

/*
 * A directory `out` with `teacher`'s embeddings, head, final norm and the layers keep[0..count), which
 * ascend; weights are copied byte for byte, tokenizer files too.
 * KD_EFORMAT when `out` holds a model already.
 */
KD_MUST_CHECK kd_status kd_student_from_layers(const char *out, const char *teacher,
                                               const int64_t *keep, int64_t count);

/*
 * A directory `out` with the architecture of the file `config` (a config.json) and fresh weights:
 * normal(0, initializer_range), norms 1, biases 0, a function of `seed` alone.  Tokenizer files are
 * copied from the directory `tokenizer`, unless it is NULL.
 * KD_EFORMAT when `out` holds a model already.
 */
KD_MUST_CHECK kd_status kd_student_fresh(const char *out, const char *config, const char *tokenizer,
                                         kd_dtype dtype, uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
