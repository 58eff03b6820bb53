#include "support/students.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- students --------------------------------------------------------------------------------- */

static kd_config llama_config(int64_t vocabulary, int64_t ffn)
{
    return (kd_config){ .family = "llama",
                        .architecture = "LlamaForCausalLM",
                        .layers = 2,
                        .width = 8,
                        .heads = 2,
                        .kv_heads = 1,
                        .head_size = 4,
                        .ffn = ffn,
                        .vocabulary = vocabulary,
                        .max_positions = 16,
                        .norm = KD_NORM_RMS,
                        .norm_eps = 1e-5,
                        .position = KD_POSITION_ROPE,
                        .rope_theta = 10000,
                        .rotary_share = 1,
                        .causal = true,
                        .mlp = KD_MLP_SWIGLU,
                        .bos = -1,
                        .eos = { -1 },
                        .pad = -1 };
}

static kd_config gpt2_config(void)
{
    kd_config c = llama_config(19, 32);
    c.family = "gpt2";
    c.architecture = "GPT2LMHeadModel";
    c.layers = 1;
    c.kv_heads = c.heads;
    c.norm = KD_NORM_LAYER;
    c.position = KD_POSITION_LEARNED;
    c.qkv_bias = c.output_bias = c.mlp_bias = c.tied = true;
    c.mlp = KD_MLP_GELU_TANH;
    return c;
}

static kd_status declare_extra(void *context, kd_params *params, int block)
{
    int index;
    (void)context;
    return kd_params_declare(&index, params, "extra", KD_SHAPE(5), KD_PARAM_EXTRA, block);
}

void test_run_open(test_run *run, test_run_options options)
{
    *run = (test_run){ 0 };
    test_ok(kd_arena_create(&run->arena));
    test_ok(kd_device_open(&run->device, "cpu"));
    const kd_config configs[TEST_STUDENTS] = {
        llama_config(options.vocabulary ? options.vocabulary : 37, options.ffn ? options.ffn : 12),
        gpt2_config()
    };
    for (int i = 0; i < options.count; i++) {
        const kd_model_options model = { .label = i               ? "pupil"
                                                  : options.label ? options.label
                                                                  : "student",
                                         .dtype = options.dtype,
                                         .trainable = true,
                                         .moments = options.moments,
                                         .extend = options.extra ? declare_extra : NULL };
        test_ok(kd_model_create(&run->students[i], run->device, &configs[i], &model));
    }
    run->checkpoint = (kd_checkpoint){ .students = run->students,
                                       .student_count = options.count,
                                       .config = "{\"run\": {\"seed\": 1}}\n",
                                       .contract = "device cpu; threads 2; seed 1",
                                       .progress = { .best_step = -1, .best = INFINITY } };
}

void test_run_close(test_run *run)
{
    for (int i = 0; i < TEST_STUDENTS; i++) kd_model_close(run->students[i]);
    kd_device_close(run->device);
    kd_arena_destroy(run->arena);
}

/* Padding stays zero, as the engine keeps it. */
static void fill(const kd_slab *slab, const kd_tensor *array, uint64_t seed, uint64_t stream,
                 double low)
{
    if (!kd_present(array)) return;
    for (int i = 0; i < slab->params.count; i++) {
        const kd_param *p = &slab->params.items[i];
        const kd_tensor shape = kd_tensor_of(NULL, KD_F32, p->shape);
        for (int64_t k = 0; k < kd_tensor_elements(&shape); k++) {
            const double x = kd_random_uniform(seed, stream, (uint64_t)(p->offset + k));
            ((float *)array->data)[p->offset + k] = (float)(low + (1 - low) * x);
        }
    }
}

/* The optimizer's own update, so that bf16 weights are rounded as in training. */
static void update(const test_run *run, const kd_slab *slab)
{
    kd_stack stack = { 0 };
    kd_exec exec = { .device = run->device, .stack = &stack };
    kd_step_scalars s = { .lr = 0.01f, .bias1 = 0.1f, .bias2 = 0.001f, .clip = 1.0f };
    const kd_tensor scalars = kd_tensor_of(&s, KD_U8, KD_SHAPE(sizeof s)), none = { 0 };
    const bool masters = kd_present(&slab->masters);
    const kd_tensor *param = masters ? &slab->masters : &slab->weights;
    const kd_tensor *weights = masters ? &slab->weights : &none;
    s.verdict = KD_VERDICT_GOOD;
    if (slab->moments == 2)
        test_ok(KD_RUN(&exec, adamw, .param = param, .m = &slab->moment[0], .v = &slab->moment[1],
                       .weights = weights, .gradient = &slab->gradients, .scalars = &scalars,
                       .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .decay = 0.1f));
    else
        test_ok(KD_RUN(&exec, sgd, .param = param, .m = &slab->moment[0], .weights = weights,
                       .gradient = &slab->gradients, .scalars = &scalars,
                       .momentum = slab->moments ? 0.9f : 0.0f));
}

