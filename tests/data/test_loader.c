/*
 * The loader: a case worked by hand; the same samples whatever the ranks and micro-batches; a seek
 * that equals an uninterrupted run; buffers, failures and refusals.
 */
#include "support/corpus.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- allocations, counted where no sanitizer owns malloc ----------------------------------------- */

static atomic_bool watching;
static atomic_int allocations;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)
#define COUNTS_ALLOCATIONS true
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *malloc(size_t bytes)
{
    if (atomic_load(&watching)) atomic_fetch_add(&allocations, 1);
    return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes)
{
    if (atomic_load(&watching)) atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, bytes);
}
void *realloc(void *memory, size_t bytes)
{
    if (atomic_load(&watching)) atomic_fetch_add(&allocations, 1);
    return __libc_realloc(memory, bytes);
}
#else
#define COUNTS_ALLOCATIONS false
#endif

static test_record one, two; /* too large for a stack */

/* ---- by hand ------------------------------------------------------------------------------------- */

/* Documents of 5, 2, 0, 7 and 1 tokens; token 33 is no target. */
static const int64_t toy_tokens[15] = {
    10, 11, 12, 13, 14, 20, 21, 30, 31, 32, 33, 34, 35, 36, 40
};
static const int64_t toy_documents[6] = { 0, 5, 7, 7, 14, 15 };
static const uint8_t toy_mask[15] = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1 };

static const char *toy_file(void)
{
    return test_text_write("toy", &(test_text){ .dtype = "U16",
                                                .tokens = toy_tokens,
                                                .count = 15,
                                                .documents = toy_documents,
                                                .borders = 6,
                                                .mask = toy_mask,
                                                .mask_count = 15 });
}

static void same(const char *what, const int32_t *got, const int32_t *want, int count)
{
    for (int i = 0; i < count; i++)
        cr_assert(got[i] == want[i], "%s[%d]: found %d, expected %d", what, i, (int)got[i],
                  (int)want[i]);
}

typedef struct expected {
    int32_t tokens[8], labels[8], positions[8], documents[8], cu[9], valid[8];
    int valid_count;
} expected;

static void check_by_hand(const char *name, kd_pack pack, const expected *steps, int count)
{
    kd_loader *loader = test_loader_open(&(kd_loader_options){ .files = { toy_file() },
                                                               .weights = { 1.0 },
                                                               .sources = 1,
                                                               .vocabulary = 41,
                                                               .sequence = 4,
                                                               .pack = pack,
                                                               .step_samples = 2,
                                                               .micro_samples = 2,
                                                               .ranks = 1 });
    for (int s = 0; s < count; s++) {
        const kd_step_batch *batch = test_loader_next(loader);
        cr_assert(batch && batch->micro_count == 1 && batch->epoch == 0, "%s step %d", name, s);
        const kd_micro_batch *m = &batch->micro[0];
        char what[64];
        snprintf(what, sizeof what, "%s, step %d: valid_count", name, s);
        same(what, (int32_t[]){ (int32_t)m->valid_count }, &steps[s].valid_count, 1);
        cr_assert(m->rows == 8 && batch->valid_count == m->valid_count, "%s", what);
        const struct {
            const char *name;
            const int32_t *got, *want;
            int count;
        } columns[] = {
            { "tokens", m->tokens, steps[s].tokens, 8 },
            { "labels", m->labels, steps[s].labels, 8 },
            { "positions", m->positions, steps[s].positions, 8 },
            { "documents", m->documents, steps[s].documents, 8 },
            { "cu", m->cu, steps[s].cu, 9 },
            { "valid", m->valid, steps[s].valid, 8 },
        };
        for (int c = 0; c < KD_COUNT(columns); c++) {
            snprintf(what, sizeof what, "%s, step %d: %s", name, s, columns[c].name);
            same(what, columns[c].got, columns[c].want, columns[c].count);
        }
    }
    cr_assert(!test_loader_next(loader) && !test_loader_next(loader),
              "%s: the pass ends and stays so", name);
    kd_loader_close(loader);
}

