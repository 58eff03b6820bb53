#include "support/corpus.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>

kd_loader *test_loader_open(const kd_loader_options *options)
{
    kd_loader *loader;
    cr_assert(kd_loader_open(&loader, options) == KD_OK, "%s", kd_last_error());
    return loader;
}

const kd_step_batch *test_loader_next(kd_loader *loader)
{
    const kd_step_batch *batch;
    double wait = -1.0;
    cr_assert(kd_loader_next(&batch, loader, &wait) == KD_OK, "%s", kd_last_error());
    cr_assert(wait >= 0.0, "waited %g s", wait);
    return batch;
}

test_corpus test_corpora[TEST_CORPORA];

static void make_corpus(test_corpus *c, int k, int64_t documents, int64_t longest,
                        const char *dtype)
{
    *c = (test_corpus){ .borders = documents + 1 };
    for (int64_t d = 0; d < documents; d++) {
        int64_t length = 1 + (d * d * 31 + d * 17 + k * 5 + 3) % longest;
        if (d % 5 == 3) length = 1;
        if (d % 6 == 4 || d == 0 || d + 1 == documents) length = 0;
        for (int64_t i = 0; i < length; i++) c->document_of[c->count + i] = (int32_t)d;
        c->documents[d + 1] = c->count += length;
    }
    for (int64_t i = 0; i < c->count; i++) {
        c->tokens[i] = k * TEST_STRIDE + i;
        c->mask[i] = i % 7 != 3;
    }
    for (int64_t i = 0; i < c->count; i++) {
        const bool inside = i + 1 < c->count && c->document_of[i + 1] == c->document_of[i];
        const bool target = inside && c->mask[i + 1];
        c->label_of[i] = target ? (int32_t)c->tokens[i + 1] : -1;
        c->targets += target;
    }
    char name[32];
    snprintf(name, sizeof name, "corpus-%d", k);
    c->path = test_text_write(name, &(test_text){ .dtype = dtype,
                                                  .tokens = c->tokens,
                                                  .count = c->count,
                                                  .documents = c->documents,
                                                  .borders = c->borders,
                                                  .mask = c->mask,
                                                  .mask_count = c->count });
}

kd_loader_options test_corpora_options(int sources)
{
    static const char *const dtypes[TEST_CORPORA] = { "U16", "I32", "U32" };
    static const int64_t longest[TEST_CORPORA] = { 30, 9, 61 };
    for (int k = 0; k < sources; k++)
        make_corpus(&test_corpora[k], k, 23 - 5 * k, longest[k], dtypes[k]);
    kd_loader_options o = { .sources = sources,
                            .vocabulary = TEST_VOCABULARY,
                            .sequence = 11,
                            .step_samples = 12,
                            .micro_samples = 12,
                            .ranks = 1,
                            .seed = 5,
                            .shuffle = true };
    static const double weights[TEST_CORPORA] = { 5.0, 1.5, 3.0 };
    for (int k = 0; k < sources; k++) o.files[k] = test_corpora[k].path, o.weights[k] = weights[k];
    return o;
}

void test_append(test_record *out, const kd_micro_batch *m)
{
    test_row *rows = out->rows + out->count;
    cr_assert(out->count + m->rows <= TEST_MAX_ROWS, "too many rows for the test");
    for (int64_t i = 0; i < m->rows; i++)
        rows[i] = (test_row){ m->tokens[i], m->labels[i], m->positions[i], m->documents[i], false };
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

int64_t test_gather(test_record *out, kd_loader_options o, int ranks, int64_t micro_samples,
                    const kd_cursor *cursor, int64_t steps, kd_cursor *cursors)
{
    kd_loader *loaders[16];
    *out = (test_record){ .count = 0 };
    o.ranks = ranks;
    o.micro_samples = micro_samples;
    for (o.rank = 0; o.rank < ranks; o.rank++) {
        loaders[o.rank] = test_loader_open(&o);
        if (cursor)
            cr_assert(kd_loader_seek(loaders[o.rank], cursor) == KD_OK, "%s", kd_last_error());
    }
    int64_t step = 0;
    for (; step < steps; step++) {
        if (cursors) kd_loader_cursor(&cursors[step], loaders[0]);
        int given = 0;
        for (int r = 0; r < ranks; r++) {
            const kd_step_batch *batch = test_loader_next(loaders[r]);
            if (!batch) continue;
            given++;
            int64_t valid = 0;
            for (int64_t m = 0; m < batch->micro_count; m++) {
                test_append(out, &batch->micro[m]);
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

void test_same_rows(const test_record *got, const test_record *want, const char *fmt, ...)
{
    char what[128];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    cr_assert(got->count == want->count, "%s: %lld rows, expected %lld", what,
              (long long)got->count, (long long)want->count);
    for (int64_t i = 0; i < got->count; i++) {
        const test_row *a = &got->rows[i], *b = &want->rows[i];
        cr_assert(a->token == b->token && a->label == b->label && a->position == b->position &&
                      a->document == b->document && a->starts == b->starts,
                  "%s: row %lld has token %d, label %d, position %d, expected %d, %d, %d", what,
                  (long long)i, (int)a->token, (int)a->label, (int)a->position, (int)b->token,
                  (int)b->label, (int)b->position);
    }
}

kd_loader_options test_mode(int index, int sources)
{
    kd_loader_options o = test_corpora_options(sources);
    o.shuffle = index & 1;
    o.pack = index & 2 ? KD_PACK_NONE : KD_PACK_DOCUMENTS;
    return o;
}
