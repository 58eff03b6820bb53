#include "allocation/failing.h"

#include "support/interpose.h"
#include "support/students.h"
#include "support/text_file.h"
#include "train/train.h"

#include <fcntl.h>
#include <malloc.h>
#include <omp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int kd_command(int argc, char **argv); /* main of tools/kd */

enum {
    OUTPUT_BYTES = 1 << 18,
    MAX_WORDS = 24,
    MAX_CALLS = 1 << 16,
    MAX_SITES = 1 << 12,
    AGAIN = 8,
    OUT_OF_MEMORY = 4
};

/* ---- running a verb --------------------------------------------------------------------------- */

/* Where stdout and stderr go meanwhile. */
static const char *const streams[] = { "stdout.txt", "stderr.txt" };
static int kept[2] = { -1, -1 };

static void redirect_streams(void)
{
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        const int file = open(streams[i], O_WRONLY | O_CREAT | O_TRUNC, 0666);
        kept[i] = dup(i + 1);
        cr_assert(kept[i] >= 0 && file >= 0 && dup2(file, i + 1) >= 0 && close(file) == 0);
    }
}

static void restore_streams(void)
{
    for (int i = 0; i < 2; i++) {
        if (kept[i] < 0) continue;
        (void)dup2(kept[i], i + 1);
        (void)close(kept[i]);
        kept[i] = -1;
    }
}

static char current[256]; /* what is refused now */

/* A crash says where it was. */
static void crashed(int number)
{
    restore_streams();
    fprintf(stderr, "%s: signal %d\n", current, number);
    test_heap_print_refused();
    signal(number, SIG_DFL);
    raise(number);
}

typedef struct output {
    char text[OUTPUT_BYTES];
    size_t bytes;
} output;

static void read_output(output *to, const char *path)
{
    const int fd = open(path, O_RDONLY);
    const ssize_t n = read(fd, to->text, sizeof to->text - 1);
    cr_assert(fd >= 0 && n >= 0 && close(fd) == 0, "%s", path);
    to->bytes = (size_t)n;
    to->text[n] = '\0';
}

static output out, err;

/* `line` is words with one space between. */
static int run_line(const char *line, const test_heap_fault *fault, int64_t *calls)
{
    char text[1024], *words[MAX_WORDS + 1] = { "kd" }, *rest = text;
    int count = 1;
    snprintf(text, sizeof text, "%s", line);
    while (rest && count < MAX_WORDS) words[count++] = strsep(&rest, " ");
    redirect_streams();
    cr_assert(test_heap_arm(fault));
    const int code = kd_command(count, words);
    *calls = test_heap_disarm();
    restore_streams();
    clearerr(stdout);
    read_output(&out, streams[0]);
    read_output(&err, streams[1]);
    return code;
}

/* ---- files of the scene ----------------------------------------------------------------------- */

static void write_text(const char *path, const char *text)
{
    test_ok(kd_file_write_atomic(path, text, strlen(text)));
}

static void copy_folder(const char *to, const char *from)
{
    kd_arena *arena;
    const char *const *names;
    int count;
    test_ok(kd_arena_create(&arena));
    test_ok(kd_dir_create(to));
    test_ok(kd_dir_list(&names, &count, arena, from));
    for (int i = 0; i < count; i++) {
        const char *target, *source;
        test_ok(kd_path_join(&target, arena, to, names[i]));
        test_ok(kd_path_join(&source, arena, from, names[i]));
        if (kd_dir_exists(source))
            copy_folder(target, source);
        else
            test_ok(kd_file_copy(target, source));
    }
    kd_arena_destroy(arena);
}

static const char tokenizer_json[] =
    "{\"added_tokens\": [{\"id\": 20, \"content\": \"<|endoftext|>\", \"special\": true}],"
    " \"normalizer\": {\"type\": \"NFC\"}, \"post_processor\": null,"
    " \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": "
    "true},"
    " \"decoder\": {\"type\": \"ByteLevel\"},"
    " \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"d\": 3, \"e\": 4,"
    " \"h\": 5, \"l\": 6, \"n\": 7, \"r\": 8, \"s\": 9, \"t\": 10, \"u\": 11, \".\": 12,"
    " \"\\u0120\": 13, \"te\": 14, \"ac\": 15, \"teac\": 16, \"\\u0120teac\": 17, \"er\": 18, "
    "\"A\": 19},"
    " \"merges\": [\"t e\", \"a c\", \"te ac\", \"\\u0120 teac\", [\"e\", \"r\"]]}}";

