/* One loss over features or relations, from file to file. */
#include "verb/loss_projector.h"
#include "verb/verb.h"

/* ---- the registry ----------------------------------------------------------------------------- */

int kd_feature_count(void) { return KD_FEATURE_COUNT; }

int kd_feature_find(const char *name)
{
    for (int i = 0; i < KD_FEATURE_COUNT; i++)
        if (strcmp(kd_feature_types[i]->name, name) == 0) return i;
    return -1;
}

kd_status kd_feature_describe(kd_feature_info *info, int loss)
{
    if (loss < 0 || loss >= KD_FEATURE_COUNT)
        return kd_fail(KD_EINVAL, "feature loss number %d; there are %d", loss, KD_FEATURE_COUNT);
    const kd_feature_type *type = kd_feature_types[loss];
    *info = (kd_feature_info){ .name = type->name,
                               .help = type->help,
                               .unit = type->unit == KD_UNIT_TOKEN ? "token" : "sample",
                               .options = type->options,
                               .reads = type->reads };
    return KD_OK;
}

/* ---- a file's tensors ------------------------------------------------------------------------- */

/* `host` has every tensor that the file has; results come back into `loss` and the gradients. */
typedef struct job {
    const kd_feature_type *type;
    const void *options;
    kd_arena *arena;
    kd_st_file *in;
    kd_st_writer *out;
    kd_device *device;
    kd_stack stack;
    kd_feature_args host;
    kd_file_projector behind; /* the student's features; they themselves are in `host` */
    int64_t units;
} job;

static const float one = 1.0f;

static kd_status take(kd_tensor *t, job *j, kd_dtype dtype, kd_shape shape)
{
    unsigned char *data;
    *t = kd_tensor_of(NULL, dtype, shape);
    KD_TRY(KD_ARENA_ARRAY(&data, j->arena, kd_max_i64((int64_t)kd_tensor_bytes(t), 1)));
    t->data = data;
    return KD_OK;
}

/* Beside a dimension of 0 the others may be anything, and a file without data ask for any memory. */
static kd_status check_filled(const job *j, const kd_st_entry *e)
{
    char shape[128];
    if (e->elements > 0) return KD_OK;
    return kd_fail(KD_EFORMAT, "%s: %s is %s; expected no dimension of 0", j->in->path, e->name,
                   kd_shape_text(shape, sizeof shape, e->rank, e->shape));
}

static kd_status read_floats(kd_tensor *t, job *j, const char *name, int rank, const char *shape)
{
    const kd_st_entry *e = kd_st_find(j->in, name);
    if (e->rank != rank || (e->dtype != KD_F32 && e->dtype != KD_BF16 && e->dtype != KD_F16))
        return kd_fail(KD_EFORMAT, "%s: %s is %s of rank %d; expected f32, bf16 or f16 %s",
                       j->in->path, name, e->dtype_name, (int)e->rank, shape);
    KD_TRY(check_filled(j, e));
    kd_shape s = { rank, { 0 } };
    for (int i = 0; i < rank; i++) s.dim[i] = e->shape[i];
    KD_TRY(take(t, j, KD_F32, s));
    return kd_st_read(t->data, KD_F32, j->in, e, 0, e->elements);
}

static kd_status read_integers(kd_tensor *t, job *j, const kd_read *read)
{
    const kd_st_entry *e = kd_st_find(j->in, read->name);
    const int rank = kd_read_rank(read);
    int32_t *values;
    int64_t count;
    KD_TRY(kd_verb_integers(&values, &count, j->arena, j->in, read->name, rank));
    KD_TRY(check_filled(j, e));
    kd_shape s = { rank, { 0 } };
    for (int i = 0; i < rank; i++) s.dim[i] = e->shape[i];
    *t = kd_tensor_of(values, KD_I32, s);
    return KD_OK;
}

/* A parameter that nobody has trained yet; behind a projector the first operand has the teacher's shape. */
static kd_status begin(kd_tensor *t, job *j, const kd_read *read)
{
    const char *name = j->behind.projector.options ? "teacher" : j->type->reads[0].name;
    const kd_tensor *first = kd_feature_operand(&j->host, name, false);
    const int64_t n = kd_parameter_elements(j->type, read, first);
    KD_TRY(take(t, j, KD_F32, KD_SHAPE(n)));
    for (int64_t i = 0; i < n; i++) ((float *)t->data)[i] = j->type->begin(j->options);
    return KD_OK;
}

