/*
 * text_file.h - token files for tests, written byte by byte and without the engine's own writer, so
 * that they can also be wrong.
 */
#ifndef KD_TEST_TEXT_FILE_H
#define KD_TEST_TEXT_FILE_H

#include "data/data.h"

/* What goes into a file.  loss_mask comes first and the header has an odd length, so that tokens and
 * documents are unaligned wherever they can be. */
typedef struct test_text {
    const char *dtype; /* of tokens: "U16", "U32", "I32", or one that is refused; NULL: no tensor */
    const int64_t *tokens;
    int64_t count;
    const int64_t *documents; /* NULL: absent */
    int64_t borders;          /* d + 1 */
    const uint8_t *mask;      /* NULL: absent */
    int64_t mask_count;
    const char *documents_dtype, *mask_dtype; /* NULL: "I64", "U8"; same width as those */
    bool matrix;                              /* tokens of shape [1, count] */
} test_text;

/* The path of file `name` in a folder of this process; static memory, valid for 8 calls. */
const char *test_text_path(const char *name);

/* Writes it there; returns the path, as above. */
const char *test_text_write(const char *name, const test_text *text);

/* The same of `count` random tokens in documents of all sizes; `masked`: 40 of 60 are scored, so that every
 * micro-batch has another number of rows. */
const char *test_text_random(const char *name, int64_t count, int64_t vocabulary, bool masked);

/* Of the last file written: where its tokens begin, in bytes. */
int64_t test_text_tokens_offset(void);

/* Any bytes, as file `name` there; returns the path. */
const char *test_bytes_write(const char *name, const void *data, size_t bytes);

/* Opening it is refused with KD_EFORMAT and a message that names the file and has every part of
 * `parts`, "a|b|c". */
void test_text_refused(const char *path, const kd_text_options *options, const char *parts);

/* The whole text: `count` tokens, equal to `ids`; labels are the next of a document where `mask` (NULL:
 * all ones) lets it be one. */
void test_text_holds(const kd_text *text, const int32_t *ids, const uint8_t *mask, int64_t count);

/* Its documents run between these. */
void test_text_borders(const kd_text *text, const int64_t *borders, int64_t count);

/* Removes the folder. */
void test_text_remove(void);

#endif