static const char config_json[] =
    "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 8,"
    " \"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1,"
    " \"intermediate_size\": 12, \"vocab_size\": 24, \"max_position_embeddings\": 64,"
    " \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, \"hidden_act\": \"silu\","
    " \"tie_word_embeddings\": false, \"eos_token_id\": 0}";

static const char lines_json[] = "{\"text\": \"A teacher teaches a student.\"}\n\n"
                                 "{\"text\": \"tests and tests and tests\"}\n";

static const char run_yaml[] =
    "teacher: {model: teacher}\n"
    "student: {model: student, dtype: bf16, recompute: blocks}\n"
    "data: {train: [{file: lines.jsonl, weight: 1}, {file: tokens.safetensors, weight: 2}],"
    " valid: valid.safetensors, sequence: 8}\n"
    "loss: {ce: {weight: 0.1}, kl: {weight: 0.9, temperature: 2}}\n"
    "optim: {lr: 3e-3}\n"
    "batch: {samples: 2, micro: 1}\n"
    "eval: {every: 2 steps, tokens: 32}\n"
    "run: {steps: 2, out: out, log_every: 1, checkpoint: {every: 1 steps, keep: 2,"
    " keep_best: valid.kl}}\n";

/* Classifiers of samples: a loss that keeps banks, and one behind a projector. */
static const char samples_config[] =
    "{\"model_type\": \"mlp\", \"architectures\": [\"MLPForClassification\"], \"input_size\": 3,"
    " \"hidden_sizes\": [4], \"num_labels\": 3, \"hidden_act\": \"relu\"}";

static const char samples_yaml[] =
    "teacher: {model: judge}\n"
    "student: {model: pupil, dtype: bf16}\n"
    "data: {train: samples.safetensors, valid: samples.safetensors}\n"
    "loss: {ce: {}, crd: {dimension: 2, negatives: 3}, hint: {projector: mlp}}\n"
    "optim: {lr: 3e-3}\n"
    "batch: {samples: 4, micro: 1}\n"
    "eval: {every: 2 steps}\n"
    "run: {steps: 2, out: out, log_every: 1, checkpoint: {every: 1 steps,"
    " keep_best: valid.accuracy}}\n";

enum { TOKENS = 80 };

static void write_tokens(const char *path, uint64_t seed)
{
    uint16_t tokens[TOKENS];
    const int64_t borders[] = { 0, TOKENS / 4, TOKENS / 2, TOKENS }, count = TOKENS, ends = 4;
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (uint16_t)(20 * kd_random_uniform(seed, 0, (uint64_t)i));
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, path));
    test_ok(kd_st_writer_declare(w, "tokens", KD_U16, 1, &count));
    test_ok(kd_st_writer_declare(w, "documents", KD_I64, 1, &ends));
    test_ok(kd_st_writer_begin(w));
    test_ok(kd_st_writer_write(w, "tokens", tokens, sizeof tokens));
    test_ok(kd_st_writer_write(w, "documents", borders, sizeof borders));
    test_ok(kd_st_writer_close(w));
}

/* Also student and teacher of a loss over features, and the parameters of its projector. */
static void write_samples(const char *path)
{
    static const char *const names[] = { "inputs", "student", "teacher", "projector.0.weight",
                                         "projector.0.bias" };
    const int64_t shapes[][2] = { { 6, 3 }, { 6, 3 }, { 6, 2 }, { 2, 3 }, { 2, 0 } }, six = 6;
    const uint8_t labels[6] = { 0, 1, 2, 0, 1, 2 };
    float numbers[18];
    kd_st_writer *w;
    for (int i = 0; i < 18; i++) numbers[i] = (float)kd_random_normal(9, 0, (uint64_t)i);
    test_ok(kd_st_writer_create(&w, path));
    test_ok(kd_st_writer_declare(w, "labels", KD_U8, 1, &six));
    for (int i = 0; i < KD_COUNT(names); i++)
        test_ok(kd_st_writer_declare(w, names[i], KD_F32, shapes[i][1] ? 2 : 1, shapes[i]));
    test_ok(kd_st_writer_begin(w));
    test_ok(kd_st_writer_write(w, "labels", labels, sizeof labels));
    for (int i = 0; i < KD_COUNT(names); i++)
        test_ok(kd_st_writer_write(w, names[i], numbers,
                                   (size_t)(shapes[i][0] * kd_max_i64(shapes[i][1], 1)) *
                                       sizeof *numbers));
    test_ok(kd_st_writer_close(w));
}

