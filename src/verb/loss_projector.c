#include "verb/loss_projector.h"

static bool is_convolution(int kind)
{
    return kind == KD_PROJECTOR_CONV1X1 || kind == KD_PROJECTOR_CONV;
}

kd_status kd_file_projector_choose(kd_file_projector *p, const kd_feature_type *type,
                                   const kd_projector_options *options)
{
    const kd_read *first = &type->reads[0];
    const int rank = kd_read_rank(first);
    if (!options) return KD_OK;
    KD_TRY(kd_projector_check(options, "projector"));
    if (options->kind == KD_PROJECTOR_NONE && !options->normalise) return KD_OK;
    if (strcmp(first->name, "student") != 0 || rank == 3)
        return kd_fail(KD_EINVAL,
                       "%s reads no rows or maps that a projector could widen, but %s %s",
                       type->name, first->name, first->shape);
    if (is_convolution(options->kind) && rank != 4)
        return kd_fail(KD_EINVAL,
                       "projector.type: a convolution reads maps [B, C, H, W], and %s has "
                       "student %s; expected linear or mlp",
                       type->name, first->shape);
    p->projector.options = options;
    return KD_OK;
}

/* ---- parameters ------------------------------------------------------------------------------- */

/* Which kernel makes the student's places the teacher's. */
static kd_status find_kernel(kd_projector *p, const kd_st_file *file, const kd_tensor *student,
                             const kd_tensor *teacher)
{
    char found[96], expected[96];
    const bool grows =
        student->shape[2] < teacher->shape[2] || student->shape[3] < teacher->shape[3];
    const bool equal =
        student->shape[2] == teacher->shape[2] && student->shape[3] == teacher->shape[3];
    for (int i = 0; i < 2; i++) p->kernel[i] = student->shape[2 + i] - teacher->shape[2 + i] + 1;
    if (p->options->kind == KD_PROJECTOR_CONV ? !grows : equal) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: student is %s and teacher %s; %s", file->path,
                   kd_tensor_print(found, sizeof found, student),
                   kd_tensor_print(expected, sizeof expected, teacher),
                   p->options->kind == KD_PROJECTOR_CONV
                       ? "expected a student of at least as many rows and columns of places"
                       : "expected equal height and width, or a larger student and a projector of "
                         "type conv");
}

static kd_status take(kd_tensor *t, kd_arena *arena, kd_shape shape)
{
    float *data;
    *t = kd_tensor_of(NULL, KD_F32, shape);
    KD_TRY(KD_ARENA_ARRAY(&data, arena, kd_max_i64(kd_tensor_elements(t), 1)));
    t->data = data;
    return KD_OK;
}

static kd_status read_parameter(kd_tensor *to, kd_arena *arena, const kd_st_file *file,
                                const kd_param *param)
{
    const kd_st_entry *e = kd_st_find(file, param->name);
    char expected[96], found[160];
    kd_shape_text(expected, sizeof expected, param->shape.rank, param->shape.dim);
    if (!e)
        return kd_fail(KD_EFORMAT, "%s: no tensor \"%s\"; the projector wants it, f32 %s",
                       file->path, param->name, expected);
    const bool floats = e->dtype == KD_F32 || e->dtype == KD_BF16 || e->dtype == KD_F16;
    bool same = floats && e->rank == param->shape.rank;
    for (int d = 0; same && d < e->rank; d++) same = e->shape[d] == param->shape.dim[d];
    if (!same)
        return kd_fail(KD_EFORMAT, "%s: %s is %s %s; expected f32, bf16 or f16 %s", file->path,
                       param->name, e->dtype_name,
                       kd_shape_text(found, sizeof found, e->rank, e->shape), expected);
    KD_TRY(take(to, arena, param->shape));
    return kd_st_read(to->data, KD_F32, file, e, 0, e->elements);
}

kd_status kd_file_projector_read(kd_file_projector *p, kd_arena *arena, const kd_st_file *file,
                                 const kd_tensor *student, const kd_tensor *teacher)
{
    kd_projector *projector = &p->projector;
    if (!projector->options) return KD_OK;
    if (student->shape[0] != teacher->shape[0])
        return kd_fail(KD_EFORMAT, "%s: student has %lld rows or samples, teacher %lld", file->path,
                       (long long)student->shape[0], (long long)teacher->shape[0]);
    projector->in = student->shape[1];
    projector->out = teacher->shape[1];
    if (student->rank == 4) KD_TRY(find_kernel(projector, file, student, teacher));
    p->params.arena = arena;
    KD_TRY(kd_projector_declare(projector, &p->params, "projector", 0));
    const int count = p->params.count;
    KD_TRY(KD_ARENA_ARRAY(&p->values, arena, count));
    KD_TRY(KD_ARENA_ARRAY(&p->gradients, arena, count));
    for (int i = 0; i < count; i++) {
        const kd_param *param = &p->params.items[i];
        KD_TRY(read_parameter(&p->values[i], arena, file, param));
        if (projector->options->trainable) KD_TRY(take(&p->gradients[i], arena, param->shape));
    }
    kd_params_layout(&p->params);
    return KD_OK;
}

/* ---- on the device ---------------------------------------------------------------------------- */

kd_status kd_file_projector_open(kd_file_projector *p, kd_device *device)
{
    kd_stack none = { 0 };
    kd_exec exec = { .device = device, .stack = &none };
    if (p->params.count == 0) return KD_OK;
    KD_TRY(kd_slab_open(&p->slab, device, &p->params, KD_F32, p->projector.options->trainable, 0,
                        false));
    if (kd_present(&p->slab.gradients))
        KD_TRY(KD_RUN(&exec, fill, .y = &p->slab.gradients, .value = 0.0f));
    for (int i = 0; i < p->params.count; i++) {
        const kd_tensor weight = kd_slab_weight(&p->slab, i);
        KD_TRY(kd_upload(&exec, &weight, p->values[i].data));
    }
    return kd_sync(&exec);
}

void kd_file_projector_close(kd_file_projector *p) { kd_slab_close(&p->slab); }

kd_status kd_file_projector_fetch(const kd_file_projector *p, kd_exec *exec)
{
    for (int i = 0; i < p->params.count; i++) {
        const kd_tensor gradient = kd_slab_gradient(&p->slab, i);
        if (kd_present(&gradient)) KD_TRY(kd_download(exec, p->gradients[i].data, &gradient));
    }
    return KD_OK;
}
