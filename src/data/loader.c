/*
 * loader.c - whole optimizer steps, built one ahead of the caller by a worker thread.
 *
 * A step is a function of the options and its cursor, of nothing that was built before: that is what
 * makes seek exact and lets ranks agree without talking.  The tables of an epoch's order are only a
 * memory of that function, so a seek need not undo them.
 *
 * While the caller reads one slot, the worker fills the other; loader->cursor belongs to the caller,
 * sources and the slot being built to the worker between start and wait.
 */
#include "data/data.h"

#include <inttypes.h>
#include <math.h>

typedef struct kd_source {
    kd_text *text;         /* or */
    kd_samples *samples;   /* in no document but their own */
    double share;          /* of samples; all sources sum to 1 */
    int64_t first;         /* of its samples among those of all sources */
    int64_t epoch_samples; /* of one epoch; not shuffled: of the pass */
    int64_t epoch;         /* that `prefix` describes; -1: none */
    /* [documents + 1].  Packed: tokens before each document, in the epoch's order.  Not packed:
     * pieces before each document, in file order, in any epoch. */
    int64_t *prefix;
} kd_source;

/* One micro-batch while it is written. */
typedef struct kd_rows {
    int32_t *tokens, *positions, *labels, *documents, *cu, *valid, *samples;
    float *inputs;
    int64_t width; /* of inputs; 0: none */
    int64_t row, pieces, valid_count;
} kd_rows;

typedef struct kd_slot {
    kd_cursor before, after; /* equal: the pass has ended */
    kd_step_batch batch;
    kd_rows *rows; /* [micro_count] */
} kd_slot;

struct kd_loader {
    kd_arena *arena; /* owns everything here but texts and worker */
    kd_loader_options options;
    int64_t micro_count, micro_rows;
    kd_source sources[KD_MAX_SOURCES];
    kd_slot slots[2];
    int next; /* slot that is being built, or will be */
    bool building;
    kd_cursor cursor;
    kd_worker *worker;
};

/* ---- order: which tokens sample `taken` of a source is ----------------------------------------- */

/* Keeps the shuffles of one seed apart from its other uses: dropout takes streams too. */
static uint64_t order_stream(int source, int64_t epoch)
{
    uint32_t word[4];
    kd_philox(word, 0x6b642e6f72646572u /* "kd.order" */, (uint64_t)source, (uint64_t)epoch);
    return (uint64_t)word[1] << 32 | word[0];
}

static int64_t ordered(const kd_loader *loader, int source, int64_t epoch, int64_t index, int64_t n)
{
    if (!loader->options.shuffle) return index;
    return kd_permute(index, n, loader->options.seed, order_stream(source, epoch));
}

static int64_t document_length(const kd_text *text, int64_t document)
{
    int64_t begin, end;
    kd_text_document(text, document, &begin, &end);
    return end - begin;
}

static void order_epoch(kd_loader *loader, int source, int64_t epoch)
{
    kd_source *s = &loader->sources[source];
    if (s->epoch == epoch) return;
    const int64_t n = kd_text_documents(s->text);
    s->prefix[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t document = ordered(loader, source, epoch, i, n);
        s->prefix[i + 1] = s->prefix[i] + document_length(s->text, document);
    }
    s->epoch = epoch;
}

static void count_pieces(kd_source *s, int64_t sequence)
{
    s->prefix[0] = 0;
    for (int64_t i = 0; i < kd_text_documents(s->text); i++)
        s->prefix[i + 1] = s->prefix[i] + kd_ceil_div(document_length(s->text, i), sequence);
}

/* The i with prefix[i] <= value < prefix[i + 1]: never an empty document.  0 <= value < prefix[n]. */
static int64_t find(const int64_t *prefix, int64_t n, int64_t value)
{
    int64_t low = 0, high = n;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (prefix[middle] <= value)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* Tokens [at, at + count) of the file, all of `document`. */
static kd_status put_piece(kd_rows *rows, const kd_text *text, int64_t document, int64_t at,
                           int64_t count)
{
    int64_t begin, end;
    kd_text_document(text, document, &begin, &end);
    rows->cu[rows->pieces++] = (int32_t)rows->row;
    KD_TRY(kd_text_read(rows->tokens + rows->row, rows->labels + rows->row, text, at, count, end));
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = rows->row++;
        rows->positions[row] = (int32_t)i;
        rows->documents[row] = (int32_t)document;
        if (rows->labels[row] >= 0) rows->valid[rows->valid_count++] = (int32_t)row;
    }
    return KD_OK;
}

