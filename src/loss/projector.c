#include "loss/patches.h"

#include <math.h>

enum { BEFORE = 1, AFTER = 2 };
enum { RELU = 1 }; /* of `activation`, and of `output` less 1, which has none */

static const float least = 1e-12f; /* torch.nn.functional.normalize */

const kd_option kd_projector_rows[] = {
    { "type", KD_CHOICE, offsetof(kd_projector_options, kind), "none", 0, 0,
      "none|linear|mlp|conv1x1|conv",
      "from the student's width to the teacher's; conv1x1 and conv: of feature maps" },
    { "width", KD_INT, offsetof(kd_projector_options, width), "0", 0, 1e6, "columns",
      "between the two matrices of mlp; 0: twice the teacher's" },
    { "activation", KD_CHOICE, offsetof(kd_projector_options, activation), "gelu", 0, 0,
      "gelu|relu", "between them" },
    { "output", KD_CHOICE, offsetof(kd_projector_options, output), "none", 0, 0, "none|gelu|relu",
      "activation of what comes out; signs of a target are out of its reach" },
    { "bias", KD_BOOL, offsetof(kd_projector_options, bias), "true", 0, 0, "", "of each matrix" },
    { "normalise", KD_CHOICE, offsetof(kd_projector_options, normalise), "none", 0, 0,
      "none|before|after|both", "rows, or places of maps, made of length 1" },
    { "shared", KD_BOOL, offsetof(kd_projector_options, shared), "false", 0, 0, "",
      "one for all layers, as TinyBERT has it" },
    { "trainable", KD_BOOL, offsetof(kd_projector_options, trainable), "true", 0, 0, "",
      "false: it stays as it was drawn" },
    { 0 },
};

kd_status kd_projector_check(const kd_projector_options *o, const char *path)
{
    if (o->kind == KD_PROJECTOR_NONE && o->output)
        return kd_fail(KD_EINVAL,
                       "%s.output: nothing comes out of type none; expected another type", path);
    if (o->kind != KD_PROJECTOR_MLP && o->width)
        return kd_fail(KD_EINVAL, "%s.width: %lld, but only mlp has something between", path,
                       (long long)o->width);
    return KD_OK;
}

/* ---- parameters ------------------------------------------------------------------------------- */

static int matrices(const kd_projector *p)
{
    const int kind = p->options->kind;
    return kind == KD_PROJECTOR_MLP ? 2 : kind != KD_PROJECTOR_NONE;
}

static bool convolves(const kd_projector *p) { return p->options->kind == KD_PROJECTOR_CONV; }

static kd_shape weight_shape(const kd_projector *p, int i)
{
    const int64_t out = i + 1 < matrices(p) ? p->middle : p->out, in = i == 0 ? p->in : p->middle;
    if (convolves(p)) return KD_SHAPE(out, in, p->kernel[0], p->kernel[1]);
    return p->options->kind == KD_PROJECTOR_CONV1X1 ? KD_SHAPE(out, in, 1, 1) : KD_SHAPE(out, in);
}

/* A weight of any kind, or its gradient, as [out, what it reads]. */
static kd_tensor as_matrix(kd_tensor weight)
{
    int64_t columns = 1;
    if (!kd_present(&weight)) return weight;
    for (int d = 1; d < weight.rank; d++) columns *= weight.shape[d];
    return kd_tensor_of(weight.data, weight.dtype, KD_SHAPE(weight.shape[0], columns));
}

