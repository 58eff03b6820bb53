/*
 * The loader: a case worked by hand; the same samples whatever the ranks and micro-batches; a seek
 * that equals an uninterrupted run; every token of an epoch once; shares; refusals.
 */
#include "support/text_file.h"

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

static kd_loader *open_loader(const kd_loader_options *options)
{
    kd_loader *loader;
    cr_assert(kd_loader_open(&loader, options) == KD_OK, "%s", kd_last_error());
    return loader;
}

static const kd_step_batch *next(kd_loader *loader)
{
    const kd_step_batch *batch;
    double wait = -1.0;
    cr_assert(kd_loader_next(&batch, loader, &wait) == KD_OK, "%s", kd_last_error());
    cr_assert(wait >= 0.0, "waited %g s", wait);
    return batch;
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
    kd_loader *loader = open_loader(&(kd_loader_options){ .files = { toy_file() },
                                                          .weights = { 1.0 },
                                                          .sources = 1,
                                                          .vocabulary = 41,
                                                          .sequence = 4,
                                                          .pack = pack,
                                                          .step_samples = 2,
                                                          .micro_samples = 2,
                                                          .ranks = 1 });
    for (int s = 0; s < count; s++) {
        const kd_step_batch *batch = next(loader);
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
    cr_assert(!next(loader) && !next(loader), "%s: the pass ends and stays so", name);
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

/* ---- a corpus whose tokens say where they come from ---------------------------------------------- */

enum { CORPORA = 3, MAX_TOKENS = 1000, STRIDE = 1000, VOCABULARY = CORPORA * STRIDE };

/* Token `at` of corpus k is k * STRIDE + at. */
typedef struct corpus {
    int64_t tokens[MAX_TOKENS], documents[64];
    uint8_t mask[MAX_TOKENS];
    int32_t document_of[MAX_TOKENS], label_of[MAX_TOKENS];
    int64_t count, borders, targets;
    const char *path;
} corpus;

static void make_corpus(corpus *c, int k, int64_t documents, int64_t longest, const char *dtype)
{
    *c = (corpus){ .borders = documents + 1 };
    for (int64_t d = 0; d < documents; d++) {
        const int64_t length =
            (d * d * 31 + d * 17 + k * 5 + 3) % (longest + 1); /* some are empty */
        for (int64_t i = 0; i < length; i++) c->document_of[c->count + i] = (int32_t)d;
        c->documents[d + 1] = c->count += length;
    }
    for (int64_t i = 0; i < c->count; i++) {
        c->tokens[i] = k * STRIDE + i;
        c->mask[i] = i % 7 != 3;
    }
    for (int64_t i = 0; i < c->count; i++) {
        const bool inside = i + 1 < c->count && c->document_of[i + 1] == c->document_of[i];
        const bool target = inside && c->mask[i + 1];
        c->label_of[i] = target ? (int32_t)c->tokens[i + 1] : -1;
        c->targets += target;
    }
    char name[16];
    snprintf(name, sizeof name, "corpus-%d", k);
    c->path = test_text_write(name, &(test_text){ .dtype = dtype,
                                                  .tokens = c->tokens,
                                                  .count = c->count,
                                                  .documents = c->documents,
                                                  .borders = c->borders,
                                                  .mask = c->mask,
                                                  .mask_count = c->count });
}

static corpus corpora[CORPORA];

static kd_loader_options corpora_options(int sources)
{
    static const char *const dtypes[CORPORA] = { "U16", "I32", "U32" };
    static const int64_t longest[CORPORA] = { 30, 9, 61 };
    for (int k = 0; k < sources; k++)
        make_corpus(&corpora[k], k, 23 - 5 * k, longest[k], dtypes[k]);
    kd_loader_options o = { .sources = sources,
                            .vocabulary = VOCABULARY,
                            .sequence = 11,
                            .step_samples = 12,
                            .micro_samples = 12,
                            .ranks = 1,
                            .seed = 5,
                            .shuffle = true };
    static const double weights[CORPORA] = { 5.0, 1.5, 3.0 };
    for (int k = 0; k < sources; k++) o.files[k] = corpora[k].path, o.weights[k] = weights[k];
    return o;
}

/* ---- rows in their global order ------------------------------------------------------------------- */

enum { MAX_ROWS = 1 << 15 };

typedef struct row {
    int32_t token, label, position, document;
    bool starts;
} row;

typedef struct record {
    row rows[MAX_ROWS];
    int64_t count, valid_count;
} record;

/* One micro-batch's rows, after checking what holds for every one. */
static void append(record *out, const kd_micro_batch *m)
{
    row *rows = out->rows + out->count;
    cr_assert(out->count + m->rows <= MAX_ROWS, "too many rows for the test");
    for (int64_t i = 0; i < m->rows; i++)
        rows[i] = (row){ m->tokens[i], m->labels[i], m->positions[i], m->documents[i], false };
    bool ended = false;
    cr_assert(m->cu[0] == 0 && m->cu[m->rows] == m->rows, "cu from %d to %d", (int)m->cu[0],
              (int)m->cu[m->rows]);
    for (int64_t i = 0; i < m->rows && !ended; i++) {
        rows[m->cu[i]].starts = true;
        ended = m->cu[i + 1] == m->rows;
        cr_assert(m->cu[i + 1] > m->cu[i], "cu[%lld] does not rise", (long long)i);
        for (int64_t j = i + 1; ended && j <= m->rows; j++)
            cr_assert(m->cu[j] == m->rows, "cu[%lld] after the last piece", (long long)j);
    }
    int64_t valid = 0;
    for (int64_t i = 0; i < m->rows; i++) {
        const int32_t position = rows[i].starts ? 0 : rows[i - 1].position + 1;
        cr_assert(rows[i].position == position, "row %lld: position %d, expected %d", (long long)i,
                  (int)rows[i].position, (int)position);
        if (rows[i].label >= 0)
            cr_assert(m->valid[valid++] == i, "valid misses %lld", (long long)i);
    }
    cr_assert(valid == m->valid_count, "valid_count");
    for (int64_t i = valid; i < m->rows; i++) cr_assert(m->valid[i] == -1, "valid after the last");
    out->count += m->rows;
    out->valid_count += valid;
}

/* Up to `steps` steps of all ranks from `cursor` (NULL: the start); cursors[k] (NULL: not wanted) is
 * where step k began.  Returns the steps that there were. */
static int64_t gather(record *out, kd_loader_options o, int ranks, int64_t micro_samples,
                      const kd_cursor *cursor, int64_t steps, kd_cursor *cursors)
{
    kd_loader *loaders[16];
    *out = (record){ .count = 0 };
    o.ranks = ranks;
    o.micro_samples = micro_samples;
    for (o.rank = 0; o.rank < ranks; o.rank++) {
        loaders[o.rank] = open_loader(&o);
        if (cursor)
            cr_assert(kd_loader_seek(loaders[o.rank], cursor) == KD_OK, "%s", kd_last_error());
    }
    int64_t step = 0;
    for (; step < steps; step++) {
        if (cursors) kd_loader_cursor(&cursors[step], loaders[0]);
        int given = 0;
        for (int r = 0; r < ranks; r++) {
            const kd_step_batch *batch = next(loaders[r]);
            if (!batch) continue;
            given++;
            int64_t valid = 0;
            for (int64_t m = 0; m < batch->micro_count; m++) {
                append(out, &batch->micro[m]);
                valid += batch->micro[m].valid_count;
            }
            cr_assert(valid == batch->valid_count, "valid_count of a step");
        }
        cr_assert(given == 0 || given == ranks, "%d of %d ranks have step %lld", given, ranks,
                  (long long)step);
        if (given == 0) break;
        kd_cursor first, other;
        kd_loader_cursor(&first, loaders[0]);
        for (int r = 1; r < ranks; r++) {
            kd_loader_cursor(&other, loaders[r]);
            cr_assert(memcmp(&first, &other, sizeof first) == 0, "cursor of rank %d", r);
        }
    }
    for (int r = 0; r < ranks; r++) kd_loader_close(loaders[r]);
    return step;
}

static record one, two; /* too large for a stack */

/* Starts of pieces are kept by the row, since cu depends on where a micro-batch begins. */
static void same_rows(const record *got, const record *want, const char *fmt, ...) KD_PRINTF(3, 4);
static void same_rows(const record *got, const record *want, const char *fmt, ...)
{
    char what[128];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    cr_assert(got->count == want->count, "%s: %lld rows, expected %lld", what,
              (long long)got->count, (long long)want->count);
    for (int64_t i = 0; i < got->count; i++) {
        const row *a = &got->rows[i], *b = &want->rows[i];
        cr_assert(a->token == b->token && a->label == b->label && a->position == b->position &&
                      a->document == b->document && a->starts == b->starts,
                  "%s: row %lld has token %d, label %d, position %d, expected %d, %d, %d", what,
                  (long long)i, (int)a->token, (int)a->label, (int)a->position, (int)b->token,
                  (int)b->label, (int)b->position);
    }
}

/* The four ways to read: shuffled or not, packed or not. */
static kd_loader_options mode(int index, int sources)
{
    kd_loader_options o = corpora_options(sources);
    o.shuffle = index & 1;
    o.pack = index & 2 ? KD_PACK_NONE : KD_PACK_DOCUMENTS;
    return o;
}

Test(loader, samples_do_not_depend_on_ranks_or_micro_batches)
{
    static const int splits[][2] = { { 1, 1 }, { 1, 2 }, { 1, 3 }, { 1, 4 }, { 1, 6 }, { 2, 1 },
                                     { 2, 2 }, { 2, 3 }, { 2, 6 }, { 3, 1 }, { 3, 2 }, { 3, 4 },
                                     { 4, 1 }, { 4, 3 }, { 6, 1 }, { 6, 2 }, { 12, 1 } };
    for (int k = 0; k < 4; k++) {
        const kd_loader_options o = mode(k, CORPORA);
        const int64_t steps = gather(&one, o, 1, 12, NULL, 9, NULL);
        cr_assert(one.valid_count > 0 && steps > 4, "mode %d: %lld steps", k, (long long)steps);
        for (int s = 0; s < KD_COUNT(splits); s++) {
            const int64_t found = gather(&two, o, splits[s][0], splits[s][1], NULL, 9, NULL);
            cr_assert(found == steps, "mode %d, %d ranks: %lld steps", k, splits[s][0],
                      (long long)found);
            same_rows(&two, &one, "mode %d, %d ranks, micro-batches of %d", k, splits[s][0],
                      splits[s][1]);
        }
    }
    test_text_remove();
}

Test(loader, seek_equals_an_uninterrupted_run)
{
    enum { STEPS = 16, AFTER = 3 };
    for (int k = 0; k < 4; k++) {
        const kd_loader_options o = mode(k, CORPORA);
        kd_cursor cursors[STEPS + 1];
        const int64_t steps = gather(&one, o, 1, 12, NULL, STEPS, cursors);
        const int64_t rows = o.step_samples * o.sequence;
        for (int64_t s = 0; s < steps; s++) {
            const int ranks = s % 2 ? 2 : 1, micro = s % 3 ? 3 : 6;
            const int64_t after = kd_min_i64(AFTER, steps - s);
            cr_assert(gather(&two, o, ranks, micro, &cursors[s], after, NULL) == after, "steps");
            record *part = calloc(1, sizeof *part);
            part->count = after * rows;
            memcpy(part->rows, one.rows + s * rows, (size_t)part->count * sizeof(row));
            same_rows(&two, part, "mode %d from step %lld on %d ranks", k, (long long)s, ranks);
            free(part);
        }
        /* One loader, to and fro: the tables of an epoch must not survive into another. */
        kd_loader *loader = open_loader(&o);
        for (int64_t i = 0; i < 3 * steps; i++) {
            const int64_t s = i * 7 % steps;
            cr_assert(kd_loader_seek(loader, &cursors[s]) == KD_OK, "%s", kd_last_error());
            const kd_step_batch *batch = next(loader);
            two.count = two.valid_count = 0;
            append(&two, &batch->micro[0]);
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

/* ---- what an epoch holds ------------------------------------------------------------------------- */

/* Row `r` shows its corpus as it is; returns the position in the file, -1 for padding. */
static int64_t check_row(const row *r)
{
    if (r->document < 0) {
        cr_assert(r->token == 0 && r->label == -1, "padding with token %d, label %d", (int)r->token,
                  (int)r->label);
        return -1;
    }
    const corpus *c = &corpora[r->token / STRIDE];
    const int64_t at = r->token % STRIDE;
    cr_assert(at < c->count && r->document == c->document_of[at], "token %d: document %d",
              (int)r->token, (int)r->document);
    cr_assert(r->label == c->label_of[at], "token %d: label %d, expected %d", (int)r->token,
              (int)r->label, (int)c->label_of[at]);
    return at;
}

/* `rows` are one epoch of corpus 0, packed and shuffled: whole documents one after another. */
static void check_stream(const row *rows, int64_t count, int64_t sequence, bool seen[MAX_TOKENS])
{
    const corpus *c = &corpora[0];
    int64_t previous = -1;
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = check_row(&rows[i]);
        cr_assert(at >= 0 && !seen[at], "row %lld: token %lld twice", (long long)i, (long long)at);
        seen[at] = true;
        const bool begins = c->documents[c->document_of[at]] == at;
        const bool ended =
            previous < 0 || c->documents[c->document_of[previous] + 1] == previous + 1;
        cr_assert(begins == ended && (begins || at == previous + 1),
                  "row %lld: token %lld after %lld is no stream of documents", (long long)i,
                  (long long)at, (long long)previous);
        cr_assert(rows[i].starts == (begins || i % sequence == 0), "row %lld: piece", (long long)i);
        previous = at;
    }
}

Test(loader, an_epoch_has_every_token_once)
{
    kd_loader_options o = corpora_options(1);
    o.step_samples = 7; /* steps do not end where epochs do */
    const corpus *c = &corpora[0];
    const int64_t samples = c->count / o.sequence, rows = samples * o.sequence;
    cr_assert(samples % 7 != 0 && c->count % o.sequence != 0, "an even corpus tests nothing");
    enum { EPOCHS = 4 };
    gather(&one, o, 1, 7, NULL, kd_ceil_div(EPOCHS * samples, 7), NULL);
    bool dropped_alike = true;
    for (int64_t e = 0; e < EPOCHS; e++) {
        bool seen[MAX_TOKENS] = { false }, seen_first[MAX_TOKENS] = { false };
        check_stream(one.rows + e * rows, rows, o.sequence, seen);
        check_stream(one.rows, rows, o.sequence, seen_first);
        dropped_alike &= memcmp(seen, seen_first, sizeof seen) == 0;
        int64_t equal = 0;
        for (int64_t i = 0; i < rows; i++)
            equal += one.rows[e * rows + i].token == one.rows[i].token;
        cr_assert(e == 0 || equal < rows / 2, "epoch %lld repeats the order of epoch 0",
                  (long long)e);
    }
    cr_assert(!dropped_alike, "every epoch drops the same tokens");
    o.seed++;
    gather(&two, o, 1, 7, NULL, 1, NULL);
    cr_assert(memcmp(two.rows, one.rows, (size_t)two.count * sizeof(row)) != 0, "seed");

    /* The same file twice is two sources with an order each; ties go to the first. */
    o = corpora_options(1);
    o.sources = 2, o.files[1] = o.files[0], o.weights[1] = o.weights[0];
    gather(&two, o, 1, 12, NULL, 1, NULL);
    const size_t sample = (size_t)o.sequence * sizeof(row);
    cr_assert(memcmp(two.rows, two.rows + o.sequence, sample) != 0, "two sources, one order");
    o.sources = 1;
    gather(&one, o, 1, 12, NULL, 1, NULL);
    cr_assert(memcmp(two.rows, one.rows, sample) == 0, "a tie goes to the first source");
    cr_assert(memcmp(two.rows + 2 * o.sequence, one.rows + o.sequence, sample) == 0, "turns");
    test_text_remove();
}

Test(loader, a_pass_has_every_token_and_target_once)
{
    for (int k = 0; k < 4; k++) {
        kd_loader_options o = mode(k, CORPORA);
        if (k == 1) continue; /* packed and shuffled drops its tail: above */
        int64_t steps = 100, samples = 0, targets = 0, tokens = 0;
        if (o.shuffle) { /* the pieces of one epoch of corpus 0 */
            o.sources = 1;
            for (int64_t d = 0; d + 1 < corpora[0].borders; d++)
                samples +=
                    kd_ceil_div(corpora[0].documents[d + 1] - corpora[0].documents[d], o.sequence);
            steps = samples;
            o.step_samples = 1;
        }
        gather(&one, o, 1, o.step_samples, NULL, steps, NULL);
        static bool seen[CORPORA][MAX_TOKENS];
        memset(seen, 0, sizeof seen);
        for (int64_t i = 0; i < one.count; i++) {
            const int64_t at = check_row(&one.rows[i]);
            if (at < 0) continue;
            bool *once = &seen[one.rows[i].token / STRIDE][at];
            cr_assert(!*once, "mode %d: token %d twice", k, (int)one.rows[i].token);
            *once = true;
            tokens++;
        }
        for (int s = 0; s < o.sources; s++) {
            targets += corpora[s].targets;
            tokens -= corpora[s].count;
        }
        cr_assert(tokens == 0, "mode %d: %lld tokens too many", k, (long long)tokens);
        cr_assert(one.valid_count == targets, "mode %d: %lld targets, expected %lld", k,
                  (long long)one.valid_count, (long long)targets);
    }
    test_text_remove();
}

Test(loader, an_unshuffled_pass_may_be_bounded)
{
    kd_loader_options o = mode(0, CORPORA);
    for (o.max_samples = 1; o.max_samples <= 25; o.max_samples += 8) {
        kd_cursor cursors[8];
        const int64_t steps = gather(&one, o, 3, 2, NULL, 8, cursors);
        cr_assert(steps == kd_ceil_div(o.max_samples, 12), "%lld samples: %lld steps",
                  (long long)o.max_samples, (long long)steps);
        cr_assert(cursors[steps].samples == o.max_samples, "cursor at %lld of %lld",
                  (long long)cursors[steps].samples, (long long)o.max_samples);
        int64_t samples = 0;
        for (int64_t i = 0; i < one.count; i += o.sequence) samples += one.rows[i].document >= 0;
        cr_assert(samples == o.max_samples, "%lld samples, expected %lld", (long long)samples,
                  (long long)o.max_samples);
    }
    test_text_remove();
}

/* ---- shares -------------------------------------------------------------------------------------- */

/* Each pick goes to a source with a deficit, so none is ever a whole sample ahead of its share. */
Test(loader, sources_keep_their_shares)
{
    static const double weights[][CORPORA] = {
        { 1, 1, 1 }, { 5, 1.5, 3 }, { 1, 100, 1 }, { 0.7, 0.2, 0.1 }, { 1e-3, 2e9, 1e9 },
    };
    for (int w = 0; w < KD_COUNT(weights); w++) {
        kd_loader_options o = corpora_options(CORPORA);
        o.step_samples = o.micro_samples = 1;
        double sum = 0.0;
        for (int k = 0; k < CORPORA; k++) sum += o.weights[k] = weights[w][k];
        kd_loader *loader = open_loader(&o);
        for (int64_t g = 1; g <= 300; g++) {
            cr_assert(next(loader) != NULL, "shuffled, there is no end");
            kd_cursor c;
            kd_loader_cursor(&c, loader);
            cr_assert(c.samples == g, "samples");
            cr_assert(c.source_samples[0] + c.source_samples[1] + c.source_samples[2] == g, "sum");
            for (int k = 0; k < CORPORA; k++) {
                const double ahead = (double)c.source_samples[k] - weights[w][k] / sum * (double)g;
                cr_assert(ahead < 1.0 && ahead > 1.0 - CORPORA,
                          "weights %d: after %lld samples source %d is %g ahead", w, (long long)g,
                          k, ahead);
            }
        }
        kd_loader_close(loader);
    }
    test_text_remove();
}

/* ---- buffers, errors, refusals -------------------------------------------------------------------- */

Test(loader, a_step_stays_while_the_next_is_built)
{
    const kd_loader_options o = mode(1, CORPORA);
    kd_loader *loader = open_loader(&o);
    const size_t bytes = (size_t)(o.step_samples * o.sequence) * sizeof(int32_t);
    int32_t *copy = malloc(bytes);
    for (int s = 0; s < 40; s++) {
        const kd_micro_batch *m = &next(loader)->micro[0];
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
        kd_loader *other = open_loader(&o);
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

/* The mapping shows what somebody else writes; the worker's message reaches the caller, and the same
 * step can be had once the file is whole again. */
Test(loader, a_file_that_changes_is_found)
{
    kd_loader_options o = corpora_options(1);
    o.shuffle = false;
    gather(&one, o, 1, 12, NULL, 1, NULL);
    kd_loader *loader = open_loader(&o);
    write_token(corpora[0].path, 7, VOCABULARY);
    const kd_step_batch *batch;
    const kd_status status = kd_loader_next(&batch, loader, NULL);
    cr_assert(status == KD_EFORMAT && !batch, "status %d", (int)status);
    cr_assert(strstr(kd_last_error(), corpora[0].path) &&
                  strstr(kd_last_error(), "tokens[7] changed while in use: found id 3000"),
              "'%s'", kd_last_error());
    kd_cursor cursor;
    kd_loader_cursor(&cursor, loader);
    cr_assert(cursor.samples == 0, "the cursor moved over a failure");
    write_token(corpora[0].path, 7, 7);
    two.count = two.valid_count = 0;
    append(&two, &next(loader)->micro[0]);
    same_rows(&two, &one, "after the repair");

    /* A seek forgets what the worker met on the way that is no longer taken. */
    write_token(corpora[0].path, corpora[0].count - 1, 60000);
    kd_cursor last = { .samples = kd_ceil_div(corpora[0].count, o.sequence) - 1 };
    last.source_samples[0] = last.samples;
    cr_assert(kd_loader_seek(loader, &last) == KD_OK, "%s", kd_last_error());
    cr_assert(kd_loader_next(&batch, loader, NULL) == KD_EFORMAT, "the last token is bad");
    cr_assert(kd_loader_seek(loader, &(kd_cursor){ 0 }) == KD_OK, "%s", kd_last_error());
    two.count = two.valid_count = 0;
    append(&two, &next(loader)->micro[0]);
    same_rows(&two, &one, "after the seek");
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
    const kd_loader_options good = corpora_options(2);
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
    o.vocabulary = STRIDE;
    refuse(&o, KD_EFORMAT, "corpus-1");

    kd_loader *loader = open_loader(&good);
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
    loader = open_loader(&o);
    const int64_t all = kd_ceil_div(corpora[0].count, o.sequence);
    cr_assert(kd_loader_seek(loader, &(kd_cursor){ all, { all } }) == KD_OK, "the end of a source");
    cr_assert(kd_loader_seek(loader, &(kd_cursor){ all + 1, { all + 1 } }) == KD_EINVAL,
              "beyond it");
    int64_t tokens, documents;
    double scored;
    kd_loader_describe(loader, &tokens, &documents, &scored);
    const int64_t targets = corpora[0].targets + corpora[1].targets;
    cr_assert(tokens == corpora[0].count + corpora[1].count, "tokens");
    cr_assert(documents == corpora[0].borders + corpora[1].borders - 2, "documents");
    cr_assert(fabs(scored * (double)tokens - (double)targets) < 1e-6, "scored %g", scored);
    kd_loader_close(loader);
    kd_loader_close(NULL);
    test_text_remove();
}