void test_run_fill(test_run *run, uint64_t seed, int64_t step)
{
    for (int i = 0; i < run->checkpoint.student_count; i++) {
        const kd_slab *slab = &run->students[i]->slab;
        const uint64_t stream = 8 * (uint64_t)i;
        const bool masters = kd_present(&slab->masters);
        fill(slab, masters ? &slab->masters : &slab->weights, seed, stream, -1);
        fill(slab, &slab->gradients, seed, stream + 1, -1);
        fill(slab, &slab->moment[0], seed, stream + 2, -1);
        fill(slab, &slab->moment[1], seed, stream + 3, 0);
        update(run, slab);
    }
    run->checkpoint.progress =
        (kd_progress){ .step = step,
                       .tokens = (1LL << 53) + 1, /* not a double */
                       .cursor = { .samples = 77 + step, .source_samples = { 7, 0, 70 } },
                       .best_step = step - 1,
                       .best = 0.1 + (double)step,
                       .seconds = 1.0 / 3.0,
                       .guard = { .updates = step - 2 * (step > 2),
                                  .skips = 2 * (step > 2),
                                  .in_row = step > 2,
                                  .seen = step - (step > 2) } };
    kd_guard *guard = &run->checkpoint.progress.guard;
    const int64_t values = kd_min_i64(guard->seen, KD_GUARD_WINDOW);
    for (int i = 0; i < 2 * run->checkpoint.student_count; i++)
        for (int64_t k = 0; k < values; k++)
            guard->window[i / 2][i % 2][k] = 1e30f / (float)(3 + i + 7 * k);
}

/* ---- bits ------------------------------------------------------------------------------------- */

static int arrays_of(const kd_tensor *arrays[4], const test_run *run, int student)
{
    const kd_slab *slab = &run->students[student]->slab;
    const kd_tensor *all[] = { &slab->weights, &slab->masters, &slab->moment[0], &slab->moment[1] };
    int count = 0;
    for (int i = 0; i < 4; i++)
        if (kd_present(all[i])) arrays[count++] = all[i];
    return count;
}

typedef enum visit { COUNT, COPY, COMPARE } visit;

static bool each_array(const test_run *run, visit what, unsigned char *bytes, size_t *total)
{
    bool same = true;
    *total = 0;
    for (int s = 0; s < run->checkpoint.student_count; s++) {
        const kd_tensor *arrays[4];
        const int count = arrays_of(arrays, run, s);
        for (int i = 0; i < count; i++) {
            const size_t n = kd_tensor_bytes(arrays[i]);
            if (what == COPY) memcpy(bytes + *total, arrays[i]->data, n);
            if (what == COMPARE) same &= memcmp(bytes + *total, arrays[i]->data, n) == 0;
            *total += n;
        }
    }
    return same;
}

void *test_run_copy(const test_run *run)
{
    size_t bytes;
    each_array(run, COUNT, NULL, &bytes);
    void *copy = malloc(bytes);
    cr_assert_not_null(copy);
    each_array(run, COPY, copy, &bytes);
    return copy;
}

bool test_run_equals(const test_run *run, const void *copy)
{
    size_t bytes;
    return each_array(run, COMPARE, (unsigned char *)(uintptr_t)copy, &bytes);
}

void test_run_spoil(test_run *run)
{
    for (int s = 0; s < run->checkpoint.student_count; s++) {
        const kd_slab *slab = &run->students[s]->slab;
        const kd_tensor *arrays[4];
        const int count = arrays_of(arrays, run, s);
        for (int i = 1; i < count; i++) memset(arrays[i]->data, 0xff, kd_tensor_bytes(arrays[i]));
        /* Not the padding of the weights: that is zero by contract and no file holds it. */
        for (int i = 0; i < slab->params.count; i++) {
            const kd_tensor weight = kd_slab_weight(slab, i);
            memset(weight.data, 0xff, kd_tensor_bytes(&weight));
        }
    }
}

/* ---- folders ---------------------------------------------------------------------------------- */

const char *test_folder(void)
{
    static char folder[64];
    snprintf(folder, sizeof folder, "/dev/shm/kd-checkpoint-XXXXXX");
    if (mkdtemp(folder)) return folder;
    snprintf(folder, sizeof folder, "/tmp/kd-checkpoint-XXXXXX");
    cr_assert(mkdtemp(folder) != NULL);
    return folder;
}

const char *test_path(const char *folder, const char *name)
{
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

bool test_exists(const char *folder, const char *name)
{
    struct stat info;
    return lstat(test_path(folder, name), &info) == 0;
}

int test_count(const char *folder, const char *prefix)
{
    DIR *dir = opendir(folder);
    int count = 0;
    cr_assert(dir != NULL, "%s: cannot be listed", folder);
    for (const struct dirent *entry; (entry = readdir(dir));)
        count += strncmp(entry->d_name, prefix, strlen(prefix)) == 0 &&
                 strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(dir);
    return count;
}

/* ---- log -------------------------------------------------------------------------------------- */

static void keep_line(void *context, kd_log_level level, const char *line)
{
    char *lines = context;
    const size_t used = strlen(lines);
    (void)level;
    if (used + strlen(line) + 2 < 16384) sprintf(lines + used, "%s\n", line);
}

const char *test_log(void)
{
    static char lines[16384];
    lines[0] = '\0';
    kd_log_redirect(keep_line, lines);
    return lines;
}