kd_status kd_projector_declare(kd_projector *p, kd_params *params, const char *name, int block)
{
    const kd_projector_options *o = p->options;
    const unsigned decays = o->trainable ? KD_PARAM_DECAY : 0;
    const int count = matrices(p);
    char full[128];
    p->middle = o->width ? o->width : 2 * p->out;
    for (int i = 0; i < 2; i++) p->weight[i] = p->bias[i] = -1;
    for (int i = 0; i < count; i++) {
        const kd_shape shape = weight_shape(p, i);
        snprintf(full, sizeof full, "%s.%d.weight", name, i);
        KD_TRY(
            kd_params_declare(&p->weight[i], params, full, shape, KD_PARAM_EXTRA | decays, block));
        if (!o->bias) continue;
        snprintf(full, sizeof full, "%s.%d.bias", name, i);
        KD_TRY(kd_params_declare(&p->bias[i], params, full, KD_SHAPE(shape.dim[0]), KD_PARAM_EXTRA,
                                 block));
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
        const kd_tensor weight = as_matrix(kd_slab_weight(slab, p->weight[i]));
        KD_TRY(draw(exec, slab, p->weight[i], weight.shape[1], seed));
        if (p->bias[i] >= 0) KD_TRY(draw(exec, slab, p->bias[i], weight.shape[1], seed));
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
    const kd_tensor weight = as_matrix(kd_slab_weight(slab, p->weight[i]));
    const kd_tensor bias = kd_slab_weight(slab, p->bias[i]);
    const kd_tensor columns = kd_tensor_transposed(&weight);
    KD_TRY(kd_push(y, exec, "projector output", x->dtype, KD_SHAPE(x->shape[0], weight.shape[0])));
    return KD_RUN(exec, matmul, .y = y, .a = x, .b = &columns, .bias = &bias);
}

static kd_status activate(kd_tensor *y, kd_exec *exec, const kd_tensor *x, int activation)
{
    KD_TRY(kd_push(y, exec, "projector activation", x->dtype, kd_shape_of(x)));
    return activation == RELU ? KD_RUN(exec, relu, .y = y, .x = x)
                              : KD_RUN(exec, gelu, .y = y, .x = x, .tanh_form = false);
}

static kd_patch_shape patch_shape(const kd_projector *p, const kd_tensor *maps)
{
    const int64_t *s = maps->shape;
    return (kd_patch_shape){ s[0], s[1], s[2], s[3], { p->kernel[0], p->kernel[1] } };
}

/* What the matrices make of s->x. */
static kd_status project(kd_projected *s, kd_exec *exec, const kd_tensor *x, const kd_slab *slab,
                         const kd_projector *p)
{
    const int last = matrices(p) - 1;
    const kd_tensor *read = &s->x;
    if (convolves(p)) {
        const kd_patch_shape shape = patch_shape(p, x);
        KD_TRY(kd_patches_of(&s->patches, exec, read, &shape));
        read = &s->patches;
    }
    if (last == 1) {
        KD_TRY(multiply(&s->middle, exec, read, slab, p, 0));
        KD_TRY(activate(&s->active, exec, &s->middle, p->options->activation));
        read = &s->active;
    }
    KD_TRY(multiply(&s->product, exec, read, slab, p, last));
    s->raw = s->product;
    return p->options->output ? activate(&s->raw, exec, &s->product, p->options->output - 1)
                              : KD_OK;
}

kd_status kd_projector_forward(kd_projected *s, kd_exec *exec, const kd_tensor *x,
                               const kd_slab *slab, const kd_projector *p)
{
    const int normalise = p->options->normalise;
    *s = (kd_projected){ .rows = *x };
    if (x->rank == 4) KD_TRY(kd_places_of(&s->rows, exec, x));
    s->x = s->rows;
    if (normalise & BEFORE) KD_TRY(unit_rows(&s->x, &s->norm_x, exec, &s->rows));
    s->raw = s->x;
    if (matrices(p) > 0) KD_TRY(project(s, exec, x, slab, p));
    s->y = s->raw;
    if (normalise & AFTER) KD_TRY(unit_rows(&s->y, &s->norm_y, exec, &s->raw));
    if (x->rank != 4) return KD_OK;
    const kd_tensor rows = s->y;
    const int64_t fewer[] = { convolves(p) ? p->kernel[0] - 1 : 0,
                              convolves(p) ? p->kernel[1] - 1 : 0 };
    return kd_maps_of(
        &s->y, exec, &rows,
        KD_SHAPE(x->shape[0], rows.shape[1], x->shape[2] - fewer[0], x->shape[3] - fewer[1]),
        x->dtype);
}

/* ---- backward --------------------------------------------------------------------------------- */

/* Adds to what the slab has as gradients of matrix i; writes dx = dy W, unless that is NULL. */
static kd_status multiply_backward(kd_tensor *dx, kd_exec *exec, const kd_tensor *dy,
                                   const kd_tensor *x, const kd_slab *slab, const kd_projector *p,
                                   int i)
{
    const kd_tensor weight = as_matrix(kd_slab_weight(slab, p->weight[i]));
    const kd_tensor d_weight = as_matrix(kd_slab_gradient(slab, p->weight[i]));
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

static kd_status activate_backward(kd_tensor *dx, kd_exec *exec, const kd_tensor *dy,
                                   const kd_tensor *x, int activation)
{
    KD_TRY(kd_push(dx, exec, "d projector activation", x->dtype, kd_shape_of(x)));
    return activation == RELU
               ? KD_RUN(exec, relu_backward, .dx = dx, .dy = dy, .x = x)
               : KD_RUN(exec, gelu_backward, .dx = dx, .dy = dy, .x = x, .tanh_form = false);
}

/* From the gradient of s->raw to that of s->x, which stays unknown unless it is `wanted`. */
static kd_status project_backward(kd_tensor *d, kd_exec *exec, bool wanted, const kd_tensor *x,
                                  const kd_projected *s, const kd_slab *slab, const kd_projector *p)
{
    const kd_tensor *read = convolves(p) ? &s->patches : &s->x;
    kd_tensor dy = *d;
    if (p->options->output) {
        KD_TRY(activate_backward(d, exec, &dy, &s->product, p->options->output - 1));
        dy = *d;
    }
    if (matrices(p) == 2) {
        kd_tensor d_active;
        KD_TRY(multiply_backward(&d_active, exec, &dy, &s->active, slab, p, 1));
        KD_TRY(activate_backward(&dy, exec, &d_active, &s->middle, p->options->activation));
    }
    KD_TRY(multiply_backward(wanted ? d : NULL, exec, &dy, read, slab, p, 0));
    if (!wanted || !convolves(p)) return KD_OK;
    const kd_tensor d_patches = *d;
    const kd_patch_shape shape = patch_shape(p, x);
    return kd_patches_backward(d, exec, &d_patches, &shape);
}

/* dx += the gradient of the input from that of s->x. */
static kd_status give(kd_exec *exec, const kd_tensor *dx, kd_tensor d, const kd_tensor *x,
                      const kd_projected *s)
{
    const bool maps = x->rank == 4;
    kd_tensor next;
    if (kd_present(&s->norm_x)) {
        if (!maps)
            return KD_RUN(exec, normalise_backward, .dx = dx, .dy = &d, .x = x, .norm = &s->norm_x,
                          .eps = least);
        KD_TRY(unit_backward(&next, exec, &d, &s->rows, &s->norm_x));
        d = next;
    }
    if (maps) {
        KD_TRY(kd_maps_of(&next, exec, &d, kd_shape_of(x), x->dtype));
        d = next;
    }
    return KD_RUN(exec, add, .y = dx, .a = dx, .b = &d);
}

kd_status kd_projector_backward(kd_exec *exec, const kd_tensor *dx, const kd_tensor *dy,
                                const kd_tensor *x, const kd_projected *s, const kd_slab *slab,
                                const kd_projector *p)
{
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor d = *dy, next;
    if (x->rank == 4) KD_TRY(kd_places_of(&d, exec, dy));
    if (kd_present(&s->norm_y)) {
        KD_TRY(unit_backward(&next, exec, &d, &s->raw, &s->norm_y));
        d = next;
    }
    const bool wanted = kd_present(dx); /* not of a teacher's: only the projector learns */
    if (matrices(p) > 0) KD_TRY(project_backward(&d, exec, wanted, x, s, slab, p));
    if (wanted) KD_TRY(give(exec, dx, d, x, s));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}
