/*
 * format.h - models and data on disk: safetensors, sharded models, Hugging Face configurations.
 *
 * safetensors.c safetensors_write.c integers.c model_files.c
 * hf_config.c mlp_config.c hf_config_write.c config_size.c
 * tokenizer.c bpe.c bpe_load.c bpe_pipeline.c pretokenize.c unicode_table.c
 */
#ifndef KD_FORMAT_H
#define KD_FORMAT_H

#include "tensor/tensor.h"

/* ---- safetensors ------------------------------------------------------------------------------ */

enum { KD_ST_MAX_RANK = 8 };

typedef struct kd_st_entry {
    const char *name;
    int dtype; /* kd_dtype, or -1 for a type of the format that kd does not compute with */
    const char *dtype_name; /* as the file says: "F64" */
    int32_t rank;
    int64_t shape[KD_ST_MAX_RANK];
    int64_t elements;
    int64_t offset, bytes; /* of the data, from the start of the file */
} kd_st_entry;

typedef struct kd_st_file {
    kd_arena *arena; /* owns everything here */
    const char *path;
    int fd;
    int64_t size;
    kd_st_entry *entries; /* sorted by name */
    int64_t count;
    json_t *metadata; /* strings; NULL: none */
} kd_st_file;

/* Validates everything before anything is allocated by it; KD_EFORMAT names file, tensor, byte
 * offset, found and expected.  What is refused is listed in the head of safetensors.c. */
KD_MUST_CHECK kd_status kd_st_open(kd_st_file **file, const char *path);
void kd_st_close(kd_st_file *file); /* NULL is fine */

const kd_st_entry *kd_st_find(const kd_st_file *file, const char *name); /* NULL: none */
const char *kd_st_metadata(const kd_st_file *file, const char *key);

/* Elements [first, first + count) converted to `dtype` (F32, BF16, F16 among each other; any other
 * type only to itself). */
KD_MUST_CHECK kd_status kd_st_read(void *to, kd_dtype dtype, const kd_st_file *file,
                                   const kd_st_entry *entry, int64_t first, int64_t count);

/* Whether a tensor of that type has integers; all of them as i32, KD_EFORMAT naming the first that is
 * not in [least, most], which are i32 themselves. */
bool kd_st_integer(int dtype);
KD_MUST_CHECK kd_status kd_st_read_integers(int32_t *to, const kd_st_file *file,
                                            const kd_st_entry *entry, int64_t least, int64_t most);

/* KD_EFORMAT naming the first of `count` values, read from element `first` on, that is NaN or
 * infinite. */
KD_MUST_CHECK kd_status kd_st_check_finite(const kd_st_file *file, const kd_st_entry *entry,
                                           int64_t first, const float *values, int64_t count);

typedef struct kd_st_writer kd_st_writer;

/* Declare every tensor, then begin, then write each whole tensor's elements in any number of pieces,
 * in order; close fsyncs and refuses a tensor that was not written whole.  On failure the file is
 * removed by kd_st_writer_abort.  Entries are laid out as the reference does: by alignment, then by
 * name; the header is padded with spaces to 8 bytes. */
KD_MUST_CHECK kd_status kd_st_writer_create(kd_st_writer **writer, const char *path);
KD_MUST_CHECK kd_status kd_st_writer_metadata(kd_st_writer *writer, const char *key,
                                              const char *value);
KD_MUST_CHECK kd_status kd_st_writer_declare(kd_st_writer *writer, const char *name, kd_dtype dtype,
                                             int32_t rank, const int64_t *shape);
KD_MUST_CHECK kd_status kd_st_writer_begin(kd_st_writer *writer);
KD_MUST_CHECK kd_status kd_st_writer_write(kd_st_writer *writer, const char *name, const void *data,
                                           size_t bytes);
KD_MUST_CHECK kd_status kd_st_writer_close(kd_st_writer *writer); /* frees it, also on failure */
void kd_st_writer_abort(kd_st_writer *writer);                    /* NULL is fine */

