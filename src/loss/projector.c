#include "loss/loss.h"

#include <math.h>

enum { BEFORE = 1, AFTER = 2, RELU = 1 };

static const float least = 1e-12f; /* torch.nn.functional.normalize */

const kd_option kd_projector_rows[] = {
    { "type", KD_CHOICE, offsetof(kd_projector_options, kind), "none", 0, 0, "none|linear|mlp",
      "from the student's width to the teacher's" },
    { "width", KD_INT, offsetof(kd_projector_options, width), "0", 0, 1e6, "columns",
      "between the two matrices of mlp; 0: twice the teacher's" },
    { "activation", KD_CHOICE, offsetof(kd_projector_options, activation), "gelu", 0, 0,
      "gelu|relu", "between them" },
    { "bias", KD_BOOL, offsetof(kd_projector_options, bias), "true", 0, 0, "", "of each matrix" },
    { "normalise", KD_CHOICE, offsetof(kd_projector_options, normalise), "none", 0, 0,
      "none|before|after|both", "rows made of length 1" },
    { "shared", KD_BOOL, offsetof(kd_projector_options, shared), "false", 0, 0, "",
      "one for all layers, as TinyBERT has it" },
    { "trainable", KD_BOOL, offsetof(kd_projector_options, trainable), "true", 0, 0, "",
      "false: it stays as it was drawn" },
    { 0 },
};

/* ---- parameters ------------------------------------------------------------------------------- */

static int matrices(const kd_projector *p)
{
    return p->options->kind == KD_PROJECTOR_MLP ? 2 : p->options->kind == KD_PROJECTOR_LINEAR;
}

/* Columns that matrix i reads. */
static int64_t columns_of(const kd_projector *p, int i) { return i == 0 ? p->in : p->middle; }

kd_status kd_projector_declare(kd_projector *p, kd_params *params, const char *name, int block)
{
    const kd_projector_options *o = p->options;
    const unsigned decays = o->trainable ? KD_PARAM_DECAY : 0;
    const int count = matrices(p);
    char full[128];
    p->middle = o->width ? o->width : 2 * p->out;
    for (int i = 0; i < 2; i++) p->weight[i] = p->bias[i] = -1;
    for (int i = 0; i < count; i++) {
        const int64_t out = i + 1 < count ? p->middle : p->out;
        snprintf(full, sizeof full, "%s.%d.weight", name, i);
        KD_TRY(kd_params_declare(&p->weight[i], params, full, KD_SHAPE(out, columns_of(p, i)),
                                 KD_PARAM_EXTRA | decays, block));
        if (!o->bias) continue;
        snprintf(full, sizeof full, "%s.%d.bias", name, i);
        KD_TRY(kd_params_declare(&p->bias[i], params, full, KD_SHAPE(out), KD_PARAM_EXTRA, block));
    }
    return KD_OK;
}

static kd_status draw(kd_exec *exec, const kd_slab *slab, int parameter, int64_t columns,
                      uint64_t seed)
{
    const kd_tensor weight = kd_slab_weight(slab, parameter);
    const kd_tensor master = kd_slab_master(slab, parameter);
    const int64_t n = kd_tensor_elements(&weight);
    const double reach = 1.0 / sqrt((double)columns);
    kd_arena *arena;
    float *values;
    unsigned char *narrow;
    KD_TRY(kd_arena_create(&arena));
    kd_status status;
    KD_TRY_GOTO(KD_ARENA_ARRAY(&values, arena, n), status, done);
    KD_TRY_GOTO(KD_ARENA_ARRAY(&narrow, arena, (int64_t)kd_tensor_bytes(&weight)), status, done);
    for (int64_t i = 0; i < n; i++)
        values[i] =
            (float)(reach *
                    (2.0 * kd_random_uniform(seed, (uint64_t)parameter, (uint64_t)i) - 1.0));
    KD_TRY_GOTO(kd_convert(narrow, weight.dtype, values, KD_F32, n), status, done);
    KD_TRY_GOTO(kd_upload(exec, &weight, narrow), status, done);
    if (kd_present(&master)) KD_TRY_GOTO(kd_upload(exec, &master, values), status, done);
    status = kd_sync(exec);
done:
    kd_arena_destroy(arena);
    return status;
}

kd_status kd_projector_initialise(const kd_projector *p, kd_exec *exec, const kd_slab *slab,
                                  uint64_t seed)
{
    for (int i = 0; i < matrices(p); i++) {
        KD_TRY(draw(exec, slab, p->weight[i], columns_of(p, i), seed));
        if (p->bias[i] >= 0) KD_TRY(draw(exec, slab, p->bias[i], columns_of(p, i), seed));
    }
    return KD_OK;
}

/* ---- forward ---------------------------------------------------------------------------------- */

static kd_status unit_rows(kd_tensor *y, kd_tensor *norm, kd_exec *exec, const kd_tensor *x)
{
    KD_TRY(kd_push(y, exec, "projector unit rows", x->dtype, kd_shape_of(x)));
    KD_TRY(kd_push(norm, exec, "projector row lengths", KD_F32, KD_SHAPE(x->shape[0])));
    return KD_RUN(exec, normalise, .y = y, .norm = norm, .x = x, .eps = least);
}