Test(loader, rows_worked_by_hand)
{
    /* 14 is a label across the border of two samples, and so is 31; 20, 30 and 40 begin documents. */
    static const expected packed[] = {
        { .tokens = { 10, 11, 12, 13, 14, 20, 21, 30 },
          .labels = { 11, 12, 13, 14, -1, 21, -1, 31 },
          .positions = { 0, 1, 2, 3, 0, 0, 1, 0 },
          .documents = { 0, 0, 0, 0, 0, 1, 1, 3 },
          .cu = { 0, 4, 5, 7, 8, 8, 8, 8, 8 },
          .valid = { 0, 1, 2, 3, 5, 7, -1, -1 },
          .valid_count = 6 },
        { .tokens = { 31, 32, 33, 34, 35, 36, 40, 0 },
          .labels = { 32, -1, 34, 35, 36, -1, -1, -1 },
          .positions = { 0, 1, 2, 3, 0, 1, 0, 0 },
          .documents = { 3, 3, 3, 3, 3, 3, 4, -1 },
          .cu = { 0, 4, 6, 7, 8, 8, 8, 8, 8 },
          .valid = { 0, 2, 3, 4, -1, -1, -1, -1 },
          .valid_count = 4 },
    };
    check_by_hand("packed", KD_PACK_DOCUMENTS, packed, KD_COUNT(packed));
    static const expected single[] = {
        { .tokens = { 10, 11, 12, 13, 14, 0, 0, 0 },
          .labels = { 11, 12, 13, 14, -1, -1, -1, -1 },
          .positions = { 0, 1, 2, 3, 0, 0, 1, 2 },
          .documents = { 0, 0, 0, 0, 0, -1, -1, -1 },
          .cu = { 0, 4, 5, 8, 8, 8, 8, 8, 8 },
          .valid = { 0, 1, 2, 3, -1, -1, -1, -1 },
          .valid_count = 4 },
        { .tokens = { 20, 21, 0, 0, 30, 31, 32, 33 },
          .labels = { 21, -1, -1, -1, 31, 32, -1, 34 },
          .positions = { 0, 1, 0, 1, 0, 1, 2, 3 },
          .documents = { 1, 1, -1, -1, 3, 3, 3, 3 },
          .cu = { 0, 2, 4, 8, 8, 8, 8, 8, 8 },
          .valid = { 0, 4, 5, 7, -1, -1, -1, -1 },
          .valid_count = 4 },
        { .tokens = { 34, 35, 36, 0, 40, 0, 0, 0 },
          .labels = { 35, 36, -1, -1, -1, -1, -1, -1 },
          .positions = { 0, 1, 2, 0, 0, 0, 1, 2 },
          .documents = { 3, 3, 3, -1, 4, -1, -1, -1 },
          .cu = { 0, 3, 4, 5, 8, 8, 8, 8, 8 },
          .valid = { 0, 1, -1, -1, -1, -1, -1, -1 },
          .valid_count = 2 },
    };
    check_by_hand("single", KD_PACK_NONE, single, KD_COUNT(single));
    test_text_remove();
}

Test(loader, samples_do_not_depend_on_ranks_or_micro_batches)
{
    static const int splits[][2] = { { 1, 1 }, { 1, 2 }, { 1, 3 }, { 1, 4 }, { 1, 6 }, { 2, 1 },
                                     { 2, 2 }, { 2, 3 }, { 2, 6 }, { 3, 1 }, { 3, 2 }, { 3, 4 },
                                     { 4, 1 }, { 4, 3 }, { 6, 1 }, { 6, 2 }, { 12, 1 } };
    for (int k = 0; k < 4; k++) {
        const kd_loader_options o = test_mode(k, TEST_CORPORA);
        const int64_t steps = test_gather(&one, o, 1, 12, NULL, 9, NULL);
        cr_assert(one.valid_count > 0 && steps > 4, "mode %d: %lld steps", k, (long long)steps);
        for (int s = 0; s < KD_COUNT(splits); s++) {
            const int64_t found = test_gather(&two, o, splits[s][0], splits[s][1], NULL, 9, NULL);
            cr_assert(found == steps, "mode %d, %d ranks: %lld steps", k, splits[s][0],
                      (long long)found);
            test_same_rows(&two, &one, "mode %d, %d ranks, micro-batches of %d", k, splits[s][0],
                           splits[s][1]);
        }
    }
    test_text_remove();
}