static kd_status read_operand(job *j, const kd_read *read)
{
    kd_tensor *t = kd_feature_operand(&j->host, read->name, false);
    const bool found = kd_st_find(j->in, read->name);
    if (!found && read->flags & KD_READ_PARAMETER) {
        KD_TRY(begin(t, j, read));
        return take(kd_feature_operand(&j->host, read->name, true), j, KD_F32, kd_shape_of(t));
    }
    if (!found) {
        if (read->flags & KD_READ_OPTIONAL) return KD_OK;
        return kd_fail(KD_EFORMAT, "%s: no tensor \"%s\" %s, which %s reads", j->in->path,
                       read->name, read->shape, j->type->name);
    }
    if (read->flags & KD_READ_INTEGER) return read_integers(t, j, read);
    KD_TRY(read_floats(t, j, read->name, kd_read_rank(read), read->shape));
    if (!(read->flags & KD_READ_GRADIENT)) return KD_OK;
    return take(kd_feature_operand(&j->host, read->name, true), j, KD_F32, kd_shape_of(t));
}

/* A projector's products go over all rows: what a unit of weight 0 holds may be anything. */
static void clear_unread(const job *j)
{
    const kd_tensor *weight = &j->host.weight;
    for (int64_t i = 0; kd_present(weight) && i < kd_min_i64(j->units, weight->shape[0]); i++) {
        const kd_tensor unit = kd_tensor_slice(&j->host.student, 0, i, 1);
        if (((const float *)weight->data)[i] == 0.0f) memset(unit.data, 0, kd_tensor_bytes(&unit));
    }
}

static kd_status read_all(job *j, const char *in)
{
    KD_TRY(kd_st_open(&j->in, in));
    for (const kd_read *read = j->type->reads; read->name; read++) KD_TRY(read_operand(j, read));
    j->units = kd_feature_operand(&j->host, j->type->reads[0].name, false)->shape[0];
    if (kd_st_find(j->in, "weight"))
        KD_TRY(read_floats(&j->host.weight, j, "weight", 1, "[units]"));
    KD_TRY(kd_file_projector_read(&j->behind, j->arena, j->in, &j->host.student, &j->host.teacher));
    if (j->behind.projector.options) clear_unread(j);
    return take(&j->host.loss, j, KD_F32, KD_SHAPE(j->units));
}

/* ---- on the device ---------------------------------------------------------------------------- */

static kd_status put(kd_tensor *to, kd_exec *exec, const char *name, const kd_tensor *from)
{
    if (!kd_present(from)) return KD_OK;
    KD_TRY(kd_push(to, exec, name, from->dtype, kd_shape_of(from)));
    return kd_tensor_elements(from) ? kd_upload(exec, to, from->data) : KD_OK;
}

static kd_status get(const kd_tensor *to, kd_exec *exec, const kd_tensor *from)
{
    return kd_tensor_elements(to) ? kd_download(exec, to->data, from) : KD_OK;
}

static kd_status put_operand(kd_feature_args *args, job *j, kd_exec *exec, const kd_read *read)
{
    const kd_tensor *host = kd_feature_operand(&j->host, read->name, false);
    KD_TRY(put(kd_feature_operand(args, read->name, false), exec, read->name, host));
    if (!(read->flags & KD_READ_GRADIENT) || !kd_present(host)) return KD_OK;
    kd_tensor *gradient = kd_feature_operand(args, read->name, true);
    KD_TRY(kd_push(gradient, exec, "gradient", KD_F32, kd_shape_of(host)));
    return KD_RUN(exec, fill, .y = gradient, .value = 0.0f);
}

/* The loss over what the projector makes of the student's features. */
static kd_status run_behind(kd_exec *exec, const kd_feature_type *type,
                            const kd_feature_args *given, const kd_file_projector *behind)
{
    const kd_tensor *x = &given->student, *dx = &given->d_student;
    kd_feature_args args = *given;
    kd_projected projected;
    KD_TRY(kd_projector_forward(&projected, exec, x, &behind->slab, &behind->projector));
    args.student = projected.y;
    KD_TRY(kd_push(&args.d_student, exec, "d projector output", KD_F32, kd_shape_of(&projected.y)));
    KD_TRY(KD_RUN(exec, fill, .y = &args.d_student, .value = 0.0f));
    KD_TRY(kd_feature_run(exec, type, &args));
    KD_TRY(kd_projector_backward(exec, dx, &args.d_student, x, &projected, &behind->slab,
                                 &behind->projector));
    return kd_file_projector_fetch(behind, exec);
}