static void write_llmc(const char *path)
{
    int32_t file[256 + TOKENS / 2] = { 20240520, 1, TOKENS };
    for (int i = 0; i < TOKENS; i++) ((uint16_t *)(file + 256))[i] = (uint16_t)(i % 20);
    test_ok(kd_file_write_atomic(path, file, sizeof file));
}

/* Two documents. */
static void write_megatron(const char *bin, const char *idx)
{
    uint16_t tokens[TOKENS];
    char index[34 + 2 * 4 + 2 * 8 + 3 * 8] = "MMIDIDX";
    const int64_t version = 1, sequences = 2, borders = 3, pointers[] = { 0, TOKENS },
                  documents[] = { 0, 1, 2 };
    const int32_t lengths[] = { TOKENS / 2, TOKENS / 2 };
    for (int i = 0; i < TOKENS; i++) tokens[i] = (uint16_t)(i % 20);
    memcpy(index + 9, &version, 8);
    index[17] = 8; /* uint16 */
    memcpy(index + 18, &sequences, 8);
    memcpy(index + 26, &borders, 8);
    memcpy(index + 34, lengths, sizeof lengths);
    memcpy(index + 42, pointers, sizeof pointers);
    memcpy(index + 58, documents, sizeof documents);
    test_ok(kd_file_write_atomic(bin, tokens, sizeof tokens));
    test_ok(kd_file_write_atomic(idx, index, sizeof index));
}

static void write_logits(const char *path)
{
    const int64_t shape[2] = { 3, 5 };
    float logits[15];
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, path));
    test_ok(kd_st_writer_declare(w, "student", KD_F32, 2, shape));
    test_ok(kd_st_writer_declare(w, "teacher", KD_F32, 2, shape));
    test_ok(kd_st_writer_begin(w));
    for (int t = 0; t < 2; t++) {
        for (int i = 0; i < 15; i++)
            logits[i] = (float)kd_random_normal(7, (uint64_t)t, (uint64_t)i);
        test_ok(kd_st_writer_write(w, t ? "teacher" : "student", logits, sizeof logits));
    }
    test_ok(kd_st_writer_close(w));
}

static void prepare(const char *folder)
{
    static char buffer[BUFSIZ];
    const test_heap_fault never = { .at = -1 };
    int64_t calls;
    cr_assert(chdir(folder) == 0 && setenv("OMP_WAIT_POLICY", "passive", 1) == 0);
    cr_assert(setvbuf(stdout, buffer, _IOFBF, sizeof buffer) == 0);
    mallopt(M_MMAP_THRESHOLD, 1 << 28); /* thousands of runs: no mapping for each large block */
    mallopt(M_TRIM_THRESHOLD, 1 << 28);
    signal(SIGSEGV, crashed);
    signal(SIGABRT, crashed);
    json_object_seed(1);
    omp_set_num_threads(1); /* the same calls in the same order every time */
    test_ok(kd_dir_create("tokenizer"));
    write_text("tokenizer/tokenizer.json", tokenizer_json);
    write_text("tokenizer/tokenizer_config.json", "{\"eos_token\": \"<|endoftext|>\"}");
    write_text("config.json", config_json);
    write_text("lines.jsonl", lines_json);
    write_text("run.yaml", run_yaml);
    write_text("samples.json", samples_config);
    write_text("samples.yaml", samples_yaml);
    write_samples("samples.safetensors");
    write_tokens("tokens.safetensors", 1);
    write_tokens("valid.safetensors", 2);
    write_logits("logits.safetensors");
    write_llmc("tokens.bin");
    write_megatron("megatron.bin", "megatron.idx");
    cr_assert(run_line("init --config config.json --tokenizer tokenizer --out teacher", &never,
                       &calls) == 0,
              "%s", err.text);
    cr_assert(run_line("init --teacher teacher --layers 1 --out student", &never, &calls) == 0);
    cr_assert(run_line("init --config samples.json --out judge", &never, &calls) == 0, "%s",
              err.text);
    cr_assert(run_line("init --config samples.json --seed 2 --out pupil", &never, &calls) == 0);
    cr_assert(run_line("train run.yaml --run.steps=1 --run.out=begun", &never, &calls) == 0, "%s",
              err.text);
    /* As if it had been stopped after its checkpoint. */
    static const char *const finished[] = { "begun/config.json", "begun/model.safetensors" };
    for (int i = 0; i < 2; i++) cr_assert(unlink(finished[i]) == 0, "%s", finished[i]);
}

