#include "optim/optim.h"

int kd_optim_moments(const kd_optim_options *options)
{
    if (options->type == KD_OPTIM_ADAMW) return 2;
    return options->momentum > 0.0 ? 1 : 0;
}

/* [begin, end) of every array of the slab. */
typedef struct range {
    kd_tensor param, m, v, weights, gradient;
} range;

static kd_tensor cut(const kd_tensor *array, int64_t begin, int64_t end)
{
    return kd_present(array) ? kd_tensor_slice(array, 0, begin, end - begin) : (kd_tensor){ 0 };
}

static range range_of(const kd_slab *slab, int64_t begin, int64_t end)
{
    const bool masters = kd_present(&slab->masters);
    return (range){ .param = cut(masters ? &slab->masters : &slab->weights, begin, end),
                    .m = cut(&slab->moment[0], begin, end),
                    .v = cut(&slab->moment[1], begin, end),
                    .weights = masters ? cut(&slab->weights, begin, end) : (kd_tensor){ 0 },
                    .gradient = cut(&slab->gradients, begin, end) };
}

static kd_status update_range(kd_exec *exec, const range *r, const kd_optim_options *o, float decay,
                              const kd_tensor *scalars)
{
    if (o->type == KD_OPTIM_SGD)
        return KD_RUN(exec, sgd, .param = &r->param, .m = &r->m, .weights = &r->weights,
                      .gradient = &r->gradient, .scalars = scalars, .momentum = (float)o->momentum,
                      .nesterov = o->nesterov, .decay = decay);
    return KD_RUN(exec, adamw, .param = &r->param, .m = &r->m, .v = &r->v, .weights = &r->weights,
                  .gradient = &r->gradient, .scalars = scalars, .beta1 = (float)o->beta1,
                  .beta2 = (float)o->beta2, .eps = (float)o->eps, .decay = decay);
}

kd_status kd_optim_measure(kd_exec *exec, const kd_slab *slab, const kd_optim_options *o,
                           const kd_tensor *losses, const kd_tensor *scalars)
{
    const kd_mark mark = kd_stack_mark(exec->stack);
    kd_tensor squares;
    KD_TRY(kd_push(&squares, exec, "sum of squares", KD_F32, KD_SHAPE(1)));
    KD_TRY(KD_RUN(exec, sum_squares, .y = &squares, .x = &slab->gradients));
    KD_TRY(KD_RUN(exec, clip, .scalars = scalars, .sum_squares = &squares, .losses = losses,
                  .max_norm = (float)o->clip));
    kd_stack_release(exec->stack, mark);
    return KD_OK;
}

kd_status kd_optim_decide(kd_exec *exec, const kd_optim_options *o, const kd_tensor *guard,
                          const kd_tensor *scalars)
{
    return KD_RUN(exec, guard, .guard = guard, .scalars = scalars,
                  .skip = o->on_nonfinite == KD_NONFINITE_SKIP, .zscore = (float)o->skip_zscore,
                  .max_skips = o->max_skips, .beta1 = (float)o->beta1, .beta2 = (float)o->beta2);
}

kd_status kd_optim_update(kd_exec *exec, const kd_slab *slab, const kd_optim_options *options,
                          const kd_tensor *scalars)
{
    const kd_params *params = &slab->params;
    for (int i = 0, next; i < params->trained; i = next) {
        const unsigned decays = params->items[i].flags & KD_PARAM_DECAY;
        for (next = i; next < params->trained; next++)
            if ((params->items[next].flags & KD_PARAM_DECAY) != decays) break;
        const int64_t end = next < params->trained ? params->items[next].offset : params->elements;
        const range r = range_of(slab, params->items[i].offset, end);
        KD_TRY(
            update_range(exec, &r, options, decays ? (float)options->weight_decay : 0.0f, scalars));
    }
    return KD_OK;
}