static kd_status multiply(kd_tensor *y, kd_exec *exec, const kd_tensor *x, const kd_slab *slab,
                          const kd_projector *p, int i)
{
    const kd_tensor weight = kd_slab_weight(slab, p->weight[i]);
    const kd_tensor bias = kd_slab_weight(slab, p->bias[i]);
    const kd_tensor columns = kd_tensor_transposed(&weight);
    KD_TRY(kd_push(y, exec, "projector output", x->dtype, KD_SHAPE(x->shape[0], weight.shape[0])));
    return KD_RUN(exec, matmul, .y = y, .a = x, .b = &columns, .bias = &bias);
}

kd_status kd_projector_forward(kd_projected *s, kd_exec *exec, const kd_tensor *x,
                               const kd_slab *slab, const kd_projector *p)
{
    const int count = matrices(p), normalise = p->options->normalise;
    *s = (kd_projected){ .x = *x };
    if (normalise & BEFORE) KD_TRY(unit_rows(&s->x, &s->norm_x, exec, x));
    s->raw = s->x;
    if (count == 2) {
        KD_TRY(multiply(&s->middle, exec, &s->x, slab, p, 0));
        KD_TRY(
            kd_push(&s->active, exec, "projector activation", x->dtype, kd_shape_of(&s->middle)));
        KD_TRY(p->options->activation == RELU
                   ? KD_RUN(exec, relu, .y = &s->active, .x = &s->middle)
                   : KD_RUN(exec, gelu, .y = &s->active, .x = &s->middle, .tanh_form = false));
        KD_TRY(multiply(&s->raw, exec, &s->active, slab, p, 1));
    } else if (count == 1) {
        KD_TRY(multiply(&s->raw, exec, &s->x, slab, p, 0));
    }
    s->y = s->raw;
    return normalise & AFTER ? unit_rows(&s->y, &s->norm_y, exec, &s->raw) : KD_OK;
}

/* ---- backward --------------------------------------------------------------------------------- */

/* Adds to what the slab has as gradients of matrix i; writes dx = dy W, unless that is NULL. */
static kd_status multiply_backward(kd_tensor *dx, kd_exec *exec, const kd_tensor *dy,
                                   const kd_tensor *x, const kd_slab *slab, const kd_projector *p,
                                   int i)
{
    const kd_tensor weight = kd_slab_weight(slab, p->weight[i]);
    const kd_tensor d_weight = kd_slab_gradient(slab, p->weight[i]);
    const kd_tensor d_bias = kd_slab_gradient(slab, p->bias[i]);
    const kd_tensor d_rows = kd_tensor_transposed(dy);
    if (p->options->trainable) {
        KD_TRY(KD_RUN(exec, matmul_add, .y = &d_weight, .a = &d_rows, .b = x));
        if (kd_present(&d_bias)) KD_TRY(KD_RUN(exec, sum_columns, .y = &d_bias, .x = dy));
    }
    if (!dx) return KD_OK;
    KD_TRY(kd_push(dx, exec, "d projector input", x->dtype, kd_shape_of(x)));
    return KD_RUN(exec, matmul, .y = dx, .a = dy, .b = &weight);
}

static kd_status unit_backward(kd_tensor *dx, kd_exec *exec, const kd_tensor *dy,
                               const kd_tensor *x, const kd_tensor *norm)
{
    KD_TRY(kd_push(dx, exec, "d projector unit rows", x->dtype, kd_shape_of(x)));
    KD_TRY(KD_RUN(exec, fill, .y = dx, .value = 0.0f));
    return KD_RUN(exec, normalise_backward, .dx = dx, .dy = dy, .x = x, .norm = norm, .eps = least);
}

kd_status kd_projector_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                                const kd_tensor *x, const kd_projected *s, const kd_slab *slab,
                                const kd_projector *p)
{
    const int count = matrices(p);
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor d = *dy, next = { 0 };
    if (kd_present(&s->norm_y)) {
        KD_TRY(unit_backward(&next, exec, &d, &s->raw, &s->norm_y));
        d = next;
    }
    if (count == 2) {
        kd_tensor d_middle;
        KD_TRY(multiply_backward(&next, exec, &d, &s->active, slab, p, 1));
        KD_TRY(kd_push(&d_middle, exec, "d projector middle", x->dtype, kd_shape_of(&next)));
        KD_TRY(p->options->activation == RELU
                   ? KD_RUN(exec, relu_backward, .dx = &d_middle, .dy = &next, .x = &s->middle)
                   : KD_RUN(exec, gelu_backward, .dx = &d_middle, .dy = &next, .x = &s->middle,
                            .tanh_form = false));
        d = d_middle;
    }
    if (count) {
        KD_TRY(multiply_backward(kd_present(dx) ? &next : NULL, exec, &d, &s->x, slab, p, 0));
        d = next;
    }
    if (!kd_present(dx)) {
        /* A teacher's rows: only the projector learns. */
    } else if (kd_present(&s->norm_x)) {
        KD_TRY(KD_RUN(exec, normalise_backward, .dx = dx, .dy = &d, .x = x, .norm = &s->norm_x,
                      .eps = least));
    } else {
        KD_TRY(KD_RUN(exec, add, .y = dx, .a = dx, .b = &d));
    }
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