/* ---- cases ------------------------------------------------------------------------------------ */

typedef struct scene {
    test_failing_part part;
    bool every; /* call of it, in the slow test */
    const char *line;
    void (*reset)(void);          /* what the line writes is as before */
    const char *last;             /* file that the line makes when all else is done; or NULL */
    const char *file;             /* that the line makes, the same bytes every time; NULL: none */
    bool same_output;             /* on stdout, every time */
    void (*check)(bool for_good); /* after a failure */
} scene;

static void reset_fresh(void) { test_ok(kd_dir_remove("out")); }

static void reset_made(void) { test_ok(kd_checkpoint_discard("made")); }

static void reset_begun(void)
{
    reset_fresh();
    copy_folder("out", "begun");
}

/* ---- what must hold --------------------------------------------------------------------------- */

static int open_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 256; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

typedef struct reference {
    kd_hash file;
    char output[OUTPUT_BYTES];
    size_t bytes;
} reference;

static kd_hash hash_of(const scene *s)
{
    kd_hash hash = { "" };
    if (s->file) test_ok(kd_hash_file(&hash, s->file));
    return hash;
}

static int defects, plans; /* messages with what the run needs and what would fit */
static int64_t tried;

/* Says what was wrong; the first are enough. */
static void KD_PRINTF(1, 2) defect(const char *fmt, ...)
{
    va_list args;
    if (defects++ >= 20) return;
    fprintf(stderr, "%s: ", current);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\n");
    test_heap_print_refused();
}

/* As the next start finds the folder: every checkpoint is whole, and the newest is at least `least`.  What
 * was being written is gone at once, or where no memory was left even for that, with the next start. */
static void expect_checkpoints(bool for_good, int64_t least)
{
    kd_arena *arena;
    const char *const *names, *newest;
    int count;
    if (!kd_dir_exists("out")) return;
    (void)test_log();
    if (!for_good && test_count("out", ".tmp") > 0) defect("half a checkpoint is left");
    test_ok(kd_output_sweep("out"));
    test_ok(kd_arena_create(&arena));
    if (kd_checkpoint_latest(&newest, arena, "out") != KD_OK) defect("then: %s", kd_last_error());
    if ((newest ? kd_checkpoint_step(newest) : 0) < least)
        defect("the checkpoint of before is gone");
    test_ok(kd_dir_list(&names, &count, arena, "out"));
    for (int i = 0; i < count; i++) {
        if (strncmp(names[i], ".tmp", 4) == 0) defect("out/%s is left", names[i]);
        if (strncmp(names[i], "checkpoint-", 11) == 0 &&
            kd_checkpoint_verify(test_path("out", names[i])) != KD_OK)
            defect("then: %s", kd_last_error());
    }
    kd_arena_destroy(arena);
    kd_log_redirect(NULL, NULL);
}

static void check_fresh(bool for_good) { expect_checkpoints(for_good, 0); }
static void check_begun(bool for_good) { expect_checkpoints(for_good, 1); }

/* Where an allocation was not needed after all. */
static void expect_same(const scene *s, const reference *r)
{
    const kd_hash hash = hash_of(s);
    if (strcmp(hash.hex, r->file.hex) != 0) defect("done, with other bytes in %s", s->file);
    if (s->same_output && (out.bytes != r->bytes || memcmp(out.text, r->output, r->bytes) != 0))
        defect("done, with another answer: %s", out.text);
}

/* "kd: what: no memory for it" */
static const char *last_message(void)
{
    const char *last = strstr(err.text, "\nkd: ");
    return last ? last + 1 : err.text;
}

static void expect_told(void)
{
    const char *last = last_message();
    if (strncmp(last, "kd: ", 4) != 0 || !strstr(last, "memory") || strlen(last) < 14)
        defect("the message is: %s", err.text);
}

