/*
 * data.h - from files of tokens or samples to whole optimizer steps, with counts.
 *
 * text.c text_safetensors.c text_llmc.c text_megatron.c text_json.c samples.c loader.c
 */
#ifndef KD_DATA_H
#define KD_DATA_H

#include "format/format.h"

/* ---- text: documents of tokens, in any format -------------------------------------------------- */

/*
 * What a file is, its name says; what is in it is checked:
 *
 *   x.safetensors   `tokens` u16, u32 or i32 [n], `documents` i64 [d + 1] (absent: one document),
 *                   `loss_mask` u8 [n] (absent: all ones; 1 = the token counts as a target)
 *   x.bin           llm.c's tokens; a document begins with the tokenizer's end-of-text token
 *   x.bin, x.idx    Megatron's indexed data set; either name
 *   x.jsonl         {"text": ...} on each line, tokenised when it is opened
 *
 * A name without a file that has *, ? or [ in it stands for all files that match, in the order of
 * their names: shards of one text.
 */
typedef struct kd_text kd_text;

typedef struct kd_text_options {
    int64_t vocabulary;      /* every id is below it */
    const char *tokenizer;   /* folder of the models' tokenizer; NULL: none known */
    const char *fingerprint; /* its; NULL: a file's own is not compared */
} kd_text_options;

/* KD_EFORMAT naming file, tensor or field, byte, found and expected: an empty file, another dtype or
 * shape, sizes that contradict each other, documents that do not run from 0 to n without going down, a
 * loss_mask that is neither 0 nor 1, a token id beyond the vocabulary, a file made with another
 * tokenizer.  Reads every file once. */
KD_MUST_CHECK kd_status kd_text_open(kd_text **text, const char *path,
                                     const kd_text_options *options);
void kd_text_close(kd_text *text);
int64_t kd_text_tokens(const kd_text *text);
int64_t kd_text_documents(const kd_text *text);
void kd_text_document(const kd_text *text, int64_t document, int64_t *begin, int64_t *end);

/* Ids of the tokens [at, at + count) of a document that ends before token `end`, and their labels:
 * the token after each, -1 at the document's end and where the loss_mask of that token says no.
 * Allocates nothing; ids are checked again. */
KD_MUST_CHECK kd_status kd_text_read(int32_t *ids, int32_t *labels, const kd_text *text, int64_t at,
                                     int64_t count, int64_t end);

/* Tokens that can be a label: scored, and not the first of their document. */
int64_t kd_text_targets(const kd_text *text);

/* ---- samples: rows of numbers with a class ------------------------------------------------------ */

/*
 * A safetensors file with `inputs` f32 [n, ...], or u8 that stands for x / 255, the dimensions after the
 * first being one row of numbers, and `labels` [n] of integers.
 */
typedef struct kd_samples kd_samples;

typedef struct kd_samples_options {
    int64_t inputs;  /* numbers of a sample */
    int64_t classes; /* every label is below it */
} kd_samples_options;

/* KD_EFORMAT naming file, tensor, byte, found and expected.  Reads the file once. */
KD_MUST_CHECK kd_status kd_samples_open(kd_samples **samples, const char *path,
                                        const kd_samples_options *options);
void kd_samples_close(kd_samples *samples); /* NULL is fine */
int64_t kd_samples_count(const kd_samples *samples);

/* `inputs` may be NULL.  Allocates nothing. */
KD_MUST_CHECK kd_status kd_samples_read(float *inputs, int32_t *label, const kd_samples *samples,
                                        int64_t sample);

/* ---- the loader ------------------------------------------------------------------------------- */

enum { KD_MAX_SOURCES = 16 };

typedef enum kd_pack { KD_PACK_DOCUMENTS, KD_PACK_NONE } kd_pack;

typedef struct kd_loader_options {
    const char *files[KD_MAX_SOURCES];
    double weights[KD_MAX_SOURCES]; /* shares of samples; any positive scale.  The next sample is of
                                       the source furthest behind its share, the first of equals */
    int sources;
    int64_t vocabulary;
    const char *tokenizer, *fingerprint; /* as kd_text_options has them */
    int64_t inputs;                      /* the files are samples of so many numbers; 0: tokens */
    int64_t sequence;                    /* tokens per sample; 1 of samples */
    kd_pack pack;          /* documents: several in a sample, attention does not cross them;
                             none: one document (or a piece of one) per sample, padded */
    int64_t step_samples;  /* global, per optimizer step */
    int64_t micro_samples; /* per micro-batch; step_samples % (micro_samples * ranks) == 0 */
    int rank, ranks;
    uint64_t seed;
    bool shuffle;        /* off: file order, once; the end is reported */
    int64_t max_samples; /* 0: no bound; with shuffle off, stop after so many */
} kd_loader_options;

