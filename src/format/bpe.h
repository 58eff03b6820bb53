/* bpe.h - what the tokenizers' files share; nobody else includes it. */
#ifndef KD_BPE_H
#define KD_BPE_H

#include "format/format.h"

/* ---- parts of tokenizer.json (tokenizer.c); KD_EFORMAT names `path`, part, found and expected ---- */

enum { KD_MAX_IDS = 1 << 24 };

/* `what` and `text` say whose id it is. */
KD_MUST_CHECK kd_status kd_token_id(int32_t *id, const char *path, const char *what,
                                    const char *text, const json_t *value);

/* `value`, the list called `name`; NULL where it is absent or null. */
KD_MUST_CHECK kd_status kd_token_list(const json_t **list, const char *path, const json_t *value,
                                      const char *name);

/* model.merges[i], "left right" or ["left", "right"].  `left` has `length` bytes and no NUL. */
KD_MUST_CHECK kd_status kd_token_merge(const char **left, size_t *length, const char **right,
                                       const char *path, const json_t *merge, size_t i);

/* added_tokens[i]; its flags are booleans where they are there. */
KD_MUST_CHECK kd_status kd_token_added(const char **text, int32_t *id, const char *path,
                                       const json_t *item, size_t i);

/* ---- characters ------------------------------------------------------------------------------- */

typedef enum kd_char_class {
    KD_CHAR_OTHER,
    KD_CHAR_LETTER,   /* \p{L} */
    KD_CHAR_NUMBER,   /* \p{N} */
    KD_CHAR_SPACE,    /* \s, of kd_unicode_runs */
    KD_CHAR_DISPUTED, /* letter or not, as the library's Unicode version has it */
    KD_CHAR_NEWLINE,  /* \r or \n, which are \s too; set by kd_classify */
    KD_CHAR_MASK = 7,
    KD_CHAR_UNSTABLE = 8,     /* NFC may change or move it */
    KD_CHAR_CONTINUED = 0x80, /* not the first byte of its character; set by kd_classify */
} kd_char_class;

/* unicode_table.c: first code point of a run << 8 | class, ascending from 0. */
extern const uint32_t kd_unicode_runs[];
extern const int kd_unicode_run_count;

/*
 * The character at text[0], of at most `bytes` >= 1: its length, 1 to 4.  Negative: -n bytes begin no
 * character (one U+FFFD stands for them).  0: all `bytes` begin one whose end is not there.
 */
int kd_utf8_next(const char *text, size_t bytes);

/* classes[i] of every byte; KD_EFORMAT names the offset of what is not UTF-8. */
KD_MUST_CHECK kd_status kd_classify(uint8_t *classes, const char *text, size_t bytes);

/* ---- pre-tokenisers --------------------------------------------------------------------------- */

typedef enum kd_split {
    KD_SPLIT_DIGITS, /* each number alone, the rest in runs */
    KD_SPLIT_GPT2,
    KD_SPLIT_LLAMA3,
    KD_SPLIT_QWEN2,
    KD_SPLIT_COUNT
} kd_split;

/* Pattern text as tokenizer.json has it; NULL for KD_SPLIT_DIGITS. */
extern const char *const kd_split_patterns[KD_SPLIT_COUNT];

/* Bytes of the first piece of [at, end), at < end.  Bytes before `at` and from `end` on do not
 * count: each piece of an earlier split is a text of its own. */
size_t kd_split_next(kd_split split, const char *text, const uint8_t *classes, size_t at,
                     size_t end);

/* ---- the tokenizer ---------------------------------------------------------------------------- */

enum { KD_MAX_SPLITS = 4, KD_MAX_WRAP = 16, KD_MAX_ADDED_BYTES = 512 };

typedef struct kd_bpe_token {
    const char *bytes; /* NULL: no token has this id */
    uint32_t length;
    bool plain;   /* of the vocabulary, spelled in the byte alphabet */
    bool special; /* an added token that decoding may skip */
} kd_bpe_token;

typedef struct kd_bpe_merge {
    int32_t left, right, rank, id;
} kd_bpe_merge;

typedef struct kd_bpe_added {
    const char *text;
    uint32_t length;
    int32_t id;
    const char *takes; /* "lstrip": its match depends on what is around it; NULL: on nothing */
} kd_bpe_added;

/* Added tokens in ascending order of their bytes. */
typedef struct kd_bpe_added_set {
    kd_bpe_added *items;
    int64_t count;
    bool first[256]; /* some token begins with this byte */
} kd_bpe_added_set;

struct kd_tokenizer {
    kd_arena *arena;
    const char *path;
    int64_t size;
    kd_bpe_token *tokens;      /* [size] */
    int32_t alphabet[256];     /* id of each byte alone; -1: not in the vocabulary */
    kd_bpe_merge *merges;      /* by left, then right */
    int64_t *merge_begin;      /* [size + 1] first merge of each left id */
    int32_t *words;            /* plain ids by their bytes; NULL: words are always merged */
    int64_t word_count;        /* of `words` */
    kd_bpe_added_set added[2]; /* matched before and after normalising */
    bool nfc;
    kd_split splits[KD_MAX_SPLITS];
    int split_count;
    int32_t prefix[KD_MAX_WRAP], suffix[KD_MAX_WRAP]; /* of the post-processor */
    int prefix_count, suffix_count;
    const char *no_encode; /* why this one only decodes; NULL: it encodes */
    const char *no_wrap;   /* why its post-processor is not known; NULL: it is */
};

/* The plain token of these bytes, count >= 1, where t->words is there; -1: none. */
int32_t kd_bpe_word(const kd_tokenizer *t, const char *bytes, size_t count);

/* What stands around the model: normaliser, pre-tokeniser, decoder and post-processor.  Needs the
 * tokens. */
KD_MUST_CHECK kd_status kd_bpe_load_pipeline(kd_tokenizer *t, const json_t *json);

/* The longest token of `set` that text begins with; NULL: none. */
const kd_bpe_added *kd_bpe_match(const kd_bpe_added_set *set, const char *text, size_t bytes);

#endif
