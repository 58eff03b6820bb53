/* The built program on models: their logits, and a student's whole way from a teacher's layers to a
 * report. */
#include "cli/small_run.h"

#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <sys/stat.h>

/* ---- models ----------------------------------------------------------------------------------- */

static const char *const models[] = { "gpt2",    "llama_llama3", "llama_tied",
                                      "mistral", "qwen2",        "qwen3" };

/* Sums along a row's way, each rounded to f32: Q, K and V, scores, output, MLP up and down of every
 * layer, then the head.  What is summed for a logit near 0 is as large as for the row's largest. */
static double row_tolerance(const double *row, const kd_config *c)
{
    double largest = 1.0;
    for (int64_t i = 0; i < c->vocabulary; i++) largest = fmax(largest, fabs(row[i]));
    return FLT_EPSILON * largest * sqrt((double)(c->layers * (4 * c->width + c->ffn) + c->width));
}

static void check_logits(const char *model, const int32_t *tokens, const double *want, int64_t rows,
                         const kd_config *config)
{
    const column input = { "tokens", KD_I32, { rows }, tokens };
    int64_t n;
    write_file("tokens.safetensors", &input, 1);
    const result r = run(
        "logits --model golden/models/%s --tokens tokens.safetensors --out out.safetensors", model);
    expect_code(r, 0, model);
    cr_expect(!*r.out, "%s: stdout is \"%s\"", model, r.out);
    float *got = read_tensor(&n, "out.safetensors", "logits", KD_F32);
    cr_assert_eq(n, rows * config->vocabulary, "%s: %lld logits", model, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = i / config->vocabulary, class = i % config->vocabulary;
        const double most = row_tolerance(want + row * config->vocabulary, config);
        cr_expect(fabs((double)got[i] - want[i]) <= most,
                  "%s, row %lld, class %lld: %.9g, expected %.9g within %.2g", model,
                  (long long)row, (long long)class, (double)got[i], want[i], most);
    }
    free(got);
}

Test(run, logits_are_those_of_transformers, .init = setup, .fini = teardown)
{
    kd_arena *arena;
    cr_assert_eq(kd_arena_create(&arena), KD_OK);
    for (int m = 0; m < KD_COUNT(models); m++) {
        char path[128], folder[64];
        kd_config config;
        int64_t n, borders, logits;
        snprintf(folder, sizeof folder, "golden/models/%s", models[m]);
        snprintf(path, sizeof path, "%s/golden.safetensors", folder);
        cr_assert_eq(kd_config_read(&config, arena, folder), KD_OK, "%s", kd_last_error());
        int32_t *tokens = read_tensor(&n, path, "tokens", KD_I32);
        int64_t *documents = read_tensor(&borders, path, "documents", KD_I64);
        float *golden = read_tensor(&logits, path, "logits", KD_F32);
        double *want = malloc((size_t)logits * sizeof *want);
        for (int64_t i = 0; i < logits; i++) want[i] = golden[i];
        for (int64_t d = 0; d + 1 < borders; d++)
            check_logits(models[m], tokens + documents[d], want + documents[d] * config.vocabulary,
                         documents[d + 1] - documents[d], &config);
        free(tokens);
        free(documents);
        free(golden);
        free(want);
        json_decref(config.raw);
    }
    kd_arena_destroy(arena);
}

Test(run, init_makes_models_that_open, .init = setup, .fini = teardown)
{
    static const struct {
        const char *options, *kept;
    } cases[] = { { "--teacher golden/models/qwen2 --keep 0-1", "layers 0,1 of 2" },
                  { "--teacher golden/models/qwen2 --layers 2", "layers 0,1 of 2" },
                  { "--teacher golden/models/qwen2 --layers 1", "layers 0 of 2" },
                  { "--teacher golden/models/qwen2 --keep 1", "layers 1 of 2" },
                  { "--config golden/models/qwen2/config.json --dtype bf16", "Qwen2ForCausalLM" },
                  { "--config golden/models/gpt2/config.json --seed 3", "GPT2LMHeadModel" } };
    for (int i = 0; i < KD_COUNT(cases); i++) {
        char out[16];
        snprintf(out, sizeof out, "s%d", i);
        result r = run("init --out %s %s", out, cases[i].options);
        expect_code(r, 0, cases[i].options);
        cr_expect(strstr(r.out, cases[i].kept), "kd init %s: \"%s\"", cases[i].options, r.out);
        r = run("inspect %s", out);
        expect_code(r, 0, out);
        cr_expect(strstr(r.out, "1 file"), "%s: \"%s\"", out, r.out);
        r = run("init --out %s %s", out, cases[i].options);
        expect_code(r, 3, cases[i].options);
    }
    /* All of a teacher's layers are the teacher, byte for byte. */
    int64_t n, m;
    float *a = read_tensor(&n, "s0/model.safetensors", "model.layers.1.mlp.up_proj.weight", KD_F32);
    float *b = read_tensor(&m, "golden/models/qwen2/model.safetensors",
                           "model.layers.1.mlp.up_proj.weight", KD_F32);
    cr_expect(n == m && memcmp(a, b, (size_t)n * sizeof *a) == 0);
    free(a);
    free(b);
}

