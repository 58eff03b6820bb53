/*
 * corpus.h - token files whose tokens say where they come from, and a loader's rows in their global
 * order.
 */
#ifndef KD_TEST_CORPUS_H
#define KD_TEST_CORPUS_H

#include "support/text_file.h"

enum {
    TEST_CORPORA = 3,
    TEST_MAX_TOKENS = 1000,
    TEST_STRIDE = 1000,
    TEST_VOCABULARY = TEST_CORPORA * TEST_STRIDE,
    TEST_MAX_ROWS = 1 << 15
};

/* Token `at` of corpus k is k * TEST_STRIDE + at.  Some documents are empty. */
typedef struct test_corpus {
    int64_t tokens[TEST_MAX_TOKENS], documents[64];
    uint8_t mask[TEST_MAX_TOKENS];
    int32_t document_of[TEST_MAX_TOKENS];
    int32_t label_of[TEST_MAX_TOKENS]; /* next token of the document where it is scored, or -1 */
    int64_t count, borders, targets;
    const char *path;
} test_corpus;

extern test_corpus test_corpora[TEST_CORPORA];

/* Writes `sources` corpora and returns options that read them: packed, shuffled, sequence 11, steps
 * and micro-batches of 12 samples, one rank. */
kd_loader_options test_corpora_options(int sources);

/* The same in one of the four ways to read: bit 0 shuffled, bit 1 not packed. */
kd_loader_options test_mode(int index, int sources);

/* They fail the test with the engine's message. */
kd_loader *test_loader_open(const kd_loader_options *options);
const kd_step_batch *test_loader_next(kd_loader *loader); /* NULL: the end */

typedef struct test_row {
    int32_t token, label, position, document;
    bool starts; /* a piece.  In place of cu, which depends on where a micro-batch begins */
} test_row;

typedef struct test_record {
    test_row rows[TEST_MAX_ROWS];
    int64_t count, valid_count;
} test_record;

/* Adds a micro-batch's rows, after checking what holds for every one: cu, valid, positions. */
void test_append(test_record *out, const kd_micro_batch *m);

/* Up to `steps` steps of all ranks from `cursor` (NULL: the start); cursors[k] (NULL: not wanted) is
 * where step k began, one more when the pass ended.  Returns the steps that there were. */
int64_t test_gather(test_record *out, kd_loader_options o, int ranks, int64_t micro_samples,
                    const kd_cursor *cursor, int64_t steps, kd_cursor *cursors);

/* Fails naming the case by `fmt` unless both have the same rows. */
void test_same_rows(const test_record *got, const test_record *want, const char *fmt, ...)
    KD_PRINTF(3, 4);

#endif