/* The same command once there is memory. */
static void run_again(const scene *s, const reference *r)
{
    if (s->last && kd_file_exists(s->last)) { /* it failed to say so */
        if (strcmp(hash_of(s).hex, r->file.hex) != 0) defect("other bytes in %s", s->file);
        return;
    }
    const test_heap_fault never = { .at = -1 };
    int64_t calls;
    const int code = run_line(s->line, &never, &calls);
    if (code != 0)
        defect("then, with memory: exit code %d: %s", code, last_message());
    else
        expect_same(s, r);
}

/* One refused call. */
static void refuse(const scene *s, const reference *r, const test_heap_fault *fault)
{
    test_heap before, after;
    int64_t calls;
    if (s->reset) s->reset();
    const int descriptors = open_descriptors();
    (void)test_heap_read(&before);
    const int code = run_line(s->line, fault, &calls);
    (void)test_heap_read(&after);
    if (after.live_blocks != before.live_blocks)
        defect("leaves %lld blocks, %lld bytes",
               (long long)(after.live_blocks - before.live_blocks),
               (long long)(after.live_bytes - before.live_bytes));
    if (open_descriptors() != descriptors)
        defect("leaves %d files open", open_descriptors() - descriptors);
    plans += strstr(last_message(), "the run needs") != NULL;
    if (code == OUT_OF_MEMORY)
        expect_told();
    else if (code == 0)
        expect_same(s, r);
    else
        defect("exit code %d: %s", code, last_message());
    if (code != 0 && s->check) s->check(fault->for_good);
    if (tried++ % AGAIN == 0 && code == OUT_OF_MEMORY) run_again(s, r);
}

static const scene scenes[] = {
    { TEST_FAILING_VERBS, true, "inspect --json teacher", NULL, NULL, NULL, true, NULL },
    { TEST_FAILING_VERBS, false, "inspect teacher/model.safetensors", NULL, NULL, NULL, true,
      NULL },
    { TEST_FAILING_VERBS, false, "inspect --json student/model.safetensors", NULL, NULL, NULL, true,
      NULL },
    { TEST_FAILING_VERBS, false, "inspect begun/checkpoint-000001", NULL, NULL, NULL, true, NULL },
    { TEST_FAILING_VERBS, true, "validate run.yaml", NULL, NULL, NULL, true, NULL },
    { TEST_FAILING_VERBS, false, "validate run.yaml --data.train=tokens.bin", NULL, NULL, NULL,
      true, NULL },
    { TEST_FAILING_VERBS, false, "validate run.yaml --data.train=megatron.bin", NULL, NULL, NULL,
      true, NULL },
    { TEST_FAILING_VERBS, false, "train run.yaml --print-config", NULL, NULL, NULL, true, NULL },
    { TEST_FAILING_VERBS, false, "estimate run.yaml --json --device 0.7GB", NULL, NULL, NULL, true,
      NULL },
    { TEST_FAILING_VERBS, true,
      "eval --models student --teacher teacher --data valid.safetensors --train tokens.safetensors"
      " --sequence 8 --out eval.json",
      NULL, NULL, NULL, false, NULL },
    { TEST_FAILING_VERBS, false,
      "eval --models student,teacher --data valid.safetensors --sequence 8 --json", NULL, NULL,
      NULL, false, NULL },
    { TEST_FAILING_VERBS, true, "generate --model teacher --prompt teac --tokens 3", NULL, NULL,
      NULL, true, NULL },
    { TEST_FAILING_VERBS, false,
      "generate --model teacher --ids 1,2,3 --tokens 3 --dtype bf16 --json", NULL, NULL, NULL,
      false, NULL },
    { TEST_FAILING_VERBS, true, "logits --model student --tokens valid.safetensors --out made",
      reset_made, NULL, "made", true, NULL },
    { TEST_FAILING_VERBS, true, "loss jsd --in logits.safetensors --out made", reset_made, NULL,
      "made", true, NULL },
    { TEST_FAILING_VERBS, false,
      "loss hidden_mse --projector.type linear --in samples.safetensors --out made", reset_made,
      NULL, "made", true, NULL },
    { TEST_FAILING_VERBS, false, "estimate samples.yaml --json", NULL, NULL, NULL, true, NULL },
    { TEST_FAILING_VERBS, false, "init --teacher teacher --layers 1 --out made", reset_made,
      "made/config.json", "made/model.safetensors", true, NULL },
    { TEST_FAILING_VERBS, false,
      "init --config config.json --tokenizer tokenizer --dtype bf16 --out made", reset_made,
      "made/config.json", "made/model.safetensors", true, NULL },
    { TEST_FAILING_VERBS, false, "report begun --out made", reset_made, NULL, "made", true, NULL },
    { TEST_FAILING_VERBS, false, "list --json", NULL, NULL, NULL, true, NULL },
    { TEST_FAILING_VERBS, false, "list losses", NULL, NULL, NULL, true, NULL },
    { TEST_FAILING_VERBS, false, "env", NULL, NULL, NULL, false, NULL },
    { TEST_FAILING_TRAIN, true, "train run.yaml", reset_fresh, "out/config.json",
      "out/model.safetensors", true, check_fresh },
    { TEST_FAILING_TRAIN, false, "train samples.yaml", reset_fresh, "out/config.json",
      "out/model.safetensors", true, check_fresh },
    { TEST_FAILING_RESUME, true, "train run.yaml", reset_begun, "out/config.json",
      "out/model.safetensors", true, check_begun },
};