/* Seven layers of a model that is otherwise as small as can be. */
static const char seven_json[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": "
    "\"silu\", "
    "\"hidden_size\": 4, \"intermediate_size\": 4, \"num_attention_heads\": 1, "
    "\"num_key_value_heads\": 1, \"num_hidden_layers\": 7, \"vocab_size\": 5, "
    "\"max_position_embeddings\": 8, \"rms_norm_eps\": 1e-5, \"rope_theta\": 1e4, "
    "\"tie_word_embeddings\": true}";

Test(run, init_chooses_layers, .init = setup, .fini = teardown)
{
    static const char *const kept[] = { "0",         "0,6",         "0,3,6",        "0,2,4,6",
                                        "0,1,3,5,6", "0,1,2,4,5,6", "0,1,2,3,4,5,6" };
    write_text("seven.json", seven_json);
    expect_code(run("init --config seven.json --out seven"), 0, "init");
    for (int n = 1; n <= KD_COUNT(kept); n++) {
        char wanted[64];
        const result r = run("init --teacher seven --layers %d --out out%d", n, n);
        expect_code(r, 0, "init --layers");
        snprintf(wanted, sizeof wanted, "; layers %s of 7\n", kept[n - 1]);
        cr_expect(strstr(r.out, wanted), "%d layers: \"%s\" lacks \"%s\"", n, r.out, wanted);
    }
}

/* ---- a run ------------------------------------------------------------------------------------ */

static double number_at(const json_t *row, const char *key, const char *part)
{
    const json_t *value = json_object_get(row, key);
    if (part) value = json_object_get(value, part);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* The student got nearer to its teacher; a copy of the teacher is the teacher. */
static void check_report(const json_t *report)
{
    const json_t *rows = json_object_get(report, "models");
    cr_assert_eq(json_array_size(rows), 4);
    const json_t *teacher = json_array_get(rows, 0), *before = json_array_get(rows, 1);
    const json_t *after = json_array_get(rows, 2), *copy = json_array_get(rows, 3);
    cr_expect(json_is_true(json_object_get(teacher, "teacher")));
    cr_expect_str_eq(json_string_value(json_object_get(after, "name")), "kd");
    const double gap = number_at(after, "kl", "mean") - number_at(before, "kl", "mean");
    cr_expect(gap < -2.0 * number_at(before, "kl", "error"), "KL went by %g", gap);
    cr_expect(number_at(copy, "kl", "mean") == 0.0 && number_at(copy, "same_top", "mean") == 1.0);
    cr_expect(number_at(copy, "nll", NULL) == number_at(teacher, "nll", NULL));
    cr_expect(number_at(copy, "retained", NULL) == 1.0);
    cr_expect(isnan(number_at(teacher, "kl", "mean")));
    cr_expect(number_at(report, "unigram_ppl", NULL) < VOCABULARY + 1.0);
    cr_expect_eq(number_at(report, "documents", NULL), DOCUMENTS);
    cr_expect_eq(number_at(report, "tokens", NULL), TOKENS - DOCUMENTS);
}

Test(run, distils_a_student_and_reports_it, .init = setup, .fini = teardown)
{
    prepare_run();
    result r = run("validate run.yaml");
    expect_code(r, 0, "validate");
    cr_expect(strstr(r.out, "run.yaml: valid"), "%s", r.out);
    r = run(
        "train run.yaml --print-config --loss.kl.temperature=4 --no-data.shuffle --run.out=1.50 "
        "--data.valid='\"\\x85\\u2028\"'");
    cr_expect(strstr(r.out, "\"\\u0085\\u2028\""), "YAML folds these: %s", r.out);
    expect_code(r, 0, "train --print-config");
    json_t *config = answer(&r, "--print-config");
    const json_t *kl = json_object_get(json_object_get(config, "loss"), "kl");
    cr_expect(number_at(kl, "temperature", NULL) == 4.0);
    const char *out = json_string_value(json_object_get(json_object_get(config, "run"), "out"));
    cr_expect(out && strcmp(out, "1.50") == 0, "run.out: a folder's name became %s", out);
    json_decref(config);

    static const char *const bad[][2] = {
        { "--loss.kl.temprature=4", "--loss.kl.temprature: unknown option; nearest: temperature" },
        { "--run.steps=x", "--run.steps: expected int" },
        { "--lss.kl=1", "unknown section; nearest: loss" },
        { "--steps=4", "--steps: unknown option" },
        { "--loss='{lr: {type: kl}}'", "\"lr\" is no name for a term: metrics.jsonl has that key" },
        { "--loss='{a\"b: {type: kl}}'", "a term's name has up to 32 letters, digits, _ - ." },
        { "--loss.h='{type: hidden_mse, layers: [[0, 99]]}'",
          "loss.h.layers: found 99, but teacher (Qwen2ForCausalLM) offers logits, hidden[0.." },
        { "--loss.h='{type: hidden_mse, layers: middle}'",
          "loss.h.layers: found \"middle\", expected last, uniform, or pairs [student's, "
          "teacher's]" },
        { "--loss.h='{type: hidden_mse, layers: [[1, x]]}'", "found \"x\", expected the number" },
        { "--loss.h='{type: hidden_mse, temperature: 2}'", "loss.h.temperature: unknown option" },
        { "--loss.r='{type: rkd_distance}'", "loss.r: rkd_distance needs features of samples; "
                                             "student (Qwen2ForCausalLM) offers logits" },
        { "--loss.a='{type: attention_kl, projector: linear}'",
          "attention_kl reads no rows that a projector could widen" },
        { "--loss.h='{type: cosine, projector: linier}'", "loss.h.projector.type: " },
        { "--loss.h='{type: cosine, projector: conv1x1}'",
          "loss.h.projector: conv1x1 reads feature maps [B, C, H, W]; student (Qwen2ForCausalLM) "
          "offers logits, hidden[0.." },
        { "--loss.h='{type: hidden_msee}'", "nearest: hidden_mse" },
    };
    for (int i = 0; i < KD_COUNT(bad); i++) {
        r = run("train run.yaml %s", bad[i][0]);
        expect_code(r, 2, bad[i][0]);
        cr_expect(strstr(r.err, bad[i][1]), "%s: \"%s\"", bad[i][0], r.err);
    }
    r = run("train run.yaml");
    expect_code(r, 0, "train");
    cr_expect(!*r.out, "train: stdout is \"%s\"", r.out);
    r = run("inspect out/checkpoint-000012");
    expect_code(r, 0, "inspect");
    cr_expect(strstr(r.out, "every file is as it was written"), "%s", r.out);
    r = run("train run.yaml");
    expect_code(r, 3, "train again");

    r = run("eval --teacher golden/models/qwen2 --models student,out,golden/models/qwen2 "
            "--names before,kd,copy --data valid.safetensors --train train.safetensors "
            "--sequence 32 --json");
    expect_code(r, 0, "eval");
    json_t *report = answer(&r, "eval");
    check_report(report);
    json_decref(report);
    r = run("eval --teacher golden/models/qwen2 --models student,out --data valid.safetensors "
            "--sequence 32");
    expect_code(r, 0, "eval");
    cr_expect(strstr(r.out, "out - student: KL -") && strstr(r.out, "of 12 documents better"), "%s",
              r.out);
}

/* A fresh model with a tokenizer, which makes ids of text and knows where documents begin. */
Test(run, trains_on_text_and_shards, .init = setup, .fini = teardown)
{
    static const int32_t shard[] = { 20240520, 1, 48 };
    json_t *config;
    cr_assert_eq(kd_json_read(&config, "golden/models/llama_tied/config.json"), KD_OK);
    (void)json_object_set_new(config, "vocab_size", json_integer(2000));
    cr_assert_eq(kd_json_write("config.json", config), KD_OK);
    json_decref(config);
    expect_code(run("init --config config.json --tokenizer golden/bpe/gpt2 --out model"), 0,
                "init");

    FILE *text = fopen("train.jsonl", "wb");
    for (int i = 0; i < 40; i++)
        fprintf(text, "{\"text\": \"Line %d: the student's logits follow.\", \"id\": %d}\n", i, i);
    cr_assert(text && fclose(text) == 0);
    for (int k = 0; k < 2; k++) {
        unsigned char bytes[1024 + 96] = { 0 };
        memcpy(bytes, shard, sizeof shard);
        for (int i = 0; i < 48; i++) bytes[1024 + 2 * i] = (unsigned char)(i % 8 ? 40 + i + k : 0);
        char path[32];
        snprintf(path, sizeof path, "valid_%d.bin", k);
        cr_assert_eq(kd_file_write_atomic(path, bytes, sizeof bytes), KD_OK);
    }
    write_text("run.yaml", "student: {model: model}\n"
                           "data: {train: train.jsonl, valid: valid_*.bin, sequence: 16}\n"
                           "loss: {ce: {weight: 1}}\n"
                           "optim: {lr: 1e-3}\nbatch: {samples: 4}\n"
                           "run: {epochs: 1, out: out}\n");
    result r = run("train run.yaml");
    expect_code(r, 0, "train");
    cr_expect(strstr(r.err, "702 tokens, 40 documents, 94.3 %"), "%s", r.err);
    r = run(
        "eval --models model,out --data 'valid_*.bin' --train train.jsonl --sequence 16 --json");
    expect_code(r, 0, "eval");
    json_t *report = answer(&r, "eval");
    cr_expect_eq(number_at(report, "documents", NULL), 12);
    json_decref(report);

    text = fopen("train.jsonl", "ab");
    cr_assert(text && fputs("{\"messages\": []}\n", text) > 0 && fclose(text) == 0);
    r = run("train run.yaml --run.out=other");
    expect_code(r, 3, "train on messages");
    cr_expect(strstr(r.err, "train.jsonl:41 (byte ") && strstr(r.err, "tokenize_jsonl.py"), "%s",
              r.err);
}

Test(run, estimate_plans_from_configurations_alone, .init = setup, .fini = teardown)
{
    /* Folders with a config.json and nothing else; no data either. */
    cr_assert(mkdir("t", 0777) == 0 && mkdir("student", 0777) == 0);
    cr_assert_eq(kd_file_copy("t/config.json", "golden/configs/SmolLM2-135M.json"), KD_OK);
    cr_assert_eq(kd_file_copy("student/config.json", "golden/configs/SmolLM2-135M.json"), KD_OK);
    write_text("run.yaml", run_yaml);
    const char *line = "run.yaml --teacher.model t --batch.micro=4 --device";
    result r = run("estimate %s h100-80g --json", line);
    expect_code(r, 0, "estimate");
    json_t *e = answer(&r, "estimate");
    cr_expect_eq(number_at(e, "student_parameters", NULL), 134515008);
    /* f32 weights, gradients and two moments, padded at each parameter. */
    cr_expect(number_at(e, "student_bytes", NULL) / 134515008.0 - 16.0 < 0.01);
    cr_expect(number_at(e, "student_bytes", NULL) >= 16.0 * 134515008.0);
    cr_expect(number_at(e, "largest_micro", NULL) >= 4.0 &&
              json_is_true(json_object_get(e, "fits")));
    const double peak = number_at(e, "peak_bytes", NULL);
    const double share = number_at(e, "usable_bytes", NULL) / number_at(e, "device_bytes", NULL);
    json_decref(e);
    r = run("estimate %s 2GB", line);
    expect_code(r, 4, "estimate");
    cr_expect(strstr(r.out, "does not fit") && strstr(r.err, "does not fit"), "%s", r.out);
    /* The border is where the plan says. */
    r = run("estimate %s %.9fGB", line, (peak + 1.0) / share / 1e9);
    expect_code(r, 0, "estimate");
    r = run("estimate %s %.9fGB", line, (peak - 1e6) / share / 1e9);
    expect_code(r, 4, "estimate");
    cr_expect(strstr(r.err, "the largest batch.micro is 3"), "%s", r.err);
    r = run("estimate %s h100", line);
    expect_code(r, 2, "estimate");
}

/* A byte for each weight of the matrices in inner blocks and four for each row, two bytes elsewhere. */
Test(run, takes_an_e4m3_teacher, .init = setup, .fini = teardown)
{
    prepare_run();
    const char *line = "train run.yaml --run.device=cpu --run.steps=2";
    result r = run("%s --teacher.dtype=f8_e4m3 --student.dtype=bf16", line);
    expect_code(r, 0, "train");
    r = run("%s --run.out=no --student.dtype=f8_e4m3", line);
    expect_code(r, 2, "train in e4m3");
    cr_expect(strstr(r.err, "student: dtype f8_e4m3 is for frozen models"), "%s", r.err);

    cr_assert_eq(mkdir("t", 0777), 0);
    cr_assert_eq(kd_file_copy("t/config.json", "golden/configs/SmolLM2-135M.json"), KD_OK);
    r = run("estimate run.yaml --teacher.model=t --teacher.dtype=f8_e4m3 --device h100-80g --json");
    expect_code(r, 0, "estimate");
    json_t *e = answer(&r, "estimate");
    const double matrices = 28 * (576.0 * (960 + 576 + 3 * 1536)), all = 134515008;
    const double scales = 28 * (4.0 * (960 + 576 + 2 * 1536 + 576));
    const double bytes = 2 * all - matrices + scales;
    const double found = number_at(e, "teacher_bytes", NULL);
    cr_expect(found >= bytes && found < 1.001 * bytes, "teacher: %g bytes, expected %g", found,
              bytes);
    json_decref(e);
}

/* Starts kd without a shell, so that the signal reaches it. */
static pid_t start_train(const char *steps)
{
    const pid_t child = fork();
    if (child != 0) return child;
    const int log = open("train.txt", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    (void)dup2(log, STDERR_FILENO);
    execl(KD_COMMAND, "kd", "train", "run.yaml", steps, (char *)NULL);
    _exit(127);
}

Test(run, a_signal_ends_train_with_a_checkpoint_and_75, .init = setup, .fini = teardown)
{
    prepare_run();
    const pid_t child = start_train("--run.steps=100000");
    cr_assert(child > 0);
    struct stat metrics = { 0 };
    for (int i = 0; i < 600 && metrics.st_size == 0; i++) {
        usleep(50000);
        (void)stat("out/metrics.jsonl", &metrics);
    }
    cr_assert(metrics.st_size > 0, "no step was done in 30 s");
    cr_assert(kill(child, SIGTERM) == 0);
    int status;
    cr_assert(waitpid(child, &status, 0) == child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 75, "status %d", status);
    cr_expect(!kd_file_exists("out/config.json"), "a stopped run is no finished model");
    char *log = NULL;
    cr_expect(strstr(slurp(&log, "train.txt"), "  stopping: out/checkpoint-") &&
                  strstr(log, " written in ") && strstr(log, "kd: stopped at step ") &&
                  strstr(log, " of 100000; the same command goes on from here (exit 75)\n"),
              "%s", log);
    free(log);
    const result r = run("inspect out/$(ls out | grep checkpoint-)");
    expect_code(r, 0, "inspect");
    cr_expect(strstr(r.out, "every file is as it was written"), "%s", r.out);
}

/* What a person copies first: the shipped run files, and what --print-config gives back. */
Test(run, examples_are_understood, .init = setup, .fini = teardown)
{
    static const char *const examples[] = { "qwen-0.5b", "smollm2" };
    for (int i = 0; i < KD_COUNT(examples); i++) {
        result r =
            run("train %s/../../tools/examples/%s.yaml --print-config", KD_GOLDEN, examples[i]);
        expect_code(r, 0, examples[i]);
        write_text("printed.yaml", r.out);
        char *first = strdup(r.out);
        r = run("train printed.yaml --print-config");
        expect_code(r, 0, "what --print-config printed");
        cr_expect_str_eq(r.out, first, "%s", examples[i]);
        free(first);
    }
    const result r = run("train printed.yaml --print-config --eval.metrics=[kl,accuracy]");
    expect_code(r, 2, "an unknown metric");
    cr_expect(strstr(r.err, "eval.metrics: found \"accuracy\", expected kl, ppl or same_top"), "%s",
              r.err);
}

Test(run, one_too_big_is_refused_with_what_fits, .init = setup, .fini = teardown)
{
    prepare_run();
    /* Refused by the plan alone: nothing of that size is ever allocated. */
    const result r = run("estimate run.yaml --device 0.002GB --batch.samples=64 --batch.micro=64 "
                         "--batch.chunk=1024");
    expect_code(r, 4, "estimate of a small device");
    cr_expect(strstr(r.out, "does not fit"), "%s", r.out);
    /* At this chunk recomputing a block takes what storing it would. */
    cr_expect(strstr(r.out, "instead        dtype: bf16 of every model"), "%s", r.out);
    cr_expect(!strstr(r.out, "recompute"), "%s", r.out);
}