static void put_padding(kd_rows *rows, int64_t count)
{
    if (count == 0) return;
    rows->cu[rows->pieces++] = (int32_t)rows->row;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = rows->row++;
        rows->tokens[row] = 0;
        rows->positions[row] = (int32_t)i;
        rows->documents[row] = rows->labels[row] = -1;
        if (rows->samples) rows->samples[row] = 0;
        for (int64_t k = 0; k < rows->width; k++) rows->inputs[row * rows->width + k] = 0.0f;
    }
}

static kd_status put_packed(kd_rows *rows, kd_loader *loader, int source, int64_t epoch, int64_t r)
{
    const kd_source *s = &loader->sources[source];
    const int64_t n = kd_text_documents(s->text), sequence = loader->options.sequence;
    order_epoch(loader, source, epoch);
    int64_t at = r * sequence, left = sequence;
    for (int64_t i = find(s->prefix, n, at); i < n && left > 0; i++) {
        const int64_t count = kd_min_i64(s->prefix[i + 1] - at, left);
        if (count == 0) continue;
        const int64_t document = ordered(loader, source, epoch, i, n);
        int64_t begin, end;
        kd_text_document(s->text, document, &begin, &end);
        KD_TRY(put_piece(rows, s->text, document, begin + at - s->prefix[i], count));
        at += count;
        left -= count;
    }
    put_padding(rows, left);
    return KD_OK;
}

static kd_status put_single(kd_rows *rows, kd_loader *loader, int source, int64_t epoch, int64_t r)
{
    const kd_source *s = &loader->sources[source];
    const int64_t sequence = loader->options.sequence;
    const int64_t piece = ordered(loader, source, epoch, r, s->epoch_samples);
    const int64_t document = find(s->prefix, kd_text_documents(s->text), piece);
    int64_t begin, end;
    kd_text_document(s->text, document, &begin, &end);
    const int64_t at = begin + (piece - s->prefix[document]) * sequence;
    const int64_t count = kd_min_i64(end - at, sequence);
    KD_TRY(put_piece(rows, s->text, document, at, count));
    put_padding(rows, sequence - count);
    return KD_OK;
}

static kd_status put_inputs(kd_rows *rows, kd_loader *loader, int source, int64_t epoch, int64_t r)
{
    const kd_source *s = &loader->sources[source];
    const int64_t sample = ordered(loader, source, epoch, r, s->epoch_samples), row = rows->row++;
    rows->cu[rows->pieces++] = (int32_t)row;
    rows->tokens[row] = rows->positions[row] = 0;
    rows->documents[row] = (int32_t)sample;
    rows->samples[row] = (int32_t)(loader->sources[source].first + sample);
    rows->valid[rows->valid_count++] = (int32_t)row;
    return kd_samples_read(rows->inputs + row * rows->width, &rows->labels[row], s->samples,
                           sample);
}

/* Sample `taken` of `source`; -1: the pass has ended. */
static kd_status put_sample(kd_rows *rows, kd_loader *loader, int source, int64_t taken)
{
    if (source < 0) {
        put_padding(rows, loader->options.sequence);
        return KD_OK;
    }
    const int64_t samples = loader->sources[source].epoch_samples;
    const int64_t epoch = taken / samples, r = taken % samples;
    if (loader->options.inputs) return put_inputs(rows, loader, source, epoch, r);
    if (loader->options.pack == KD_PACK_NONE) return put_single(rows, loader, source, epoch, r);
    return put_packed(rows, loader, source, epoch, r);
}

/* ---- steps ------------------------------------------------------------------------------------- */

/* The source of the sample after `cursor`, -1 when the pass has ended.  fma rounds once on every
 * machine and compiler, so that all take the same side of a near tie. */
static int pick(const kd_loader *loader, const kd_cursor *cursor)
{
    const kd_loader_options *o = &loader->options;
    if (!o->shuffle && o->max_samples && cursor->samples >= o->max_samples) return -1;
    int best = -1;
    double most = 0.0;
    for (int i = 0; i < o->sources; i++) {
        const kd_source *s = &loader->sources[i];
        const int64_t taken = cursor->source_samples[i];
        if (!o->shuffle && taken >= s->epoch_samples) continue;
        const double deficit = fma(s->share, (double)(cursor->samples + 1), -(double)taken);
        if (best >= 0 && deficit <= most) continue;
        best = i;
        most = deficit;
    }
    return best;
}