Test(loader, seek_equals_an_uninterrupted_run)
{
    enum { STEPS = 16, AFTER = 3 };
    for (int k = 0; k < 4; k++) {
        const kd_loader_options o = test_mode(k, TEST_CORPORA);
        kd_cursor cursors[STEPS + 1];
        const int64_t steps = test_gather(&one, o, 1, 12, NULL, STEPS, cursors);
        const int64_t rows = o.step_samples * o.sequence;
        for (int64_t s = 0; s < steps; s++) {
            const int ranks = s % 2 ? 2 : 1, micro = s % 3 ? 3 : 6;
            const int64_t after = kd_min_i64(AFTER, steps - s);
            cr_assert(test_gather(&two, o, ranks, micro, &cursors[s], after, NULL) == after,
                      "steps");
            test_record *part = calloc(1, sizeof *part);
            part->count = after * rows;
            memcpy(part->rows, one.rows + s * rows, (size_t)part->count * sizeof(test_row));
            test_same_rows(&two, part, "mode %d from step %lld on %d ranks", k, (long long)s,
                           ranks);
            free(part);
        }
        /* One loader, to and fro: the tables of an epoch must not survive into another. */
        kd_loader *loader = test_loader_open(&o);
        for (int64_t i = 0; i < 3 * steps; i++) {
            const int64_t s = i * 7 % steps;
            cr_assert(kd_loader_seek(loader, &cursors[s]) == KD_OK, "%s", kd_last_error());
            const kd_step_batch *batch = test_loader_next(loader);
            two.count = two.valid_count = 0;
            test_append(&two, &batch->micro[0]);
            cr_assert(two.count == rows, "rows");
            for (int64_t r = 0; r < rows; r++)
                cr_assert(two.rows[r].token == one.rows[s * rows + r].token &&
                              two.rows[r].label == one.rows[s * rows + r].label,
                          "mode %d: step %lld after a jump, row %lld", k, (long long)s,
                          (long long)r);
        }
        kd_loader_close(loader);
    }
    test_text_remove();
}

/* ---- buffers, errors, refusals -------------------------------------------------------------------- */

Test(loader, a_step_stays_while_the_next_is_built)
{
    const kd_loader_options o = test_mode(1, TEST_CORPORA);
    kd_loader *loader = test_loader_open(&o);
    const size_t bytes = (size_t)(o.step_samples * o.sequence) * sizeof(int32_t);
    int32_t *copy = malloc(bytes);
    for (int s = 0; s < 40; s++) {
        const kd_micro_batch *m = &test_loader_next(loader)->micro[0];
        memcpy(copy, m->tokens, bytes);
        if (s == 2) atomic_store(&watching, true);
        usleep(200);
        cr_assert(memcmp(copy, m->tokens, bytes) == 0, "step %d changed in the caller's hands", s);
    }
    atomic_store(&watching, false);
    cr_assert(atomic_load(&allocations) == 0, "%d allocations after the first steps",
              atomic_load(&allocations));
    free(copy);
    if (COUNTS_ALLOCATIONS) { /* the counter counts */
        atomic_store(&watching, true);
        kd_cursor cursor;
        kd_loader_cursor(&cursor, loader);
        kd_loader *other = test_loader_open(&o);
        atomic_store(&watching, false);
        cr_assert(atomic_load(&allocations) > 0, "nothing was counted");
        kd_loader_close(other);
    }
    kd_loader_close(loader);
    test_text_remove();
}

static void write_token(const char *path, int64_t at, uint16_t id)
{
    const int fd = open(path, O_WRONLY);
    const int64_t offset = test_text_tokens_offset() + at * (int64_t)sizeof id;
    cr_assert(fd >= 0 && pwrite(fd, &id, sizeof id, offset) == sizeof id, "cannot write %s", path);
    close(fd);
}

/* Tokens are read as they are used: what somebody else wrote is refused; the worker's message reaches the caller, and the same
 * step can be had once the file is whole again. */
Test(loader, a_file_that_changes_is_found)
{
    kd_loader_options o = test_corpora_options(1);
    o.shuffle = false;
    test_gather(&one, o, 1, 12, NULL, 1, NULL);
    kd_loader *loader = test_loader_open(&o);
    write_token(test_corpora[0].path, 7, TEST_VOCABULARY);
    const kd_step_batch *batch;
    const kd_status status = kd_loader_next(&batch, loader, NULL);
    cr_assert(status == KD_EFORMAT && !batch, "status %d", (int)status);
    cr_assert(strstr(kd_last_error(), test_corpora[0].path) &&
                  strstr(kd_last_error(), "tokens[7] changed while in use (byte") &&
                  strstr(kd_last_error(), "found id 3000"),
              "'%s'", kd_last_error());
    kd_cursor cursor;
    kd_loader_cursor(&cursor, loader);
    cr_assert(cursor.samples == 0, "the cursor moved over a failure");
    write_token(test_corpora[0].path, 7, 7);
    two.count = two.valid_count = 0;
    test_append(&two, &test_loader_next(loader)->micro[0]);
    test_same_rows(&two, &one, "after the repair");

    /* A seek forgets what the worker met on the way that is no longer taken. */
    write_token(test_corpora[0].path, test_corpora[0].count - 1, 60000);
    kd_cursor last = { .samples = kd_ceil_div(test_corpora[0].count, o.sequence) - 1 };
    last.source_samples[0] = last.samples;
    cr_assert(kd_loader_seek(loader, &last) == KD_OK, "%s", kd_last_error());
    cr_assert(kd_loader_next(&batch, loader, NULL) == KD_EFORMAT, "the last token is bad");
    cr_assert(kd_loader_seek(loader, &(kd_cursor){ 0 }) == KD_OK, "%s", kd_last_error());
    two.count = two.valid_count = 0;
    test_append(&two, &test_loader_next(loader)->micro[0]);
    test_same_rows(&two, &one, "after the seek");
    kd_loader_close(loader);
    test_text_remove();
}

