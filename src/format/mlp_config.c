/*
 * mlp_config.c - config.json of a multilayer perceptron that classifies samples.
 *
 *     {"model_type": "mlp", "architectures": ["MLPForClassification"],
 *      "input_size": 64, "hidden_sizes": [256, 128], "num_labels": 10, "hidden_act": "relu",
 *      "id2label": {"0": "zero", ...}}
 *
 * hidden_sizes may be empty: a linear classifier.  hidden_act is "relu" (also where it is absent),
 * "gelu", or "gelu_new" and "gelu_pytorch_tanh", its tanh form.  id2label may be absent.  The bounds
 * are those of hf_config.c, for the same reason.
 */
#include "format/fields.h"

enum { MAX_SIZE = 1 << 20, MAX_LABELS = 1 << 24 };

static kd_status parse_sizes(kd_config *c, const reader *r)
{
    const json_t *list = get(r, "hidden_sizes");
    char expected[80];
    if (!json_is_array(list) || json_array_size(list) > KD_MLP_MAX_LAYERS) {
        (void)snprintf(expected, sizeof expected, "a list of at most %d sizes",
                       (int)KD_MLP_MAX_LAYERS);
        return refuse(r, "hidden_sizes", expected);
    }
    c->layers = (int64_t)json_array_size(list);
    c->width = c->inputs;
    for (int64_t l = 0; l < c->layers; l++) {
        const json_t *size = json_array_get(list, (size_t)l);
        c->width = c->hidden[l] = (int64_t)json_integer_value(size);
        if (json_is_integer(size) && c->width >= 1 && c->width <= MAX_SIZE) continue;
        char text[80];
        return kd_fail(KD_EFORMAT, "%s: hidden_sizes[%lld] is %s, expected an integer from 1 to %d",
                       r->source, (long long)l, kd_json_show(text, sizeof text, size),
                       (int)MAX_SIZE);
    }
    return KD_OK;
}

static kd_status parse_activation(kd_config *c, const reader *r)
{
    const char *name;
    KD_TRY(read_string(&name, r, "hidden_act"));
    if (!name || !strcmp(name, "relu"))
        c->mlp = KD_MLP_RELU;
    else if (!strcmp(name, "gelu"))
        c->mlp = KD_MLP_GELU;
    else if (!strcmp(name, "gelu_new") || !strcmp(name, "gelu_pytorch_tanh"))
        c->mlp = KD_MLP_GELU_TANH;
    else
        return not_supported(r, "hidden_act",
                             "\"relu\", \"gelu\", \"gelu_new\" and \"gelu_pytorch_tanh\"");
    return KD_OK;
}

/* A name for each class, or none at all. */
static kd_status check_names(const kd_config *c, const reader *r)
{
    json_t *names = get(r, "id2label");
    if (!names) return KD_OK;
    bool whole = json_is_object(names) && (int64_t)json_object_size(names) == c->vocabulary;
    for (int64_t i = 0; whole && i < c->vocabulary; i++) {
        char key[24];
        (void)snprintf(key, sizeof key, "%lld", (long long)i);
        whole = json_is_string(json_object_get(names, key));
    }
    char expected[80];
    (void)snprintf(expected, sizeof expected, "a string for each of \"0\" to \"%lld\"",
                   (long long)c->vocabulary - 1);
    return whole ? KD_OK : refuse(r, "id2label", expected);
}

kd_status kd_config_parse_mlp(kd_config *c, const reader *r)
{
    c->position = KD_POSITION_NONE;
    c->mlp_bias = true;
    c->bos = c->pad = c->eos[0] = -1;
    KD_TRY(read_int(&c->inputs, r, "input_size", -1, MAX_SIZE));
    KD_TRY(parse_sizes(c, r));
    KD_TRY(read_int(&c->vocabulary, r, "num_labels", -1, MAX_LABELS));
    if (c->vocabulary < 2) return refuse(r, "num_labels", "2 classes or more");
    KD_TRY(parse_activation(c, r));
    return check_names(c, r);
}