static void begin_rows(kd_slot *slot, int64_t micro_count)
{
    for (int64_t m = 0; m < micro_count; m++) {
        kd_rows *rows = &slot->rows[m];
        rows->row = rows->pieces = rows->valid_count = 0;
    }
}

static void finish_rows(kd_slot *slot, int64_t micro_count, int64_t micro_rows)
{
    slot->batch.valid_count = 0;
    for (int64_t m = 0; m < micro_count; m++) {
        kd_rows *rows = &slot->rows[m];
        for (int64_t i = rows->pieces; i <= micro_rows; i++) rows->cu[i] = (int32_t)micro_rows;
        for (int64_t i = rows->valid_count; i < micro_rows; i++) rows->valid[i] = -1;
        slot->batch.micro[m].valid_count = rows->valid_count;
        slot->batch.valid_count += rows->valid_count;
    }
}

/* The worker's job: fills slots[next] from its `before`. */
static kd_status build(void *context)
{
    kd_loader *loader = context;
    const kd_loader_options *o = &loader->options;
    kd_slot *slot = &loader->slots[loader->next];
    kd_cursor *cursor = &slot->after;
    *cursor = slot->before;
    slot->batch.epoch = 0;
    if (o->shuffle)
        slot->batch.epoch = cursor->source_samples[0] / loader->sources[0].epoch_samples;
    begin_rows(slot, loader->micro_count);
    const int64_t own = loader->micro_count * o->micro_samples, first = o->rank * own;
    for (int64_t i = 0; i < o->step_samples; i++) {
        const int source = pick(loader, cursor);
        const int64_t taken = source < 0 ? 0 : cursor->source_samples[source]++;
        if (source >= 0) cursor->samples++;
        if (i < first || i >= first + own) continue;
        kd_rows *rows = &slot->rows[(i - first) / o->micro_samples];
        KD_TRY(put_sample(rows, loader, source, taken));
    }
    finish_rows(slot, loader->micro_count, loader->micro_rows);
    return KD_OK;
}

static void start(kd_loader *loader)
{
    loader->slots[loader->next].before = loader->cursor;
    loader->building = true;
    kd_worker_start(loader->worker);
}

kd_status kd_loader_next(const kd_step_batch **batch, kd_loader *loader, double *wait)
{
    *batch = NULL;
    const double since = kd_clock();
    if (!loader->building) start(loader);
    const kd_status status = kd_worker_wait(loader->worker);
    loader->building = false;
    if (wait) *wait = kd_clock() - since;
    KD_TRY(status);
    const kd_slot *slot = &loader->slots[loader->next];
    if (slot->after.samples == slot->before.samples) return KD_OK;
    loader->cursor = slot->after;
    loader->next = 1 - loader->next;
    start(loader);
    *batch = &slot->batch;
    return KD_OK;
}

/* Counts stay where a double, and so pick(), is exact. */
static kd_status check_cursor(const kd_loader *loader, const kd_cursor *cursor)
{
    const kd_loader_options *o = &loader->options;
    int64_t sum = 0;
    for (int i = 0; i < KD_MAX_SOURCES; i++) {
        const int64_t taken = cursor->source_samples[i];
        int64_t most = 0;
        if (i < o->sources) most = o->shuffle ? INT64_C(1) << 48 : loader->sources[i].epoch_samples;
        if (taken < 0 || taken > most)
            return kd_fail(KD_EINVAL,
                           "cursor: found %" PRId64
                           " samples of source %d (%s), expected 0 to %" PRId64,
                           taken, i, i < o->sources ? o->files[i] : "absent", most);
        sum += taken;
    }
    if (sum != cursor->samples)
        return kd_fail(KD_EINVAL,
                       "cursor: found %" PRId64 " samples, expected %" PRId64
                       " as its sources have",
                       cursor->samples, sum);
    return KD_OK;
}

kd_status kd_loader_seek(kd_loader *loader, const kd_cursor *cursor)
{
    KD_TRY(check_cursor(loader, cursor));
    /* What was being built, and how that went, no longer matters. */
    if (kd_worker_wait(loader->worker) != KD_OK) kd_log(KD_LOG_DEBUG, "%s", kd_last_error());
    loader->building = false;
    loader->cursor = *cursor;
    return KD_OK;
}

void kd_loader_cursor(kd_cursor *cursor, const kd_loader *loader) { *cursor = loader->cursor; }