/* Scale 1: the gradient is that of the sum of the units' losses. */
static kd_status run(job *j)
{
    kd_exec exec = { .device = j->device, .stack = &j->stack };
    const kd_tensor scale = kd_tensor_of((void *)&one, KD_F32, KD_SHAPE(1));
    const kd_mark mark = kd_stack_mark(exec.stack);
    kd_feature_args args = { .options = j->options };
    for (const kd_read *r = j->type->reads; r->name; r++) KD_TRY(put_operand(&args, j, &exec, r));
    KD_TRY(put(&args.weight, &exec, "weight", &j->host.weight));
    KD_TRY(put(&args.scale, &exec, "scale", &scale));
    KD_TRY(kd_push(&args.loss, &exec, "loss", KD_F32, KD_SHAPE(j->units)));
    KD_TRY(j->behind.projector.options ? run_behind(&exec, j->type, &args, &j->behind)
                                       : kd_feature_run(&exec, j->type, &args));
    KD_TRY(get(&j->host.loss, &exec, &args.loss));
    for (const kd_read *r = j->type->reads; r->name; r++) {
        const kd_tensor *value = kd_feature_operand(&j->host, r->name, false);
        if (r->flags & KD_READ_STATE)
            KD_TRY(get(value, &exec, kd_feature_operand(&args, r->name, false)));
        if (!(r->flags & KD_READ_GRADIENT) || !kd_present(value)) continue;
        KD_TRY(get(kd_feature_operand(&j->host, r->name, true), &exec,
                   kd_feature_operand(&args, r->name, true)));
    }
    kd_stack_release(exec.stack, mark);
    return kd_planning(&exec) ? KD_OK : kd_sync(&exec);
}

static kd_status plan_and_run(job *j, const char *device)
{
    KD_TRY(kd_device_open(&j->device, device ? device : "cpu"));
    KD_TRY(kd_file_projector_open(&j->behind, j->device));
    j->stack = (kd_stack){ .planning = true };
    KD_TRY(run(j));
    KD_TRY(kd_stack_open(&j->stack, j->device));
    return run(j);
}

/* ---- results ---------------------------------------------------------------------------------- */

/* visit(writer, name, tensor) of everything that the loss writes. */
typedef kd_status (*visitor)(kd_st_writer *out, const char *name, const kd_tensor *t);

static kd_status declare(kd_st_writer *out, const char *name, const kd_tensor *t)
{
    return kd_st_writer_declare(out, name, t->dtype, t->rank, t->shape);
}

static kd_status write(kd_st_writer *out, const char *name, const kd_tensor *t)
{
    return kd_st_writer_write(out, name, t->data, kd_tensor_bytes(t));
}

static kd_status visit_results(job *j, visitor visit)
{
    KD_TRY(visit(j->out, "loss", &j->host.loss));
    for (const kd_read *r = j->type->reads; r->name; r++) {
        const kd_tensor *t = kd_feature_operand(&j->host, r->name, false);
        const char *gradient;
        if (r->flags & KD_READ_STATE) KD_TRY(visit(j->out, r->name, t));
        if (!(r->flags & KD_READ_GRADIENT) || !kd_present(t)) continue;
        KD_TRY(kd_arena_format(&gradient, j->arena, "d_%s", r->name));
        KD_TRY(visit(j->out, gradient, kd_feature_operand(&j->host, r->name, true)));
    }
    for (int i = 0; i < j->behind.params.count; i++) {
        const char *gradient;
        if (!kd_present(&j->behind.gradients[i])) continue;
        KD_TRY(kd_arena_format(&gradient, j->arena, "d_%s", j->behind.params.items[i].name));
        KD_TRY(visit(j->out, gradient, &j->behind.gradients[i]));
    }
    return KD_OK;
}

static kd_status write_all(job *j, const char *out)
{
    KD_TRY(kd_st_writer_create(&j->out, out));
    KD_TRY(visit_results(j, declare));
    KD_TRY(kd_st_writer_begin(j->out));
    KD_TRY(visit_results(j, write));
    kd_st_writer *writer = j->out;
    j->out = NULL;
    return kd_st_writer_close(writer);
}

kd_status kd_feature_file(int loss, const char *in, const char *out, const void *options,
                          const kd_projector_options *projector, const char *device)
{
    kd_feature_info info;
    KD_TRY(kd_feature_describe(&info, loss));
    job j = { .type = kd_feature_types[loss], .options = options };
    kd_status status;
    KD_TRY(kd_file_projector_choose(&j.behind, j.type, projector));
    KD_TRY_GOTO(kd_arena_create(&j.arena), status, done);
    KD_TRY_GOTO(read_all(&j, in), status, done);
    KD_TRY_GOTO(kd_verb_of_file(in, plan_and_run(&j, device)), status, done);
    status = write_all(&j, out);
done:
    kd_st_writer_abort(j.out);
    if (j.device) kd_stack_close(&j.stack, j.device);
    kd_file_projector_close(&j.behind);
    kd_device_close(j.device);
    kd_st_close(j.in);
    kd_arena_destroy(j.arena);
    return status;
}
