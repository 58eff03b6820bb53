#include "cmd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct options {
    const char *model, *prompt, *ids, *device, *dtype;
    int64_t tokens, top_k, seed;
    double temperature, top_p;
    bool chat, json;
} options;

static const kd_option rows[] = {
    { "model", KD_STRING, offsetof(options, model), NULL, 0, 0, "", "Hugging Face directory" },
    { "prompt", KD_STRING, offsetof(options, prompt), "", 0, 0, "", "text that is continued" },
    { "ids", KD_STRING, offsetof(options, ids), "", 0, 0, "",
      "in place of text: 1,2,3 or a safetensors file with integers `tokens` [n]" },
    { "chat", KD_BOOL, offsetof(options, chat), "false", 0, 0, "",
      "the prompt is a user's turn (ChatML), the output the answer" },
    { "tokens", KD_INT, offsetof(options, tokens), "128", 1, 1 << 20, "tokens",
      "most that are made" },
    { "temperature", KD_FLOAT, offsetof(options, temperature), "0", 0, 100, "", "0: greedy" },
    { "top-k", KD_INT, offsetof(options, top_k), "0", 0, 1 << 24, "tokens",
      "that are sampled from, most probable first; 0: all" },
    { "top-p", KD_FLOAT, offsetof(options, top_p), "1", 0, 1, "share",
      "of probability that is sampled from, most probable first" },
    { "seed", KD_INT, offsetof(options, seed), "0", 0, 9e15, "", "same seed, same text" },
    { "dtype", KD_STRING, offsetof(options, dtype), "f32", 0, 0, "",
      "f32 or bf16, of weights and activations; f8_e4m3: of the matrices in all blocks but the "
      "first "
      "and the last, bf16 elsewhere" },
    { "device", KD_STRING, offsetof(options, device), "auto", 0, 0, "", "auto, cpu, cuda, cuda:1" },
    { "json", KD_BOOL, offsetof(options, json), "false", 0, 0, "",
      "one JSON object at the end: ids, text, counts, seconds" },
    { 0 },
};

/* What was made, for --json. */
typedef struct record {
    bool json;
    int32_t *ids;
    char *text; /* NULL: the model has no tokenizer */
    int64_t count, capacity;
    size_t bytes, text_capacity;
} record;

static kd_status grow(void **array, size_t bytes)
{
    void *larger = realloc(*array, bytes);
    if (!larger) return kd_fail(KD_ENOMEM, "generate: no memory for %zu bytes", bytes);
    *array = larger;
    return KD_OK;
}

static kd_status keep(record *r, int32_t id, const char *text, size_t bytes)
{
    if (r->count == r->capacity) {
        r->capacity = 2 * r->capacity + 64;
        KD_TRY(grow((void **)(void *)&r->ids, (size_t)r->capacity * sizeof *r->ids));
    }
    if (id >= 0) r->ids[r->count++] = id;
    if (!text) return KD_OK;
    if (r->bytes + bytes + 1 > r->text_capacity) {
        r->text_capacity = 2 * (r->bytes + bytes + 1);
        KD_TRY(grow((void **)(void *)&r->text, r->text_capacity));
    }
    memcpy(r->text + r->bytes, text, bytes + 1);
    r->bytes += bytes;
    return KD_OK;
}

/* A person reads along: each piece is written when it is there. */
static kd_status visit(void *context, int32_t id, const char *text, size_t bytes)
{
    record *r = context;
    if (r->json) return keep(r, id, text, bytes);
    if (text)
        (void)fwrite(text, 1, bytes, stdout);
    else
        printf("%s%d", r->count++ ? "," : "", (int)id);
    return fflush(stdout) == 0 ? KD_OK : kd_fail(KD_EIO, "standard output: %s", strerror(errno));
}

static void print_json(const record *r, const kd_generate_report *report)
{
    cmd_json json = { .out = stdout };
    cmd_json_open(&json, NULL, '{');
    cmd_json_text(&json, "text", r->text);
    cmd_json_open(&json, "ids", '[');
    for (int64_t i = 0; i < r->count; i++) cmd_json_integer(&json, NULL, r->ids[i]);
    cmd_json_close(&json);
    cmd_json_integer(&json, "prompt_tokens", report->prompt_tokens);
    cmd_json_integer(&json, "tokens", report->tokens);
    cmd_json_bool(&json, "ended", report->ended);
    cmd_json_number(&json, "prompt_seconds", report->prompt_seconds);
    cmd_json_number(&json, "seconds", report->seconds);
    cmd_json_close(&json);
}

/* "1,2,3" into ids [strlen(text)]. */
static kd_status parse_ids(int32_t *ids, int64_t *count, const char *text)
{
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        const long value = strtol(at, &end, 10);
        if (end == at || errno || value < 0 || value > INT32_MAX || (*end && *end != ','))
            return kd_fail(KD_EINVAL, "--ids: \"%.40s\"; expected ids with commas between", at);
        ids[(*count)++] = (int32_t)value;
        at = end;
        if (!*at) return KD_OK;
    }
}

static kd_status run(const options *o, int32_t *ids)
{
    const bool list = o->ids[0] && strspn(o->ids, "0123456789, -") == strlen(o->ids);
    kd_generate_options g = { .model = o->model,
                              .prompt = o->ids[0] && !o->prompt[0] ? NULL : o->prompt,
                              .file = o->ids[0] && !list ? o->ids : NULL,
                              .chat = o->chat,
                              .tokens = o->tokens,
                              .temperature = o->temperature,
                              .top_k = o->top_k,
                              .top_p = o->top_p,
                              .seed = (uint64_t)o->seed,
                              .device = o->device,
                              .dtype = o->dtype };
    kd_generate_report report;
    record r = { .json = o->json };
    if (list) {
        KD_TRY(parse_ids(ids, &g.id_count, o->ids));
        g.ids = ids;
    }
    const kd_status status = kd_generate(&report, &g, visit, &r);
    if (status == KD_OK && o->json) print_json(&r, &report);
    /* Elsewhere the answer is the text, byte for byte. */
    if (!o->json && isatty(STDOUT_FILENO)) printf("\n");
    free(r.ids);
    free(r.text);
    KD_TRY(status);
    kd_log(KD_LOG_INFO,
           "generate  %lld tokens read in %.2f s, %lld made in %.2f s (%.1f per s), %s",
           (long long)report.prompt_tokens, report.prompt_seconds, (long long)report.tokens,
           report.seconds, report.seconds > 0 ? (double)report.tokens / report.seconds : 0.0,
           report.ended ? "ended by the model" : "ended by --tokens");
    return KD_OK;
}

static kd_status generate(const kd_args *args, const void *given)
{
    const options *o = given;
    (void)args;
    int32_t *ids = malloc((strlen(o->ids) + 1) * sizeof *ids);
    if (!ids) return kd_fail(KD_ENOMEM, "generate: no memory");
    const kd_status status = run(o, ids);
    free(ids);
    return status;
}

kd_status cmd_generate(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 0, 0, "", false, NULL };
    options o;
    return cmd_run(&spec, &o, generate, argc, argv);
}