/* ---- open and close ---------------------------------------------------------------------------- */

static kd_status check_at_least(const char *name, int64_t found, int64_t least)
{
    if (found >= least) return KD_OK;
    return kd_fail(KD_EINVAL, "%s: found %" PRId64 ", expected at least %" PRId64, name, found,
                   least);
}

static kd_status check_options(const kd_loader_options *o)
{
    if (o->sources < 1 || o->sources > KD_MAX_SOURCES)
        return kd_fail(KD_EINVAL, "sources: found %d, expected 1 to %d", o->sources,
                       KD_MAX_SOURCES);
    for (int i = 0; i < o->sources; i++) {
        if (!o->files[i]) return kd_fail(KD_EINVAL, "files[%d]: found none", i);
        if (!(o->weights[i] > 0.0) || !isfinite(o->weights[i]))
            return kd_fail(KD_EINVAL, "%s: found weight %g, expected a positive number",
                           o->files[i], o->weights[i]);
    }
    KD_TRY(check_at_least("sequence", o->sequence, 1));
    KD_TRY(check_at_least("inputs", o->inputs, 0));
    if (o->inputs && o->sequence != 1)
        return kd_fail(KD_EINVAL, "sequence: found %" PRId64 ", expected 1 of samples",
                       o->sequence);
    KD_TRY(check_at_least("step_samples", o->step_samples, 1));
    KD_TRY(check_at_least("micro_samples", o->micro_samples, 1));
    KD_TRY(check_at_least("ranks", o->ranks, 1));
    KD_TRY(check_at_least("max_samples", o->max_samples, 0));
    if (o->rank < 0 || o->rank >= o->ranks)
        return kd_fail(KD_EINVAL, "rank: found %d, expected 0 to %d", o->rank, o->ranks - 1);
    int64_t together;
    if (!kd_mul_i64(&together, o->micro_samples, o->ranks) || o->step_samples % together != 0)
        return kd_fail(KD_EINVAL,
                       "step_samples: found %" PRId64 ", expected a multiple of micro_samples * "
                       "ranks = %" PRId64 " * %d",
                       o->step_samples, o->micro_samples, o->ranks);
    int64_t rows;
    if (!kd_mul_i64(&rows, o->micro_samples, o->sequence) || rows >= INT32_MAX)
        return kd_fail(KD_EINVAL,
                       "micro_samples * sequence: found %" PRId64 " * %" PRId64
                       ", expected less than %d rows",
                       o->micro_samples, o->sequence, INT32_MAX);
    return KD_OK;
}

static kd_status open_samples(kd_loader *loader, int index)
{
    const kd_loader_options *o = &loader->options;
    const kd_samples_options samples = { o->inputs, o->vocabulary };
    kd_source *s = &loader->sources[index];
    KD_TRY(kd_samples_open(&s->samples, o->files[index], &samples));
    s->epoch_samples = kd_samples_count(s->samples);
    s->first = index ? s[-1].first + s[-1].epoch_samples : 0;
    if (s->first + s->epoch_samples <= INT32_MAX) return KD_OK;
    return kd_fail(KD_ENOTSUP, "%s: found sample %" PRId64 " of all sources, expected at most %d",
                   o->files[index], s->first + s->epoch_samples, INT32_MAX);
}

static kd_status open_source(kd_loader *loader, int index)
{
    const kd_loader_options *o = &loader->options;
    kd_source *s = &loader->sources[index];
    if (o->inputs) return open_samples(loader, index);
    const kd_text_options text = { o->vocabulary, o->tokenizer, o->fingerprint };
    KD_TRY(kd_text_open(&s->text, o->files[index], &text));
    const int64_t documents = kd_text_documents(s->text), tokens = kd_text_tokens(s->text);
    if (documents > INT32_MAX)
        return kd_fail(KD_ENOTSUP, "%s: found %" PRId64 " documents, expected at most %d",
                       o->files[index], documents, INT32_MAX);
    KD_TRY(KD_ARENA_ARRAY(&s->prefix, loader->arena, documents + 1));
    s->epoch = -1;
    if (o->pack == KD_PACK_NONE) {
        count_pieces(s, o->sequence);
        s->epoch_samples = s->prefix[documents];
        return KD_OK;
    }
    s->epoch_samples = o->shuffle ? tokens / o->sequence : kd_ceil_div(tokens, o->sequence);
    if (s->epoch_samples == 0)
        return kd_fail(KD_EINVAL,
                       "%s: found %" PRId64 " tokens, expected at least sequence = %" PRId64
                       ", since packing and shuffling drop an incomplete sample",
                       o->files[index], tokens, o->sequence);
    return KD_OK;
}

