#include "stopping/work.h"

#include "train/train.h"

#include <signal.h>

work *test_work;

kd_status __real_kd_model_forward(kd_model *, kd_exec *, const kd_batch *, kd_taps *);
kd_status __wrap_kd_model_forward(kd_model *, kd_exec *, const kd_batch *, kd_taps *);
kd_status __real_kd_model_backward(kd_model *, kd_exec *, const kd_batch *, kd_taps *,
                                   kd_block_done, void *);
kd_status __wrap_kd_model_backward(kd_model *, kd_exec *, const kd_batch *, kd_taps *,
                                   kd_block_done, void *);
kd_status __real_kd_optim_update(kd_exec *, const kd_slab *, const kd_optim_options *,
                                 const kd_tensor *, const kd_tensor *);
kd_status __wrap_kd_optim_update(kd_exec *, const kd_slab *, const kd_optim_options *,
                                 const kd_tensor *, const kd_tensor *);

/* The teacher is the first to see a micro-batch. */
static void begin(const kd_exec *exec, bool batch)
{
    work *w = test_work;
    if (!w || kd_planning(exec)) return;
    w->batches += batch && w->hit;
    if (w->pieces++ != w->at) return;
    w->hit = true;
    (void)raise(w->signal);
}

kd_status __wrap_kd_model_forward(kd_model *model, kd_exec *exec, const kd_batch *batch,
                                  kd_taps *taps)
{
    begin(exec, !model->slab.trainable);
    return __real_kd_model_forward(model, exec, batch, taps);
}

kd_status __wrap_kd_model_backward(kd_model *model, kd_exec *exec, const kd_batch *batch,
                                   kd_taps *taps, kd_block_done done, void *context)
{
    begin(exec, false);
    return __real_kd_model_backward(model, exec, batch, taps, done, context);
}

kd_status __wrap_kd_optim_update(kd_exec *exec, const kd_slab *slab,
                                 const kd_optim_options *options, const kd_tensor *losses,
                                 const kd_tensor *scalars)
{
    begin(exec, false);
    return __real_kd_optim_update(exec, slab, options, losses, scalars);
}