/* ---- one call after the other ----------------------------------------------------------------- */

static uint64_t sites[MAX_CALLS], seen[MAX_SITES];
static int seen_count;

static bool is_new(uint64_t site)
{
    for (int i = 0; i < seen_count; i++)
        if (seen[i] == site) return false;
    cr_assert(seen_count < MAX_SITES);
    seen[seen_count++] = site;
    return true;
}

/* Runs it without a fault, a second time when what is kept for good has been taken; says what it makes
 * and how many calls there are to be refused. */
static int64_t learn(const scene *s, reference *r)
{
    test_heap before, after;
    const test_heap_fault none = { .at = -1, .sites = sites, .room = MAX_CALLS };
    int64_t calls = 0;
    for (int run = 0; run < 2; run++) {
        if (s->reset) s->reset();
        (void)test_heap_read(&before);
        cr_assert(run_line(s->line, &none, &calls) == 0, "kd %s: %s", s->line, err.text);
        (void)test_heap_read(&after);
    }
    cr_assert(before.live_blocks == after.live_blocks, "kd %s: leaves %lld blocks", s->line,
              (long long)(after.live_blocks - before.live_blocks));
    cr_assert(out.bytes < sizeof r->output && calls > 0 && calls < MAX_CALLS, "kd %s", s->line);
    r->file = hash_of(s);
    memcpy(r->output, out.text, r->bytes = out.bytes);
    return calls;
}

static void run_scene(const scene *s, bool every)
{
    static reference r;
    const double start = kd_clock();
    const int64_t calls = learn(s, &r);
    tried = 0;
    for (int64_t at = 0; at < calls; at++) {
        if (!every && !is_new(sites[at])) continue;
        for (int good = 0; good <= !every; good++) {
            snprintf(current, sizeof current, "kd %s, call %lld of %lld%s", s->line, (long long)at,
                     (long long)calls, good ? " and all after" : "");
            refuse(s, &r, &(test_heap_fault){ .at = at, .for_good = good });
        }
    }
    if (getenv("KD_TEST_FIGURES"))
        fprintf(stderr, "kd %s: %lld calls, %lld times refused, %.1f s\n", s->line,
                (long long)calls, (long long)tried, kd_clock() - start);
}

void test_failing(test_failing_part part, bool every)
{
    static char folder[64];
    const test_heap_fault none = { .at = -1 };
    if (!test_heap_arm(&none)) cr_skip_test("skipped: no heap here can be made to refuse");
    (void)test_heap_disarm();
    snprintf(folder, sizeof folder, "%s", test_folder());
    prepare(folder);
    for (int i = 0; i < KD_COUNT(scenes); i++)
        if (scenes[i].part == part && (scenes[i].every || !every)) run_scene(&scenes[i], every);
    cr_assert(defects == 0, "%d defects", defects);
    cr_assert(part != TEST_FAILING_TRAIN || plans > 10, "%d messages have the plan", plans);
    cr_assert(chdir("/") == 0);
    test_ok(kd_dir_remove(folder));
}