/*
 * A source is an endless row of epochs when shuffling, and one pass in file order when not; a source
 * that ends leaves its share to the others.
 *
 * Packed: an epoch's documents, in its order, are one stream of tokens; sample r is the tokens
 * [r * sequence, (r + 1) * sequence) of it, cut into pieces where a document begins.  What is left at
 * the end of an epoch and fills no sample is dropped when shuffling (other tokens in each epoch) and
 * padded when not.
 * Not packed: a sample is one piece, `sequence` consecutive tokens of one document or its shorter
 * rest, padded; the order of pieces is shuffled.
 *
 * Of samples: a sample is one row, a document of its own, and the order of samples is shuffled.
 *
 * Rank r, micro-batch m, slot i hold sample (r * micro_count + m) * micro_samples + i of the step, so
 * which samples make a step depends on neither ranks nor micro_samples.
 *
 * One micro-batch: N = micro_samples * sequence rows.  A row's label is the token after it in its
 * document, also where that lies beyond the piece; -1 at the document's end and where the label's
 * loss_mask says no.  Positions count from 0 in each piece.  Padding (token 0, label -1, document
 * -1) is a piece of its own.
 */
typedef struct kd_micro_batch {
    const int32_t *tokens, *positions, *labels; /* [N] */
    const float *inputs; /* [N, D] of samples, whose tokens and positions are 0, and of padding */
    const int32_t *samples;   /* [N] of samples: which of those of all sources, one source after the
                                 other; 0 of padding; NULL of tokens */
    const int32_t *documents; /* [N] index of the document in its source, -1: padding */
    const int32_t *cu;        /* [N + 1] starts of the pieces, then N repeated */
    const int32_t *valid;     /* [N] rows with a label, ascending, then -1 */
    int64_t valid_count;
    int64_t rows;
} kd_micro_batch;

typedef struct kd_step_batch {
    kd_micro_batch *micro; /* [micro_count] */
    int64_t micro_count;
    int64_t valid_count; /* of this rank's whole step */
    int64_t epoch;       /* of the first source at the step's first sample; 0: not shuffled */
} kd_step_batch;

/* Where the next step begins; goes into the checkpoint.  Independent of ranks and micro-batches.
 * Samples of padding alone, at the end of an unshuffled pass, are not counted. */
typedef struct kd_cursor {
    int64_t samples;                        /* taken so far, all ranks: the sum of the next line */
    int64_t source_samples[KD_MAX_SOURCES]; /* of each source */
} kd_cursor;

typedef struct kd_loader kd_loader;

/* Starts a prefetch thread; nothing is allocated after the first kd_loader_next.  KD_EINVAL names
 * the option, also for a file that shuffled and packed fills no sample. */
KD_MUST_CHECK kd_status kd_loader_open(kd_loader **loader, const kd_loader_options *options);
void kd_loader_close(kd_loader *loader); /* NULL is fine */

/* The next step begins at `cursor`, of a run with the same files in the same order, sequence, pack
 * and seed; the rest may differ.  KD_EINVAL for a cursor that no run can have. */
KD_MUST_CHECK kd_status kd_loader_seek(kd_loader *loader, const kd_cursor *cursor);

/* `*batch` stays valid until the next call; NULL at the end of an unshuffled pass, whose last step
 * may hold padding.  `wait` (may be NULL) gets the seconds spent waiting for the disk.
 * A failure of the prefetch thread comes out here, and the next call tries the same step again. */
KD_MUST_CHECK kd_status kd_loader_next(const kd_step_batch **batch, kd_loader *loader,
                                       double *wait);
void kd_loader_cursor(kd_cursor *cursor, const kd_loader *loader);

/* Of all sources: tokens (or samples), documents and the share of tokens that are targets (kd_text_targets). */
void kd_loader_describe(const kd_loader *loader, int64_t *tokens, int64_t *documents,
                        double *scored);

#endif
