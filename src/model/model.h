/*
 * model.h - a model is a list of layers and a table of weight names.
 *
 * registry.c transformer.c transformer_backward.c decode.c llama.c gpt2.c mlp.c weights.c init.c
 */
#ifndef KD_MODEL_INTERNAL_H
#define KD_MODEL_INTERNAL_H

#include "format/format.h"
#include "layer/layer.h"

/* ---- weight names ----------------------------------------------------------------------------- */

/* The parameters of a transformer, each known by its place; *_Q, *_K, *_V and *_GATE, *_UP are
 * runs of rows of one fused parameter. */
typedef enum kd_place {
    KD_PLACE_EMBEDDING,
    KD_PLACE_POSITION,
    KD_PLACE_NORM1,
    KD_PLACE_QKV,
    KD_PLACE_Q_NORM,
    KD_PLACE_K_NORM,
    KD_PLACE_OUT,
    KD_PLACE_NORM2,
    KD_PLACE_MLP_UP,
    KD_PLACE_MLP_DOWN,
    KD_PLACE_FINAL_NORM,
    KD_PLACE_HEAD,
    KD_PLACE_COUNT
} kd_place;

typedef enum kd_part {
    KD_PART_ALL,
    KD_PART_Q,
    KD_PART_K,
    KD_PART_V,
    KD_PART_GATE,
    KD_PART_UP
} kd_part;

/* One tensor of a Hugging Face checkpoint; "%d" in `name` is the block. */
typedef struct kd_name_row {
    const char *name;
    kd_place place;
    kd_part part;
    bool bias;
    bool transposed; /* stored [in, out] (GPT-2's Conv1D) */
} kd_name_row;

/* ---- families --------------------------------------------------------------------------------- */

typedef struct kd_model kd_model;
typedef struct kd_batch kd_batch;
typedef kd_status (*kd_block_done)(void *context, int block);

/* What computes a family: kd_model_forward and kd_model_backward are these. */
typedef struct kd_network {
    kd_status (*forward)(kd_model *model, kd_exec *exec, const kd_batch *batch, kd_taps *taps);
    kd_status (*backward)(kd_model *model, kd_exec *exec, const kd_batch *batch, kd_taps *taps,
                          kd_block_done done, void *context);
} kd_network;

extern const kd_network kd_network_transformer, kd_network_mlp;

/* A row of the registry: which names a family's checkpoint uses.  What its network computes is the
 * configuration's business alone. */
typedef struct kd_family {
    const char *name;            /* kd_config.family */
    const kd_name_row *names;    /* ends with name NULL */
    const char *optional_prefix; /* "transformer.": may be missing from every name; or NULL */
    const kd_network *network;
} kd_family;

extern const kd_family *const kd_families[]; /* NULL-terminated */

/* KD_ENOTSUP naming the family. */
KD_MUST_CHECK kd_status kd_family_find(const kd_family **family, const char *name);

/* ---- models ----------------------------------------------------------------------------------- */

typedef enum kd_recompute { KD_RECOMPUTE_NONE, KD_RECOMPUTE_BLOCKS } kd_recompute;

/* A hidden layer of the family mlp has mlp.up alone. */
typedef struct kd_block {
    kd_norm norm1, norm2;
    kd_attention attention;
    kd_mlp mlp;
} kd_block;

/* What one block keeps from forward to backward. */
typedef struct kd_block_saved {
    kd_norm_saved norm1, norm2;
    kd_attention_saved attention;
    kd_tensor middle; /* x + attention */
    kd_mlp_saved mlp;
} kd_block_saved;

struct kd_model {
    kd_arena *arena;
    const char *label; /* "student", "teacher": for messages */
    kd_config config;
    const kd_family *family;
    kd_slab slab;
    kd_dtype dtype; /* of activations, and of all weights that are not e4m3 */
    kd_recompute recompute;
    int embedding, position; /* parameter indices; -1: none */
    int head_weight, head_bias;
    kd_norm final_norm;
    kd_block *blocks;      /* [config.layers] */
    kd_tensor frequencies; /* f32 [r / 2] in device memory */

    /* The pass in flight, from forward to backward. */
    bool keeps_activations; /* there will be one */
    kd_tensor *hidden;      /* [layers + 1] block inputs, then the last block's output */
    kd_block_saved *saved;  /* [layers] */
    kd_norm_saved final_saved;
};

typedef struct kd_model_options {
    const char *label;
    /* Of weights and activations.  F8_E4M3: of the matrices in a frozen model's blocks but the first
     * and the last, with a scale per row, and bf16 elsewhere. */
    kd_dtype dtype;
    bool trainable;
    int moments;
    kd_recompute recompute;
    bool planning; /* declare and lay out, allocate and read nothing */
    /* Declares EXTRA parameters as of `block`, whose gradients are there when backward begins; they
     * are zero until their owner sets them.  NULL: none. */
    kd_status (*extend)(void *context, kd_params *params, int block);
    void *context;
} kd_model_options;

