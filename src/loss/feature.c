/* The registry of feature and relation losses, and what holds for all of them. */
#include "loss/loss.h"

const kd_feature_type *const kd_feature_types[KD_FEATURE_COUNT + 1] = {
#define KD_FEATURE(name) &kd_feature_##name,
#include "loss/loss_list.h"
#undef KD_FEATURE
    NULL
};

/* ---- operands by name ------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t value, gradient; /* into kd_feature_args; gradient 0: has none */
} fields[] = {
#define FIELD(name)                                                                                \
    {                                                                                              \
#name, offsetof(kd_feature_args, name), 0                                                  \
    }
#define GRADIENT(name)                                                                             \
    {                                                                                              \
#name, offsetof(kd_feature_args, name), offsetof(kd_feature_args, d_##name)                \
    }
    GRADIENT(student),   GRADIENT(student_q),    GRADIENT(student_k), GRADIENT(teacher),
    FIELD(teacher_q),    FIELD(teacher_k),       FIELD(student_lse),  FIELD(teacher_lse),
    FIELD(documents),    GRADIENT(log_variance), FIELD(samples),      FIELD(negatives),
    FIELD(student_bank), FIELD(teacher_bank),    FIELD(partition),
#undef FIELD
#undef GRADIENT
};

kd_tensor *kd_feature_operand(kd_feature_args *args, const char *name, bool gradient)
{
    unsigned char *base = (unsigned char *)args;
    for (int i = 0; i < KD_COUNT(fields); i++) {
        if (strcmp(fields[i].name, name) != 0) continue;
        if (gradient && !fields[i].gradient) return NULL;
        return (kd_tensor *)(void *)(base + (gradient ? fields[i].gradient : fields[i].value));
    }
    return NULL;
}

int kd_read_rank(const kd_read *read)
{
    int rank = 1;
    for (const char *c = read->shape; *c; c++) rank += *c == ',';
    return rank;
}

int64_t kd_parameter_elements(const kd_feature_type *type, const kd_read *parameter,
                              const kd_tensor *first)
{
    int dim = 0;
    for (const char *c = type->reads[0].shape; *c && *c != parameter->shape[1]; c++)
        dim += *c == ',';
    return first->shape[dim];
}

/* ---- running ---------------------------------------------------------------------------------- */

static kd_status check_type(const kd_tensor *t, const kd_read *read)
{
    const bool f32 = t->dtype == KD_F32, i32 = t->dtype == KD_I32, bf16 = t->dtype == KD_BF16;
    const bool wide = read->flags & (KD_READ_F32 | KD_READ_STATE);
    const bool right = read->flags & KD_READ_INTEGER ? i32 : wide ? f32 : f32 || bf16;
    char found[96];
    if (right && t->rank == kd_read_rank(read)) return KD_OK;
    return kd_fail(KD_EINVAL, "%s is %s; expected %s %s", read->name,
                   kd_tensor_print(found, sizeof found, t),
                   read->flags & KD_READ_INTEGER ? "i32"
                   : wide                        ? "f32"
                                                 : "f32 or bf16",
                   read->shape);
}

static kd_status check_read(kd_feature_args *args, const kd_read *read)
{
    const kd_tensor *value = kd_feature_operand(args, read->name, false);
    const kd_tensor *gradient = kd_feature_operand(args, read->name, true);
    if (!kd_present(value) && value->rank == 0) {
        if (read->flags & KD_READ_OPTIONAL) return KD_OK;
        return kd_fail(KD_EINVAL, "%s %s is absent", read->name, read->shape);
    }
    KD_TRY(check_type(value, read));
    if (!(read->flags & KD_READ_GRADIENT) || !kd_present(gradient)) return KD_OK;
    return kd_tensor_expect(gradient, read->name, (int)value->dtype, kd_shape_of(value));
}

static kd_status run(kd_exec *exec, const kd_feature_type *type, const kd_feature_args *given)
{
    kd_feature_args args = *given;
    for (const kd_read *read = type->reads; read->name; read++) KD_TRY(check_read(&args, read));
    const int64_t units = kd_feature_operand(&args, type->reads[0].name, false)->shape[0];
    KD_TRY(kd_tensor_expect(&args.loss, "loss", KD_F32, KD_SHAPE(units)));
    KD_TRY(kd_tensor_expect(&args.scale, "scale", KD_F32, KD_SHAPE(1)));
    if (kd_present(&args.weight))
        KD_TRY(kd_tensor_expect(&args.weight, "weight", KD_F32, KD_SHAPE(units)));
    const kd_mark mark = kd_stack_mark(exec->stack);
    const kd_status status = type->run(exec, &args);
    kd_stack_release(exec->stack, mark);
    return status;
}

kd_status kd_feature_run(kd_exec *exec, const kd_feature_type *type, const kd_feature_args *args)
{
    const kd_status status = run(exec, type, args);
    return status == KD_OK ? KD_OK : kd_fail(status, "%s: %s", type->name, kd_last_error());
}
