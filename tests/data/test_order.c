/*
 * What the loader hands over: every token of an epoch once, whole documents one after another, every
 * target of a pass, and sources by their shares.
 */
#include "support/corpus.h"

#include <criterion/criterion.h>

static test_record one, two; /* too large for a stack */

/* ---- what an epoch holds ------------------------------------------------------------------------- */

/* Row `r` shows its corpus as it is; returns the position in the file, -1 for padding. */
static int64_t check_row(const test_row *r)
{
    if (r->document < 0) {
        cr_assert(r->token == 0 && r->label == -1, "padding with token %d, label %d", (int)r->token,
                  (int)r->label);
        return -1;
    }
    const test_corpus *c = &test_corpora[r->token / TEST_STRIDE];
    const int64_t at = r->token % TEST_STRIDE;
    cr_assert(at < c->count && r->document == c->document_of[at], "token %d: document %d",
              (int)r->token, (int)r->document);
    cr_assert(r->label == c->label_of[at], "token %d: label %d, expected %d", (int)r->token,
              (int)r->label, (int)c->label_of[at]);
    return at;
}

/* `rows` are one epoch of corpus 0, packed and shuffled: whole documents one after another. */
static void check_stream(const test_row *rows, int64_t count, int64_t sequence,
                         bool seen[TEST_MAX_TOKENS])
{
    const test_corpus *c = &test_corpora[0];
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

Test(order, an_epoch_has_every_token_once)
{
    kd_loader_options o = test_corpora_options(1);
    o.step_samples = 7; /* steps do not end where epochs do */
    const test_corpus *c = &test_corpora[0];
    const int64_t samples = c->count / o.sequence, rows = samples * o.sequence;
    cr_assert(samples % 7 != 0 && c->count % o.sequence != 0, "an even corpus tests nothing");
    enum { EPOCHS = 4 };
    test_gather(&one, o, 1, 7, NULL, kd_ceil_div(EPOCHS * samples, 7), NULL);
    bool dropped_alike = true;
    for (int64_t e = 0; e < EPOCHS; e++) {
        bool seen[TEST_MAX_TOKENS] = { false }, seen_first[TEST_MAX_TOKENS] = { false };
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
    test_gather(&two, o, 1, 7, NULL, 1, NULL);
    cr_assert(memcmp(two.rows, one.rows, (size_t)two.count * sizeof(test_row)) != 0, "seed");

    /* The same file twice is two sources with an order each; ties go to the first. */
    o = test_corpora_options(1);
    o.sources = 2, o.files[1] = o.files[0], o.weights[1] = o.weights[0];
    test_gather(&two, o, 1, 12, NULL, 1, NULL);
    const size_t sample = (size_t)o.sequence * sizeof(test_row);
    cr_assert(memcmp(two.rows, two.rows + o.sequence, sample) != 0, "two sources, one order");
    o.sources = 1;
    test_gather(&one, o, 1, 12, NULL, 1, NULL);
    cr_assert(memcmp(two.rows, one.rows, sample) == 0, "a tie goes to the first source");
    cr_assert(memcmp(two.rows + 2 * o.sequence, one.rows + o.sequence, sample) == 0, "turns");
    test_text_remove();
}

Test(order, a_pass_has_every_token_and_target_once)
{
    for (int k = 0; k < 4; k++) {
        kd_loader_options o = test_mode(k, TEST_CORPORA);
        if (k == 1) continue; /* packed and shuffled drops its tail: above */
        int64_t steps = 100, samples = 0, targets = 0, tokens = 0;
        if (o.shuffle) { /* the pieces of one epoch of corpus 0 */
            o.sources = 1;
            for (int64_t d = 0; d + 1 < test_corpora[0].borders; d++)
                samples += kd_ceil_div(
                    test_corpora[0].documents[d + 1] - test_corpora[0].documents[d], o.sequence);
            steps = samples;
            o.step_samples = 1;
        }
        test_gather(&one, o, 1, o.step_samples, NULL, steps, NULL);
        static bool seen[TEST_CORPORA][TEST_MAX_TOKENS];
        memset(seen, 0, sizeof seen);
        for (int64_t i = 0; i < one.count; i++) {
            const int64_t at = check_row(&one.rows[i]);
            if (at < 0) continue;
            bool *once = &seen[one.rows[i].token / TEST_STRIDE][at];
            cr_assert(!*once, "mode %d: token %d twice", k, (int)one.rows[i].token);
            *once = true;
            tokens++;
        }
        for (int s = 0; s < o.sources; s++) {
            targets += test_corpora[s].targets;
            tokens -= test_corpora[s].count;
        }
        cr_assert(tokens == 0, "mode %d: %lld tokens too many", k, (long long)tokens);
        cr_assert(one.valid_count == targets, "mode %d: %lld targets, expected %lld", k,
                  (long long)one.valid_count, (long long)targets);
    }
    test_text_remove();
}

Test(order, an_unshuffled_pass_may_be_bounded)
{
    kd_loader_options o = test_mode(0, TEST_CORPORA);
    for (o.max_samples = 1; o.max_samples <= 25; o.max_samples += 8) {
        kd_cursor cursors[8];
        const int64_t steps = test_gather(&one, o, 3, 2, NULL, 8, cursors);
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
Test(order, sources_keep_their_shares)
{
    static const double weights[][TEST_CORPORA] = {
        { 1, 1, 1 }, { 5, 1.5, 3 }, { 1, 100, 1 }, { 0.7, 0.2, 0.1 }, { 1e-3, 2e9, 1e9 },
    };
    for (int w = 0; w < KD_COUNT(weights); w++) {
        kd_loader_options o = test_corpora_options(TEST_CORPORA);
        o.step_samples = o.micro_samples = 1;
        double sum = 0.0;
        for (int k = 0; k < TEST_CORPORA; k++) sum += o.weights[k] = weights[w][k];
        kd_loader *loader = test_loader_open(&o);
        for (int64_t g = 1; g <= 300; g++) {
            cr_assert(test_loader_next(loader) != NULL, "shuffled, there is no end");
            kd_cursor c;
            kd_loader_cursor(&c, loader);
            cr_assert(c.samples == g, "samples");
            cr_assert(c.source_samples[0] + c.source_samples[1] + c.source_samples[2] == g, "sum");
            for (int k = 0; k < TEST_CORPORA; k++) {
                const double ahead = (double)c.source_samples[k] - weights[w][k] / sum * (double)g;
                cr_assert(ahead < 1.0 && ahead > 1.0 - TEST_CORPORA,
                          "weights %d: after %lld samples source %d is %g ahead", w, (long long)g,
                          k, ahead);
            }
        }
        kd_loader_close(loader);
    }
    test_text_remove();
}

/* Weights 1, 2, 1: deficits 1/4 1/2 1/4, then 1/2 0 1/2, then -1/4 1/2 3/4, then 0 1 0, over again. */
Test(order, picks_worked_by_hand)
{
    static const int picks[] = { 1, 0, 2, 1, 1, 0, 2, 1 };
    kd_loader_options o = test_corpora_options(TEST_CORPORA);
    o.weights[0] = o.weights[2] = 1.0, o.weights[1] = 2.0;
    o.step_samples = o.micro_samples = KD_COUNT(picks);
    test_gather(&one, o, 1, KD_COUNT(picks), NULL, 1, NULL);
    for (int i = 0; i < KD_COUNT(picks); i++) {
        const int source = one.rows[i * o.sequence].token / TEST_STRIDE;
        cr_assert(source == picks[i], "sample %d is of source %d, expected %d", i, source,
                  picks[i]);
    }
    test_text_remove();
}
