/* formats.h - what the readers of token files share; nobody outside this folder includes it. */
#ifndef KD_FORMATS_H
#define KD_FORMATS_H

#include "data/data.h"

/* Integers side by side, little-endian, unaligned: in the part's file, or in memory. */
typedef struct kd_numbers {
    const void *memory; /* NULL: in the file */
    int64_t offset;     /* in the file: byte of the first */
    int64_t count;
    int size; /* bytes of one: 1, 2, 4, 8; 0: there are none */
    bool is_signed;
} kd_numbers;

/* One file of a text. */
typedef struct kd_text_part {
    kd_arena *arena;         /* of the text */
    const char *path;        /* of the file that has the tokens */
    int fd;                  /* -1: none */
    kd_numbers tokens, mask; /* mask: 0 or 1 for each token; none: all count */
    int64_t *documents;      /* [document_count + 1] rising from 0 to tokens.count; free() */
    int64_t document_count;
    bool cut; /* no `documents` yet: each `separator` begins one */
    int32_t separator;
    const char *tokenizer; /* fingerprint that the file records; NULL: none */
    void *memory;          /* free() */
    int64_t targets;
    int64_t first_token, first_document; /* in the text */
} kd_text_part;

/* What the parts of a text are opened with. */
typedef struct kd_text_setup {
    const char *path; /* of the part as it was given */
    const kd_text_options *options;
    kd_tokenizer *tokenizer; /* kd_text_tokenizer's */
    bool separator_known;    /* text_llmc.c's */
    int32_t separator;
} kd_text_setup;

/* Opened once, of options->tokenizer; KD_EFORMAT where the options name none. */
KD_MUST_CHECK kd_status kd_text_tokenizer(kd_tokenizer **tokenizer, kd_text_setup *setup);

/* part->path, fd and the file's size. */
KD_MUST_CHECK kd_status kd_part_file(kd_text_part *part, int64_t *bytes, const char *path);

KD_MUST_CHECK kd_status kd_part_read(int64_t *to, const kd_text_part *part,
                                     const kd_numbers *numbers, int64_t at, int64_t count);

/* A reader fills a zeroed part (fd -1) and validates what is its format's own: sizes against the
 * file's size before anything is allocated by them.  What all have in common (ids in the vocabulary,
 * masks of 0 and 1, at least one token) is checked after it.  On failure the part is released. */
KD_MUST_CHECK kd_status kd_part_safetensors(kd_text_part *part, kd_text_setup *setup);
KD_MUST_CHECK kd_status kd_part_llmc(kd_text_part *part, kd_text_setup *setup);
KD_MUST_CHECK kd_status kd_part_megatron(kd_text_part *part, kd_text_setup *setup);
KD_MUST_CHECK kd_status kd_part_json_lines(kd_text_part *part, kd_text_setup *setup);

#endif
