/*
 * fuzz_loss.c - a file of tensors for `kd loss`, over logits or features, with options and projectors that
 * the first bytes choose: refused with a sentence, or a value for each unit and gradients of the shape of
 * what they are of.
 */
#include "fuzz/fuzz.h"

#include "format/format.h"

#include <kd/loss.h>

static const fuzz_slot slots[] = { { "how", FUZZ_BYTES }, { "in.safetensors", FUZZ_SAFETENSORS } };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    return fuzz_mutate(data, size, most, seed, slots, KD_COUNT(slots));
}

/* Which loss, and how: bytes beyond the end are 0. */
typedef struct how {
    uint8_t loss, projector, temperature, topk, standardise, classes, normalise, kernel;
} how;

static double choose(const kd_option *option, unsigned which)
{
    return which % 3 == 1 ? option->min : option->max;
}

/* Every third option as it is by default, the others at an end of their range. */
static void move_options(void *target, const kd_option *rows, unsigned which)
{
    for (const kd_option *row = rows; row && row->name; row++, which /= 3) {
        char *at = (char *)target + row->offset;
        if (which % 3 == 0) continue;
        if (row->kind == KD_FLOAT) *(double *)(void *)at = choose(row, which);
        if (row->kind == KD_INT) *(int64_t *)(void *)at = (int64_t)choose(row, which);
        if (row->kind == KD_BOOL) *(bool *)(void *)at = which % 3 == 1;
    }
}

static kd_status run_rows(const how *h, const char *in, const char *out)
{
    static const double temperatures[] = { 1, 0.5, 4, 1e-3, 1e6 };
    kd_loss_info info;
    fuzz_ok(kd_loss_describe(&info, h->loss));
    const kd_loss_options options = { .temperature =
                                          temperatures[h->temperature % KD_COUNT(temperatures)],
                                      .t_squared = h->temperature & 64,
                                      .option = info.option_default,
                                      .option2 = info.option2_default,
                                      .standardise = h->standardise & 1,
                                      .topk = h->topk % (KD_LOSS_SAMPLED + 1),
                                      .classes = h->classes };
    return kd_loss_file(h->loss, in, out, &options);
}

static kd_status run_features(const how *h, int loss, const char *in, const char *out)
{
    static _Alignas(16) unsigned char options[KD_FEATURE_OPTION_BYTES];
    kd_projector_options projector;
    kd_feature_info info;
    kd_arena *arena;
    fuzz_ok(kd_feature_describe(&info, loss));
    fuzz_ok(kd_arena_create(&arena));
    if (info.options) fuzz_ok(kd_options_parse(options, info.options, arena, NULL, "loss", NULL));
    fuzz_ok(kd_options_parse(&projector, kd_projector_rows, arena, NULL, "projector", NULL));
    kd_arena_destroy(arena);
    move_options(options, info.options, h->temperature);
    projector.kind = h->projector % (KD_PROJECTOR_CONV + 1);
    projector.normalise = h->normalise & 3;
    projector.output = (h->normalise >> 2) % 3;
    projector.activation = h->normalise >> 5 & 1;
    projector.bias = !(h->normalise & 64);
    projector.trainable = !(h->normalise & 128);
    projector.width = h->kernel;
    return kd_feature_file(loss, in, out, info.options ? options : NULL,
                           h->projector ? &projector : NULL, "cpu");
}

static void check(const char *in, const char *out)
{
    kd_st_file *read, *written;
    fuzz_ok(kd_st_open(&read, in));
    fuzz_ok(kd_st_open(&written, out));
    const kd_st_entry *loss = kd_st_find(written, "loss");
    fuzz_require(loss && loss->rank == 1 && loss->dtype == KD_F32, "loss");
    for (int64_t i = 0; i < written->count; i++) {
        const kd_st_entry *d = &written->entries[i];
        const kd_st_entry *of =
            strncmp(d->name, "d_", 2) == 0 ? kd_st_find(read, d->name + 2) : NULL;
        if (!of) continue; /* a value, a state, or of a parameter that was not given */
        fuzz_require(d->rank == of->rank && d->elements == of->elements &&
                         memcmp(d->shape, of->shape, (size_t)of->rank * sizeof *of->shape) == 0,
                     "%s", d->name);
    }
    kd_st_close(read);
    kd_st_close(written);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char in[128], out[128];
    fuzz_part parts[FUZZ_MAX_SLOTS];
    how h = { 0 };
    fuzz_split(parts, slots, KD_COUNT(slots), data, size);
    memcpy(&h, parts[0].data, parts[0].bytes < sizeof h ? parts[0].bytes : sizeof h);
    h.loss %= (uint8_t)(kd_loss_count() + kd_feature_count());
    fuzz_write(slots[1].name, parts[1].data, parts[1].bytes);
    snprintf(in, sizeof in, "%s", fuzz_path(slots[1].name));
    snprintf(out, sizeof out, "%s", fuzz_path("out.safetensors"));
    fuzz_begin();
    const bool rows = h.loss < kd_loss_count();
    const kd_status status =
        rows ? run_rows(&h, in, out) : run_features(&h, h.loss - kd_loss_count(), in, out);
    /* Wider heads or more columns than an op can take are well formed. */
    if (fuzz_accepted(status, KD_EFORMAT, status == KD_ENOTSUP ? KD_ENOTSUP : KD_EINVAL, NULL))
        check(in, out);
    return 0;
}
