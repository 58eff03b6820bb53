/* Configurations of MLPs: what they say, refusals, and what kd writes back. */
#include "scratch.h"

/* What an MLP's file says, and back; without hidden layers too. */
Test(mlp_config, says_what_is_computed_and_is_written_so)
{
    static const struct {
        const char *edit;
        int64_t layers, width, parameters, flops;
        kd_mlp_kind act;
    } cases[] = {
        { "{}", 2, 128, 784 * 256 + 256 + 256 * 128 + 128 + 128 * 3 + 3,
          2 * (784 * 256 + 256 * 128 + 128 * 3), KD_MLP_RELU },
        { "{\"hidden_sizes\":[],\"hidden_act\":\"absent\"}", 0, 784, 784 * 3 + 3, 2 * 784 * 3,
          KD_MLP_RELU },
        { "{\"hidden_sizes\":[5],\"hidden_act\":\"gelu\"}", 1, 5, 784 * 5 + 5 + 5 * 3 + 3,
          2 * (784 * 5 + 5 * 3), KD_MLP_GELU },
        { "{\"hidden_sizes\":[5],\"hidden_act\":\"gelu_pytorch_tanh\",\"architectures\":"
          "\"absent\"}",
          1, 5, 784 * 5 + 5 + 5 * 3 + 3, 2 * (784 * 5 + 5 * 3), KD_MLP_GELU_TANH },
    };
    kd_arena *arena = NULL;
    scratch_open();
    cr_assert(kd_arena_create(&arena) == KD_OK);
    for (int i = 0; i < 2 * KD_COUNT(cases); i++) {
        const char *edit = cases[i / 2].edit;
        json_t *json = scratch_config("mlp", edit);
        kd_config c, back;
        cr_assert(kd_config_parse(&c, arena, "mlp", json) == KD_OK, "%s: %s", edit,
                  kd_last_error());
        json_decref(json);
        cr_expect(c.inputs == 784 && c.layers == cases[i / 2].layers &&
                      c.width == cases[i / 2].width && c.vocabulary == 3 &&
                      c.mlp == cases[i / 2].act,
                  "%s: a field differs", edit);
        cr_expect_eq(kd_config_parameters(&c), cases[i / 2].parameters, "%s", edit);
        cr_expect_eq(kd_config_flops(&c), cases[i / 2].flops, "%s", edit);
        if (i % 2) {
            json_decref(c.raw);
            c.raw = NULL;
        }
        cr_assert(kd_config_write(&c, scratch_path("config.json"), KD_F32) == KD_OK, "%s",
                  kd_last_error());
        cr_assert(kd_config_read(&back, arena, scratch_dir) == KD_OK, "%s: %s", edit,
                  kd_last_error());
        cr_expect(back.inputs == c.inputs && back.layers == c.layers && back.width == c.width &&
                      back.vocabulary == c.vocabulary && back.mlp == c.mlp &&
                      memcmp(back.hidden, c.hidden, sizeof c.hidden) == 0,
                  "%s: written otherwise", edit);
        cr_expect_eq(json_object_get(back.raw, "id2label") != NULL, i % 2 == 0, "%s", edit);
        cr_expect_null(json_object_get(back.raw, "vocab_size"), "%s", edit);
        json_decref(back.raw);
        json_decref(c.raw);
    }
    kd_arena_destroy(arena);
    scratch_close();
}

#define ONES_65                                                                                    \
    "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"  \
    "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"

static const struct {
    const char *edit;
    kd_status status;
    const char *message;
} refusals[] = {
    { "{\"input_size\":0}", KD_EFORMAT, "input_size is 0, expected an integer from 1 to 1048576" },
    { "{\"input_size\":\"absent\"}", KD_EFORMAT, "input_size is nothing" },
    { "{\"hidden_sizes\":\"absent\"}", KD_EFORMAT,
      "hidden_sizes is nothing, expected a list of at most 64 sizes" },
    { "{\"hidden_sizes\":128}", KD_EFORMAT, "hidden_sizes is 128, expected a list" },
    { "{\"hidden_sizes\":" ONES_65 "}", KD_EFORMAT, "expected a list of at most 64 sizes" },
    { "{\"hidden_sizes\":[8,0]}", KD_EFORMAT,
      "hidden_sizes[1] is 0, expected an integer from 1 to 1048576" },
    { "{\"hidden_sizes\":[8.0]}", KD_EFORMAT, "hidden_sizes[0] is 8.0" },
    { "{\"hidden_sizes\":[1048577]}", KD_EFORMAT, "hidden_sizes[0] is 1048577" },
    { "{\"hidden_sizes\":[[8]]}", KD_EFORMAT, "hidden_sizes[0] is [8]" },
    { "{\"num_labels\":1}", KD_EFORMAT, "num_labels is 1, expected 2 classes or more" },
    { "{\"num_labels\":16777217}", KD_EFORMAT, "num_labels is 16777217" },
    { "{\"num_labels\":4}", KD_EFORMAT, "expected a string for each of \"0\" to \"3\"" },
    { "{\"id2label\":{\"0\":\"a\",\"1\":\"b\",\"3\":\"c\"}}", KD_EFORMAT,
      "expected a string for each of \"0\" to \"2\"" },
    { "{\"id2label\":{\"0\":\"a\",\"1\":\"b\",\"2\":3}}", KD_EFORMAT, "id2label is" },
    { "{\"id2label\":[\"a\",\"b\",\"c\"]}", KD_EFORMAT, "id2label is" },
    { "{\"hidden_act\":\"silu\"}", KD_ENOTSUP,
      "hidden_act is \"silu\"; kd computes \"relu\", \"gelu\", \"gelu_new\" and "
      "\"gelu_pytorch_tanh\"" },
    { "{\"hidden_act\":0}", KD_EFORMAT, "hidden_act is 0, expected a string" },
    { "{\"model_type\":\"llama\"}", KD_EFORMAT,
      "model_type is \"llama\", expected \"mlp\" for MLPForClassification" },
    { "{\"quantization_config\":{\"quant_method\":\"gptq\"}}", KD_ENOTSUP,
      "weights that are not quantized" },
};

Test(mlp_config, refusals)
{
    for (int i = 0; i < KD_COUNT(refusals); i++) {
        json_t *json = scratch_config("mlp", refusals[i].edit);
        kd_config c;
        const kd_status status = kd_config_parse(&c, NULL, "some/config.json", json);
        test_refusal(status, refusals[i].status, refusals[i].message, refusals[i].edit);
        test_refusal(status, status, "some/config.json: ", refusals[i].edit);
        if (status != KD_OK) cr_expect_null(c.raw, "%s", refusals[i].edit);
        json_decref(c.raw);
        json_decref(json);
    }
}
