/* kd/generate.h - a model continues a prompt, piece by piece. */
#ifndef KD_GENERATE_H
#define KD_GENERATE_H

#include <kd/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One of `prompt`, `ids` and `file` says what is continued. */
typedef struct kd_generate_options {
    const char *model;  /* Hugging Face directory */
    const char *prompt; /* UTF-8 text, encoded with what the tokenizer puts around a text */
    const int32_t *ids; /* [id_count] */
    int64_t id_count;
    const char *file;   /* safetensors with integers `tokens` [n] */
    bool chat;          /* `prompt` is a user's turn in ChatML, the answer ends with <|im_end|> */
    int64_t tokens;     /* most that are made; 0: 128 */
    double temperature; /* of the softmax that is sampled; 0: greedy */
    int64_t top_k;      /* of the most probable; 0: all */
    double top_p;       /* fewest of them with this share together; 0: all */
    uint64_t seed;      /* same seed, same build, same machine: same tokens */
    const char *device; /* NULL: "auto" */
    const char *dtype;  /* of weights, activations and the cache, "f32" or "bf16"; NULL: "f32" */
} kd_generate_options;

typedef struct kd_generate_report {
    int64_t prompt_tokens, tokens; /* read; made, without the one that ended the text */
    bool ended;                    /* by an eos id, not by the number of tokens */
    double prompt_seconds, seconds;
} kd_generate_report;

/*
 * Takes each token as it is made.  `text` is the characters it completed, `bytes` long and ended by a
 * NUL that is not counted: often none, where a character takes several tokens; NULL where the model
 * has no tokenizer that kd reads.  Id -1 comes last with what was left of a broken character, if
 * anything was.  Special tokens have no text.  A failure ends the generation.
 */
typedef kd_status (*kd_generate_visit)(void *context, int32_t id, const char *text, size_t bytes);

/*
 * Continues the prompt until an eos id of the model's configuration or `tokens`.  Ids that the
 * tokenizer lacks (a padded vocabulary) are never made.  An empty text is continued from the bos id.
 *
 * KD_EINVAL: no prompt or two, an id outside the vocabulary, more tokens than learned positions.
 * KD_ENOTSUP: text for a model without a tokenizer, or text that is not encoded exactly; chat without
 * ChatML's tokens.  KD_ENONFINITE: logits that are.  KD_ENOMEM names what the cache would take.
 */
KD_MUST_CHECK kd_status kd_generate(kd_generate_report *report, const kd_generate_options *options,
                                    kd_generate_visit visit, void *context);

#ifdef __cplusplus
}
#endif
#endif