static kd_status open_slot(kd_loader *loader, kd_slot *slot)
{
    const int64_t micros = loader->micro_count, n = loader->micro_rows;
    KD_TRY(KD_ARENA_ARRAY(&slot->rows, loader->arena, micros));
    KD_TRY(KD_ARENA_ARRAY(&slot->batch.micro, loader->arena, micros));
    slot->batch.micro_count = micros;
    for (int64_t m = 0; m < micros; m++) {
        kd_rows *r = &slot->rows[m];
        KD_TRY(KD_ARENA_ARRAY(&r->tokens, loader->arena, n));
        KD_TRY(KD_ARENA_ARRAY(&r->positions, loader->arena, n));
        KD_TRY(KD_ARENA_ARRAY(&r->labels, loader->arena, n));
        KD_TRY(KD_ARENA_ARRAY(&r->documents, loader->arena, n));
        KD_TRY(KD_ARENA_ARRAY(&r->cu, loader->arena, n + 1));
        KD_TRY(KD_ARENA_ARRAY(&r->valid, loader->arena, n));
        r->width = loader->options.inputs;
        if (r->width) {
            KD_TRY(KD_ARENA_ARRAY(&r->inputs, loader->arena, n * r->width));
            KD_TRY(KD_ARENA_ARRAY(&r->samples, loader->arena, n));
        }
        slot->batch.micro[m] = (kd_micro_batch){
            .tokens = r->tokens,
            .positions = r->positions,
            .labels = r->labels,
            .inputs = r->inputs,
            .samples = r->samples,
            .documents = r->documents,
            .cu = r->cu,
            .valid = r->valid,
            .rows = n,
        };
    }
    return KD_OK;
}

static kd_status open_all(kd_loader *loader)
{
    kd_loader_options *o = &loader->options;
    double sum = 0.0;
    for (int i = 0; i < o->sources; i++) {
        KD_TRY(kd_arena_string(&o->files[i], loader->arena, o->files[i]));
        sum += o->weights[i];
    }
    for (int i = 0; i < o->sources; i++) {
        loader->sources[i].share = o->weights[i] / sum;
        KD_TRY(open_source(loader, i));
    }
    loader->micro_count = o->step_samples / (o->micro_samples * o->ranks);
    loader->micro_rows = o->micro_samples * o->sequence;
    KD_TRY(open_slot(loader, &loader->slots[0]));
    KD_TRY(open_slot(loader, &loader->slots[1]));
    return kd_worker_create(&loader->worker, build, loader);
}

kd_status kd_loader_open(kd_loader **loader, const kd_loader_options *options)
{
    *loader = NULL;
    KD_TRY(check_options(options));
    kd_arena *arena;
    KD_TRY(kd_arena_create(&arena));
    kd_status status;
    kd_loader *opened = NULL;
    KD_TRY_GOTO(KD_ARENA_ARRAY(&opened, arena, 1), status, failed);
    opened->arena = arena;
    opened->options = *options;
    KD_TRY_GOTO(open_all(opened), status, failed);
    *loader = opened;
    return KD_OK;

failed:
    if (opened)
        kd_loader_close(opened);
    else
        kd_arena_destroy(arena);
    return status;
}

void kd_loader_close(kd_loader *loader)
{
    if (!loader) return;
    kd_worker_destroy(loader->worker);
    for (int i = 0; i < loader->options.sources; i++) {
        kd_text_close(loader->sources[i].text);
        kd_samples_close(loader->sources[i].samples);
    }
    kd_arena_destroy(loader->arena);
}

void kd_loader_describe(const kd_loader *loader, int64_t *tokens, int64_t *documents,
                        double *scored)
{
    int64_t targets = 0;
    *tokens = *documents = 0;
    for (int i = 0; i < loader->options.sources; i++) {
        const kd_text *text = loader->sources[i].text;
        const kd_samples *samples = loader->sources[i].samples;
        const int64_t count = samples ? kd_samples_count(samples) : 0;
        *tokens += count;
        *documents += count;
        targets += count;
        if (samples) continue;
        *tokens += kd_text_tokens(text);
        *documents += kd_text_documents(text);
        targets += kd_text_targets(text);
    }
    *scored = (double)targets / (double)*tokens;
}
