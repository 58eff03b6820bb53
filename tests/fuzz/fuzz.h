/*
 * fuzz.h - what the fuzz targets share: bytes become the files that a reader opens, and are mutated by
 * what they mean.
 *
 * fuzz.c (files and verdicts) mutate.c (inputs of several files) mutate_text.c (JSON and YAML) replay.c
 */
#ifndef KD_FUZZ_H
#define KD_FUZZ_H

#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What libFuzzer calls, and what it offers. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

/* ---- inputs of several files ------------------------------------------------------------------ */

typedef enum fuzz_kind { FUZZ_BYTES, FUZZ_JSON, FUZZ_SAFETENSORS, FUZZ_YAML } fuzz_kind;

typedef struct fuzz_slot {
    const char *name;
    fuzz_kind kind;
} fuzz_slot;

enum { FUZZ_MAX_SLOTS = 4 };

typedef struct fuzz_part {
    const uint8_t *data;
    size_t bytes;
} fuzz_part;

/* Each file but the last has its length, u32 little-endian, before it; the last is the rest.  A length
 * beyond the end means what is there. */
void fuzz_split(fuzz_part parts[FUZZ_MAX_SLOTS], const fuzz_slot *slots, int count,
                const uint8_t *data, size_t size);

/* Changes one of the files as its kind says; the new size. */
size_t fuzz_mutate(uint8_t *data, size_t size, size_t most, unsigned seed, const fuzz_slot *slots,
                   int count);

/* ---- text ------------------------------------------------------------------------------------- */

/* Bytes that grow up to `room`, and what decides how. */
typedef struct fuzz_text {
    uint8_t *data;
    size_t bytes, room;
    uint64_t random;
} fuzz_text;

uint32_t fuzz_random(fuzz_text *text, uint32_t below); /* 0 where `below` is 0 */

/* Puts `with` [bytes] in the place of [begin, end); nothing where it does not fit. */
void fuzz_splice(fuzz_text *text, size_t begin, size_t end, const void *with, size_t bytes);
void fuzz_mutate_json(fuzz_text *text);
void fuzz_mutate_yaml(fuzz_text *text);

/* ---- files ------------------------------------------------------------------------------------ */

/* A folder in memory, made once; `name` in it lives until the fourth call from now. */
const char *fuzz_folder(void);
const char *fuzz_path(const char *name);
void fuzz_write(const char *name, const void *data, size_t bytes);
void fuzz_remove(const char *name); /* one that fuzz_write made; it may not be there */
void fuzz_write_parts(const fuzz_slot *slots, const fuzz_part *parts, int count);

/* ---- verdicts --------------------------------------------------------------------------------- */

/* Ends the process, which libFuzzer takes for a crash. */
#define fuzz_require(condition, ...)                                                               \
    do {                                                                                           \
        if (!(condition)) fuzz_wrong(__FILE__, __LINE__, #condition, __VA_ARGS__);                 \
    } while (0)
_Noreturn void fuzz_wrong(const char *file, int line, const char *what, const char *fmt, ...)
    KD_PRINTF(4, 5);

/* Forgets the last message, so that a refusal without one is seen. */
void fuzz_begin(void);

/* Whether `status` is KD_OK.  A refusal must have one of the two statuses, and a message of its own
 * which has `name` in it (NULL: any). */
bool fuzz_accepted(kd_status status, kd_status refusal, kd_status other, const char *name);

/* Ends the process with the message where `status` is no success. */
void fuzz_ok(kd_status status);

#endif
