/* small_run.h - a run that takes a second: a teacher of two layers, a student of one of them. */
#ifndef KD_TESTS_SMALL_RUN_H
#define KD_TESTS_SMALL_RUN_H

#include "cli/command.h"

enum { TOKENS = 3000, VOCABULARY = 101, DOCUMENTS = 12 };

/* A token is mostly the one before it plus 1, so that there is something to learn. */
static inline void write_corpus(const char *path, uint64_t seed)
{
    uint16_t tokens[TOKENS];
    int64_t borders[DOCUMENTS + 1];
    tokens[0] = 1;
    for (int i = 1; i < TOKENS; i++)
        tokens[i] =
            (uint16_t)((tokens[i - 1] + 1 + (int)(3 * kd_random_uniform(seed, 0, (uint64_t)i))) %
                       VOCABULARY);
    for (int d = 0; d <= DOCUMENTS; d++) borders[d] = (int64_t)d * TOKENS / DOCUMENTS;
    const column columns[] = { { "tokens", KD_U16, { TOKENS }, tokens },
                               { "documents", KD_I64, { DOCUMENTS + 1 }, borders } };
    write_file(path, columns, 2);
}

static const char run_yaml[] = "teacher: {model: golden/models/qwen2}\n"
                               "student: {model: student}\n"
                               "data: {train: train.safetensors, valid: valid.safetensors, "
                               "sequence: 32}\n"
                               "loss: {ce: {weight: 0.1}, kl: {weight: 0.9, temperature: 2}}\n"
                               "optim: {lr: 3e-3}\n"
                               "batch: {samples: 8}\n"
                               "run: {steps: 12, out: out}\n";

static inline void prepare_run(void)
{
    write_corpus("train.safetensors", 1);
    write_corpus("valid.safetensors", 2);
    write_text("run.yaml", run_yaml);
    const result r = run("init --teacher golden/models/qwen2 --layers 1 --out student");
    expect_code(r, 0, "init");
}

#endif