/* ---- a model's weights: one file, or shards with an index ------------------------------------- */

typedef struct kd_model_files {
    kd_arena *arena;
    const char *dir;
    kd_st_file **files;
    int count;
    int64_t bytes; /* of all tensors */
} kd_model_files;

/* model.safetensors, or model.safetensors.index.json; refuses an index that points outside `dir`, a
 * missing shard, a tensor in two shards, and a name that the index and the shard disagree on. */
KD_MUST_CHECK kd_status kd_model_files_open(kd_model_files **files, const char *dir);
void kd_model_files_close(kd_model_files *files);

/* NULL: no such tensor. */
const kd_st_entry *kd_model_files_find(const kd_model_files *files, const char *name,
                                       const kd_st_file **file);

/* ---- Hugging Face config.json ----------------------------------------------------------------- */

typedef enum kd_norm_kind { KD_NORM_RMS, KD_NORM_LAYER } kd_norm_kind;
typedef enum kd_position_kind {
    KD_POSITION_ROPE,
    KD_POSITION_LEARNED,
    KD_POSITION_NONE
} kd_position_kind;
typedef enum kd_mlp_kind {
    KD_MLP_SWIGLU,
    KD_MLP_GELU,
    KD_MLP_GELU_TANH,
    KD_MLP_RELU /* of the family mlp */
} kd_mlp_kind;
typedef enum kd_rope_scaling { KD_ROPE_PLAIN, KD_ROPE_LINEAR, KD_ROPE_LLAMA3 } kd_rope_scaling;

enum { KD_MLP_MAX_LAYERS = 64 };

/* What drives the one transformer, and the MLP.  `family` names the row of the model registry. */
typedef struct kd_config {
    const char *family;       /* "llama", "mistral", "qwen2", "qwen3", "gpt2", "mlp" */
    const char *architecture; /* "LlamaForCausalLM" */
    const char *dir;          /* where it was read; NULL: made here */
    json_t *raw;              /* a copy of the file; the config's owner calls json_decref */
    int64_t layers, width, heads, kv_heads, head_size, ffn, vocabulary, max_positions;
    kd_norm_kind norm;
    double norm_eps;
    kd_position_kind position;
    double rope_theta;
    kd_rope_scaling rope_scaling;
    double rope_factor, rope_low, rope_high, rope_original; /* llama3 */
    double rotary_share;                                    /* of the head's columns that turn; 1 */
    bool qkv_bias, output_bias, mlp_bias, qk_norm, tied, causal;
    kd_mlp_kind mlp;
    int64_t window;      /* 0: unlimited */
    int64_t window_from; /* first layer with the window (Qwen2 max_window_layers) */
    double attention_softcap, head_softcap; /* 0: none */
    int64_t bos, eos[8], pad;               /* -1: none; eos ends with -1 */
    /* Of a model of samples, as the MLP, whose `layers` are the hidden ones, `width` what its head reads
     * and `vocabulary` its classes: numbers of a sample (0: a model of tokens), and of each layer. */
    int64_t inputs, hidden[KD_MLP_MAX_LAYERS];
} kd_config;

/* Reads dir/config.json (and generation_config.json for eos).  KD_EFORMAT on a field out of its
 * bounds, KD_ENOTSUP naming an architecture or a feature that kd does not compute. */
KD_MUST_CHECK kd_status kd_config_read(kd_config *config, kd_arena *arena, const char *dir);
KD_MUST_CHECK kd_status kd_config_parse(kd_config *config, kd_arena *arena, const char *source,
                                        const json_t *json);

/* config.json of `config`: its raw file with the fields that kd may have changed (layers, dtype,
 * vocabulary, tie) set, per-layer lists cut to the kept layers. */
KD_MUST_CHECK kd_status kd_config_write(const kd_config *config, const char *path, kd_dtype dtype);

/* Parameters, and floating-point operations of one token's forward pass without attention scores. */
int64_t kd_config_parameters(const kd_config *config);
int64_t kd_config_flops(const kd_config *config);