static void refuse(const kd_loader_options *o, kd_status status, const char *part)
{
    kd_loader *loader = (kd_loader *)(uintptr_t)8;
    const kd_status found = kd_loader_open(&loader, o);
    cr_assert(found == status && !loader && strstr(kd_last_error(), part) != NULL,
              "expected '%s': status %d, '%s'", part, (int)found, kd_last_error());
}

#define REFUSE(part, ...)                                                                          \
    do {                                                                                           \
        kd_loader_options o = good;                                                                \
        __VA_ARGS__;                                                                               \
        refuse(&o, KD_EINVAL, part);                                                               \
    } while (0)

Test(loader, refuses_wrong_options_and_cursors)
{
    const kd_loader_options good = test_corpora_options(2);
    REFUSE("sources: found 0", o.sources = 0);
    REFUSE("sources: found 17", o.sources = 17);
    REFUSE("files[1]", o.files[1] = NULL);
    REFUSE("weight 0", o.weights[1] = 0.0);
    REFUSE("weight -1", o.weights[0] = -1.0);
    REFUSE("nan", o.weights[0] = NAN);
    REFUSE("inf", o.weights[0] = INFINITY);
    REFUSE("sequence: found 0", o.sequence = 0);
    REFUSE("step_samples: found 0", o.step_samples = 0);
    REFUSE("micro_samples: found -3", o.micro_samples = -3);
    REFUSE("ranks: found 0", o.ranks = 0);
    REFUSE("rank: found 1, expected 0 to 0", o.rank = 1);
    REFUSE("rank: found -1", o.rank = -1);
    REFUSE("max_samples: found -1", o.max_samples = -1);
    REFUSE("step_samples: found 12", o.micro_samples = 5);
    REFUSE("step_samples: found 12", o.ranks = 5);
    REFUSE("step_samples: found 12", o.micro_samples = INT64_MAX, o.ranks = 2);
    REFUSE("micro_samples * sequence", o.sequence = INT64_MAX / 2);
    REFUSE("micro_samples * sequence", o.sequence = INT32_MAX / 12 + 1);
    REFUSE("tokens, expected at least sequence = 1001", o.sequence = 1001);
    REFUSE("vocabulary", o.vocabulary = 0);
    kd_loader_options o = good;
    o.vocabulary = TEST_STRIDE;
    refuse(&o, KD_EFORMAT, "corpus-1");

    kd_loader *loader = test_loader_open(&good);
    static const kd_cursor bad[] = {
        { 1, { 0 } },       { -1, { -1 } },  { 0, { 1, -1 } },
        { 1, { 0, 0, 1 } }, { 2, { 1, 0 } }, { INT64_MAX, { INT64_MAX } },
    };
    for (int k = 0; k < KD_COUNT(bad); k++) {
        cr_assert(kd_loader_seek(loader, &bad[k]) == KD_EINVAL, "cursor %d", k);
        cr_assert(strstr(kd_last_error(), "cursor: found") != NULL, "'%s'", kd_last_error());
    }
    kd_loader_close(loader);
    o = good;
    o.shuffle = false;
    loader = test_loader_open(&o);
    const int64_t all = kd_ceil_div(test_corpora[0].count, o.sequence);
    cr_assert(kd_loader_seek(loader, &(kd_cursor){ all, { all } }) == KD_OK, "the end of a source");
    cr_assert(kd_loader_seek(loader, &(kd_cursor){ all + 1, { all + 1 } }) == KD_EINVAL,
              "beyond it");
    int64_t tokens, documents;
    double scored;
    kd_loader_describe(loader, &tokens, &documents, &scored);
    const int64_t targets = test_corpora[0].targets + test_corpora[1].targets;
    cr_assert(tokens == test_corpora[0].count + test_corpora[1].count, "tokens");
    cr_assert(documents == test_corpora[0].borders + test_corpora[1].borders - 2, "documents");
    cr_assert(fabs(scored * (double)tokens - (double)targets) < 1e-6, "scored %g", scored);
    kd_loader_close(loader);
    kd_loader_close(NULL);
    test_text_remove();
}
