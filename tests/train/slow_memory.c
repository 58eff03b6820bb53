/* Known cost: a run above a gigabyte has as much resident memory as was planned. */
#include "support/interpose.h"
#include "support/students.h"
#include "support/text_file.h"
#include "train/session.h"

#include <math.h>
#include <stdio.h>

enum { TOKENS = 4096 };

static const char *write_tokens(void)
{
    static int64_t tokens[TOKENS];
    static const int64_t borders[] = { 0, 700, 1000, 2500, TOKENS };
    for (int64_t i = 0; i < TOKENS; i++)
        tokens[i] = (int64_t)(kd_random_uniform(4, 1, (uint64_t)i) * 65536.0);
    return test_text_write("large", &(test_text){ .dtype = "U16",
                                                  .tokens = tokens,
                                                  .count = TOKENS,
                                                  .documents = borders,
                                                  .borders = KD_COUNT(borders) });
}

static const char *const large_config =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 512, "
    "\"intermediate_size\": 1024, \"num_hidden_layers\": 2, \"num_attention_heads\": 8, "
    "\"num_key_value_heads\": 2, \"vocab_size\": 100000, \"max_position_embeddings\": 512, "
    "\"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": true, \"hidden_act\": \"silu\"}";

static void make_model(const char *dir, const char *folder, uint64_t seed)
{
    const char *config = test_path(folder, "large.json");
    test_ok(kd_file_write_atomic(config, large_config, strlen(large_config)));
    test_ok(kd_init_fresh(dir, config, NULL, KD_F32, seed));
}

static kd_run *make_run(const char *folder)
{
    kd_run *run;
    char teacher[512], student[512];
    snprintf(teacher, sizeof teacher, "%s", test_path(folder, "teacher"));
    snprintf(student, sizeof student, "%s", test_path(folder, "student"));
    make_model(teacher, folder, 1);
    make_model(student, folder, 2);
    const char *const settings[][2] = { { "teacher.model", teacher },
                                        { "student.model", student },
                                        { "data.train", write_tokens() },
                                        { "data.sequence", "128" },
                                        { "loss.alpha", "0.6" },
                                        { "optim.lr", "1e-3" },
                                        { "batch.samples", "4" },
                                        { "batch.micro", "2" },
                                        { "run.steps", "2" },
                                        { "run.device", "cpu" },
                                        { "run.out", test_path(folder, "out") } };
    test_ok(kd_run_create(&run));
    for (int i = 0; i < KD_COUNT(settings); i++)
        test_ok(kd_run_set(run, settings[i][0], settings[i][1]));
    return run;
}

Test(slow_memory, resident_is_what_was_planned)
{
    test_heap heap;
    if (!test_heap_read(&heap)) cr_skip_test("skipped: a sanitizer's heap is larger than the plan");
    const char *folder = test_folder();
    kd_session session;
    kd_run *run = make_run(folder);
    test_ok(kd_session_open(&session, run));
    for (int64_t step = 0; step < 2; step++) {
        const kd_step_batch *batch;
        const kd_step_result *result;
        test_ok(kd_loader_next(&batch, session.train, NULL));
        test_ok(kd_step_run(&session.step, batch, step));
        test_ok(kd_step_result_of(&result, &session.step, step));
    }
    const double planned = (double)kd_session_bytes(&session);
    const double resident = (double)kd_resident_bytes();
    cr_assert(planned > 0x1p30, "the plan is only %.0f bytes", planned);
    cr_assert(fabs(resident - planned) <= 0.05 * planned, "%.0f bytes resident, %.0f planned",
              resident, planned);
    kd_session_close(&session);
    kd_run_destroy(run);
    test_ok(kd_dir_remove(folder));
    test_text_remove();
}
