/* fuzz_data.c - texts of tokens in every format, and samples: what is accepted has documents that
 * follow each other, ids of the vocabulary, and as many labels as it says; numbers, and classes. */
#include "fuzz/fuzz.h"

#include "data/data.h"

#include <math.h>

enum { SAMPLES = 4, INPUTS = 3, CLASSES = 5 };

/* The first byte of an input: bits 0 and 1 the format of a text, bit 2 a large vocabulary, bit 3 a
 * tokenizer; bit 4: samples instead. */
static const struct {
    const char *name;
    fuzz_slot slots[2];
    int count;
} formats[] = {
    { "a.safetensors", { { "a.safetensors", FUZZ_SAFETENSORS } }, 1 },
    { "b.bin", { { "b.bin", FUZZ_BYTES } }, 1 },
    { "c.idx", { { "c.idx", FUZZ_BYTES }, { "c.bin", FUZZ_BYTES } }, 2 },
    { "d.jsonl", { { "d.jsonl", FUZZ_JSON } }, 1 },
    [SAMPLES] = { "e.safetensors", { { "e.safetensors", FUZZ_SAFETENSORS } }, 1 },
};

static int format_of(uint8_t first) { return first & 16 ? SAMPLES : first & 3; }

static const char tokenizer_json[] =
    "{\"model\": {\"type\": \"BPE\", \"merges\": [\"a b\", \"ab c\"], \"vocab\": {\"a\": 0, \"b\": "
    "1, "
    "\"c\": 2, \"ab\": 3, \"abc\": 4, \"d\": 5, \"\\u0120\": 6, \"\\u010a\": 7}},"
    "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": "
    "true,"
    "\"use_regex\": true}, \"decoder\": {\"type\": \"ByteLevel\"},"
    "\"added_tokens\": [{\"id\": 8, \"content\": \"<|endoftext|>\", \"special\": true}]}";
static const char tokenizer_config_json[] = "{\"eos_token\": \"<|endoftext|>\"}";

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    if (size < 2 || most < 16 || seed % 64 == 0) return LLVMFuzzerMutate(data, size, most);
    const int format = format_of(data[0]);
    return 1 + fuzz_mutate(data + 1, size - 1, most - 1, seed, formats[format].slots,
                           formats[format].count);
}

/* The tokenizer's folder, made once. */
static const char *tokenizer(void)
{
    static char dir[128];
    if (dir[0]) return dir;
    snprintf(dir, sizeof dir, "%s", fuzz_path("tokenizer"));
    fuzz_ok(kd_dir_create(dir));
    fuzz_write("tokenizer/tokenizer.json", tokenizer_json, strlen(tokenizer_json));
    fuzz_write("tokenizer/tokenizer_config.json", tokenizer_config_json,
               strlen(tokenizer_config_json));
    return dir;
}

static int64_t check_document(const kd_text *text, int64_t begin, int64_t end, int64_t vocabulary)
{
    const int64_t n = end - begin;
    int64_t targets = 0;
    int32_t *ids = malloc((size_t)n * sizeof *ids + 1),
            *labels = malloc((size_t)n * sizeof *ids + 1);
    fuzz_require(ids && labels, "no memory");
    fuzz_ok(kd_text_read(ids, labels, text, begin, n, end));
    for (int64_t i = 0; i < n; i++) {
        fuzz_require(ids[i] >= 0 && ids[i] < vocabulary, "id %d", ids[i]);
        fuzz_require(labels[i] == -1 || (i + 1 < n && labels[i] == ids[i + 1]), "label %d",
                     labels[i]);
        targets += labels[i] >= 0;
    }
    free(ids);
    free(labels);
    return targets;
}

static void check(const kd_text *text, int64_t vocabulary)
{
    int64_t at = 0, targets = 0;
    fuzz_require(kd_text_tokens(text) > 0, "no tokens");
    for (int64_t d = 0; d < kd_text_documents(text); d++) {
        int64_t begin, end;
        kd_text_document(text, d, &begin, &end);
        fuzz_require(begin == at && end >= begin, "document %lld", (long long)d);
        if (end > begin) targets += check_document(text, begin, end, vocabulary);
        at = end;
    }
    fuzz_require(at == kd_text_tokens(text), "%lld tokens", (long long)at);
    fuzz_require(targets == kd_text_targets(text), "%lld targets", (long long)targets);
}

static void read_samples(void)
{
    const kd_samples_options options = { INPUTS, CLASSES };
    kd_samples *samples;
    const kd_status status = kd_samples_open(&samples, fuzz_path(formats[SAMPLES].name), &options);
    if (!fuzz_accepted(status, KD_EFORMAT, KD_EFORMAT, fuzz_folder())) return;
    fuzz_require(kd_samples_count(samples) > 0, "no samples");
    for (int64_t i = 0; i < kd_samples_count(samples); i++) {
        float inputs[INPUTS];
        int32_t label;
        fuzz_ok(kd_samples_read(inputs, &label, samples, i));
        fuzz_require(label >= 0 && label < CLASSES, "label %d", label);
        for (int k = 0; k < INPUTS; k++) fuzz_require(isfinite(inputs[k]), "an input");
    }
    kd_samples_close(samples);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part parts[FUZZ_MAX_SLOTS];
    kd_text *text;
    if (size < 1) return 0;
    const int format = format_of(data[0]);
    const kd_text_options options = { .vocabulary = data[0] & 4 ? 1 << 16 : 9,
                                      .tokenizer = data[0] & 8 ? tokenizer() : NULL };
    fuzz_split(parts, formats[format].slots, formats[format].count, data + 1, size - 1);
    fuzz_write_parts(formats[format].slots, parts, formats[format].count);
    fuzz_begin();
    if (format == SAMPLES) {
        read_samples();
        return 0;
    }
    const kd_status status = kd_text_open(&text, fuzz_path(formats[format].name), &options);
    /* Text that the tokenizer does not encode exactly is KD_ENOTSUP. */
    if (fuzz_accepted(status, KD_EFORMAT, format == 3 ? KD_ENOTSUP : KD_EFORMAT, fuzz_folder())) {
        check(text, options.vocabulary);
        kd_text_close(text);
    }
    return 0;
}