/* The dtype of that name, F32 for NULL; KD_EINVAL for what is none of a model. */
KD_MUST_CHECK kd_status kd_model_parse_dtype(kd_dtype *dtype, const char *name);

/* Declares, lays out and allocates; weights are zero until kd_model_load.  Takes over config.raw.
 * KD_ENOTSUP where the device has no e4m3 products of the model's sizes. */
KD_MUST_CHECK kd_status kd_model_create(kd_model **model, kd_device *device,
                                        const kd_config *config, const kd_model_options *options);
void kd_model_close(kd_model *model); /* NULL is fine */

/* Create and load from a Hugging Face directory. */
KD_MUST_CHECK kd_status kd_model_open(kd_model **model, kd_device *device, const char *dir,
                                      const kd_model_options *options);

/* The taps of a model of that configuration. */
KD_MUST_CHECK kd_status kd_model_offer(kd_offer *offer, kd_arena *arena, const kd_config *config,
                                       const char *label);

/* Bytes of device memory the model holds besides the stack. */
size_t kd_model_bytes(const kd_model *model);

/* Rows of a batch, in device memory. */
struct kd_batch {
    kd_tensor tokens; /* i32 [N] */
    kd_tensor inputs; /* f32 [N, D] of a model of samples, which reads nothing else here */
    kd_geometry geometry;
};

/* Fills `taps` (head included).  On a trainable model everything that backward needs stays on the
 * stack above the caller's mark; on a frozen one, or where taps->measured, only the taps stay. */
KD_MUST_CHECK kd_status kd_model_forward(kd_model *model, kd_exec *exec, const kd_batch *batch,
                                         kd_taps *taps);

/* After losses wrote taps->head.d_hidden and added tap gradients: adds to the slab's gradients.
 * `done` is told each block whose gradients are complete, from `layers` (final norm, untied head)
 * down to -1 (embeddings, tied head); it may be NULL. */
KD_MUST_CHECK kd_status kd_model_backward(kd_model *model, kd_exec *exec, const kd_batch *batch,
                                          kd_taps *taps, kd_block_done done, void *context);

/* ---- decoding --------------------------------------------------------------------------------- */

typedef struct kd_decoder {
    kd_model *model;
    int64_t capacity, length; /* rows of the caches, rows used */
    kd_kv_cache *caches;      /* [layers] */
    kd_arena *arena;
    void *memory;
    kd_stack stack;
    kd_exec exec;
    int64_t chunk; /* rows of one extend at most */
} kd_decoder;

KD_MUST_CHECK kd_status kd_decoder_open(kd_decoder *decoder, kd_model *model, int64_t capacity,
                                        int64_t chunk);
void kd_decoder_close(kd_decoder *decoder);

/* Appends `count` tokens; `logits` (host f32 [vocabulary]) gets those after the last one. */
KD_MUST_CHECK kd_status kd_decoder_extend(kd_decoder *decoder, float *logits, const int32_t *tokens,
                                          int64_t count);

typedef struct kd_sampling {
    double temperature; /* 0: greedy */
    int64_t top_k;      /* 0: all */
    double top_p;       /* 1: all */
    uint64_t seed;
} kd_sampling;

/* The next token from f32 logits [classes]; `index` numbers the draw.  `scratch` is i32 [classes]. */
int32_t kd_sample(const float *logits, int64_t classes, const kd_sampling *sampling, int64_t index,
                  int32_t *scratch);

/* ---- weights ---------------------------------------------------------------------------------- */

/* Whether the files are those of the configuration, before anything is allocated for it.  KD_EFORMAT
 * names a tensor that is missing, has another shape, or that the configuration says is not there;
 * KD_ENOTSUP one of a type that is no float.  `unknown` (may be NULL) gets the number of tensors that
 * the family has no name for. */
KD_MUST_CHECK kd_status kd_model_check(int64_t *unknown, const kd_config *config,
                                       const kd_model_files *files);

/* Every parameter from `files`, converted.  Refuses what kd_model_check does before it writes any, and
 * an element that is NaN or infinite. */
KD_MUST_CHECK kd_status kd_model_load(kd_model *model, const kd_model_files *files);

/* dir/model.safetensors and dir/config.json in `dtype`, from the f32 masters where there are any. */
KD_MUST_CHECK kd_status kd_model_save(const kd_model *model, const char *dir, kd_dtype dtype);

/* A student directory `out` made of `teacher`'s embeddings, head, final norm and the blocks in
 * `keep` (ascending), weights copied byte for byte, tokenizer files too. */
KD_MUST_CHECK kd_status kd_init_from_layers(const char *out, const char *teacher,
                                            const int64_t *keep, int64_t count);

/* A student directory with fresh weights: normal(0, initializer_range), norms 1, biases 0.
 * `tokenizer_dir` may be NULL. */
KD_MUST_CHECK kd_status kd_init_fresh(const char *out, const char *config_path,
                                      const char *tokenizer_dir, kd_dtype dtype, uint64_t seed);

#endif