/* Of hidden states: 0 are the embeddings, or the inputs of samples. */
int64_t kd_config_width(const kd_config *config, int64_t layer);

/* Cosine tables are not needed: angles are positions * frequencies.  frequencies has
 * head_size * rotary_share / 2 entries; `scale` multiplies sine and cosine. */
void kd_config_rope(float *frequencies, float *scale, const kd_config *config);

/* ---- tokenizers ------------------------------------------------------------------------------- */

typedef struct kd_tokenizer_info {
    const char *dir;     /* as it was given, not a copy */
    bool present;        /* the folder has a tokenizer.json */
    kd_hash fingerprint; /* of ids, tokens, merges and normaliser, not of the file's bytes */
    int64_t size;        /* largest id + 1, added tokens included */
} kd_tokenizer_info;

/* The fingerprint is XXH3-128 of a text defined at the head of tokenizer.c; tools/data computes the
 * same in Python. */
KD_MUST_CHECK kd_status kd_tokenizer_inspect(kd_tokenizer_info *info, const char *dir);

/* Copies the tokenizer's and the chat template's files that exist, byte for byte. */
KD_MUST_CHECK kd_status kd_tokenizer_copy(const char *to_dir, const char *from_dir);

/*
 * A byte-level BPE tokenizer, out of dir/tokenizer.json: GPT-2, Llama 3, Qwen2, SmolLM2 and what is
 * built like them.  It gives the ids that PyPI tokenizers gives, or refuses.
 *
 * KD_ENOTSUP names a model, decoder or merge rule that kd does not compute, KD_EFORMAT what is broken.
 * A pre-tokeniser, a normaliser or an added token that kd does not know is no obstacle to decoding:
 * it is refused by the first kd_tokenizer_encode.
 */
typedef struct kd_tokenizer kd_tokenizer;
KD_MUST_CHECK kd_status kd_tokenizer_open(kd_tokenizer **tokenizer, const char *dir);
void kd_tokenizer_close(kd_tokenizer *tokenizer); /* NULL is fine */

int64_t kd_tokenizer_size(const kd_tokenizer *tokenizer);                    /* largest id + 1 */
int32_t kd_tokenizer_added(const kd_tokenizer *tokenizer, const char *text); /* its id; -1: none */

/* Ids of UTF-8 text; free() them.  `wrap` adds what the post-processor puts around a text (Llama 3's
 * <|begin_of_text|>).  KD_EFORMAT names the byte offset of what is not UTF-8, KD_ENOTSUP that of a
 * character whose ids depend on the Unicode version of whoever is asked. */
KD_MUST_CHECK kd_status kd_tokenizer_encode(int32_t **ids, int64_t *count,
                                            const kd_tokenizer *tokenizer, const char *text,
                                            size_t bytes, bool wrap);

/* Text of ids and a NUL that `bytes` does not count; free() it.  What is not UTF-8 becomes U+FFFD,
 * an id without a token nothing, one past the last KD_EINVAL. */
KD_MUST_CHECK kd_status kd_tokenizer_decode(char **text, size_t *bytes,
                                            const kd_tokenizer *tokenizer, const int32_t *ids,
                                            int64_t count, bool skip_special);

/* Decoding one id at a time: the text that is whole so far.  Pieces and the end put together are
 * what kd_tokenizer_decode gives. */
typedef struct kd_text_stream {
    const kd_tokenizer *tokenizer;
    bool skip_special;
    unsigned char held[4]; /* bytes of a character that has begun */
    int held_count;
    char *text; /* the last piece; free() it in the end */
    size_t capacity;
} kd_text_stream;

/* `text` lives in the stream until its next call.  Id -1 ends it: what is held becomes U+FFFD. */
KD_MUST_CHECK kd_status kd_text_stream_push(const char **text, size_t *bytes,
                                            kd_text_stream *stream, int32_t id);

#endif
