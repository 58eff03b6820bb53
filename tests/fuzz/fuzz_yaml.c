/* fuzz_yaml.c - a run file: nodes, options, and the effective configuration, which gives itself. */
#include "fuzz/fuzz.h"

#include "train/run.h"

static const fuzz_slot slots[] = { { "run.yaml", FUZZ_YAML } };

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    return fuzz_mutate(data, size, most, seed, slots, KD_COUNT(slots));
}

static kd_status read_run(kd_run **run, const char *name)
{
    fuzz_ok(kd_run_create(run));
    fuzz_begin();
    const kd_status status = kd_run_file(*run, fuzz_path(name));
    return status == KD_OK ? kd_run_parse(*run) : status;
}

/* What is worked out of texts and numbers that hang together. */
static void check_values(const kd_run *run)
{
    const char *const intervals[] = { run->checkpoint.every, run->eval.every };
    int64_t steps = 0, samples = 0;
    double seconds = 0, lr = 0;
    fuzz_begin();
    if (fuzz_accepted(kd_run_length(&steps, &samples, run, 1000), KD_EINVAL, KD_EINVAL, NULL))
        fuzz_require(steps > 0 && samples > 0, "%lld steps", (long long)steps);
    fuzz_begin();
    if (fuzz_accepted(kd_schedule_lr(&lr, &run->optim, 7, 1000), KD_EINVAL, KD_EINVAL, "optim."))
        fuzz_require(lr >= 0 && lr <= run->optim.lr, "lr %g of %g", lr, run->optim.lr);
    for (int i = 0; i < KD_COUNT(intervals); i++) {
        fuzz_begin();
        if (!fuzz_accepted(kd_run_interval(&steps, &seconds, intervals[i], "every"), KD_EINVAL,
                           KD_EINVAL, "every"))
            continue;
        fuzz_require(steps >= 0 && seconds >= 0, "%s", intervals[i]);
        fuzz_require((strcmp(intervals[i], "never") == 0) == (steps == 0 && seconds == 0.0), "%s",
                     intervals[i]);
    }
}

static void same_text(const char *a, const char *b)
{
    fuzz_require(strcmp(a ? a : "", b ? b : "") == 0, "\"%s\" became \"%s\"", a, b);
}

static void check_again(kd_run *run)
{
    const char *text, *again;
    kd_run *other;
    fuzz_ok(kd_run_json(&text, run));
    fuzz_write("again.yaml", text, strlen(text));
    fuzz_ok(read_run(&other, "again.yaml"));
    fuzz_ok(kd_run_json(&again, other));
    same_text(text, again);
    fuzz_require(run->model_count == other->model_count, "models");
    for (int i = 0; i < run->model_count; i++)
        same_text(run->models[i].model, other->models[i].model);
    for (int i = 0; i < run->data.sources; i++) same_text(run->data.train[i], other->data.train[i]);
    same_text(run->data.valid, other->data.valid);
    same_text(run->run.out, other->run.out);
    same_text(run->batch.micro, other->batch.micro);
    kd_run_destroy(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kd_run *run;
    fuzz_write(slots[0].name, data, size);
    if (fuzz_accepted(read_run(&run, slots[0].name), KD_EINVAL, KD_EINVAL, NULL)) {
        check_values(run);
        check_again(run);
    }
    kd_run_destroy(run);
    return 0;
}
