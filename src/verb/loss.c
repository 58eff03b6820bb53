/* One loss applied to rows: in memory, and from file to file. */
#include "loss/loss.h"
#include "verb/verb.h"

#include <kd/loss.h>
#include <math.h>

/* ---- the registry ----------------------------------------------------------------------------- */

int kd_loss_count(void) { return KD_ROW_COUNT; }

kd_status kd_loss_describe(kd_loss_info *info, int loss)
{
    if (loss < 0 || loss >= KD_ROW_COUNT)
        return kd_fail(KD_EINVAL, "loss number %d; there are %d", loss, KD_ROW_COUNT);
    const kd_row_type *row = &kd_row_types[loss];
    *info = (kd_loss_info){ .name = row->name,
                            .teacher = row->teacher,
                            .label = row->label,
                            .option = row->option,
                            .option_default = row->option_default,
                            .option_min = row->option_min,
                            .option_max = row->option_max,
                            .option2 = row->option2,
                            .option2_default = row->option2_default,
                            .option2_min = row->option2_min,
                            .option2_max = row->option2_max,
                            .help = row->help };
    return KD_OK;
}

kd_status kd_loss_find(int *loss, const char *name)
{
    kd_row_kind kind;
    KD_TRY(kd_term_kind(&kind, name));
    *loss = (int)kind;
    return KD_OK;
}

/* ---- rows in memory --------------------------------------------------------------------------- */

/* One plan, made with the largest chunk, serves every chunk. */
typedef struct applier {
    const kd_row_type *type;
    kd_device *device;
    kd_stack stack;
    kd_step_scalars scalars;
    kd_row_terms terms;
    int64_t classes;
    bool standardise;
    kd_topk topk;
    float capture; /* temperature of a top-k teacher */
} applier;

static kd_status check_option(const kd_row_type *type, const char *name, double value, double min,
                              double max)
{
    if (name && !(value >= min && value <= max))
        return kd_fail(KD_EINVAL, "%s: %s is %g; expected %g to %g", type->name, name, value, min,
                       max);
    return KD_OK;
}

static kd_status check_options(const kd_row_type *type, const kd_loss_options *o)
{
    KD_TRY(check_option(type, type->option, o->option, type->option_min, type->option_max));
    KD_TRY(check_option(type, type->option2, o->option2, type->option2_min, type->option2_max));
    if (o->standardise && !type->teacher)
        return kd_fail(KD_EINVAL, "%s: standardise is for losses that read a teacher", type->name);
    if ((unsigned)o->topk > KD_LOSS_SAMPLED)
        return kd_fail(KD_EINVAL, "%s: topk is %d", type->name, (int)o->topk);
    if (!(o->temperature >= 0.0) || isinf(o->temperature))
        return kd_fail(KD_EINVAL, "%s: temperature is %g; expected above 0", type->name,
                       o->temperature);
    if (o->classes < 0)
        return kd_fail(KD_EINVAL, "%s: classes is %lld", type->name, (long long)o->classes);
    return KD_OK;
}

static kd_tensor scalars_of(applier *a)
{
    return kd_tensor_of(&a->scalars, KD_U8, KD_SHAPE((int64_t)sizeof a->scalars));
}

/* [N] seen as the op's [terms, N]. */
static kd_tensor loss_row(const kd_tensor *loss)
{
    kd_tensor row = *loss;
    row.rank = 2;
    row.shape[0] = 1;
    row.shape[1] = loss->shape[0];
    row.stride[0] = loss->shape[0] * loss->stride[0];
    row.stride[1] = loss->stride[0];
    return row;
}

/* Over the classes that the teacher is known at; as run_dense. */
static kd_status run_topk(applier *a, kd_exec *exec, const kd_loss_tensors *t,
                          const kd_tensor *scalars, const kd_loss_tensors *host)
{
    const kd_tensor loss = loss_row(&t->loss);
    const kd_row_loss_topk_args args = { .student = &t->student,
                                         .loss = &loss,
                                         .teacher_ids = &t->teacher_ids,
                                         .teacher_log_p = &t->teacher_log_p,
                                         .teacher_sampling = &t->teacher_sampling,
                                         .teacher_tail = &t->teacher_tail,
                                         .labels = &t->labels,
                                         .weight = &t->weight,
                                         .scalars = scalars,
                                         .terms = &a->terms,
                                         .classes = a->classes,
                                         .mode = a->topk,
                                         .capture = a->capture };
    if (host) {
        kd_row_loss_topk_args values = args;
        const kd_tensor own = scalars_of(a);
        values.labels = &host->labels, values.weight = &host->weight, values.scalars = &own;
        values.student = &host->student, values.teacher_ids = &host->teacher_ids;
        values.teacher_sampling = &host->teacher_sampling;
        KD_TRY(kd_row_loss_topk_check(&args));
        KD_TRY(kd_row_loss_topk_check_values(&values));
    }
    return kd_op_run(exec, KD_OP_row_loss_topk, &args);
}

/* The op over tensors of the device's memory; `host`, where that is another, over its own. */
static kd_status run_dense(applier *a, kd_exec *exec, const kd_loss_tensors *t,
                           const kd_tensor *scalars, const kd_loss_tensors *host)
{
    const kd_tensor loss = loss_row(&t->loss);
    const kd_row_loss_args args = { .student = &t->student,
                                    .loss = &loss,
                                    .teacher = a->type->teacher ? &t->teacher : NULL,
                                    .labels = &t->labels,
                                    .weight = &t->weight,
                                    .scalars = scalars,
                                    .terms = &a->terms,
                                    .classes = a->classes };
    if (host) {
        kd_row_loss_args values = args;
        const kd_tensor own = scalars_of(a);
        values.labels = &host->labels, values.weight = &host->weight, values.scalars = &own;
        KD_TRY(kd_row_loss_check(&args));
        KD_TRY(kd_row_loss_check_values(&values));
    }
    return kd_op_run(exec, KD_OP_row_loss, &args);
}

/* The same over z-scores. */
static kd_status run_standardised(applier *a, kd_exec *exec, const kd_loss_tensors *t,
                                  const kd_tensor *scalars, const kd_loss_tensors *host)
{
    const kd_tensor student = kd_tensor_slice(&t->student, 1, 0, a->classes);
    const kd_tensor teacher = kd_tensor_slice(&t->teacher, 1, 0, a->classes);
    kd_loss_tensors scores = *t;
    kd_zscores own, its;
    kd_tensor d;
    KD_TRY(kd_zscores_make(&own, exec, &student));
    KD_TRY(kd_zscores_make(&its, exec, &teacher));
    scores.student = own.y;
    scores.teacher = its.y;
    KD_TRY(run_dense(a, exec, &scores, scalars, host));
    KD_TRY(kd_push(&d, exec, "d z-scores", KD_F32, kd_shape_of(&own.y)));
    KD_TRY(kd_zscores_backward(exec, &d, &student, &own));
    KD_TRY(KD_RUN(exec, fill, .y = &t->student, .value = 0.0f));
    return KD_RUN(exec, copy, .y = &student, .x = &d);
}

static kd_status run_op(applier *a, kd_exec *exec, const kd_loss_tensors *t,
                        const kd_tensor *scalars, const kd_loss_tensors *host)
{
    if (a->type->teacher && kd_present(&t->teacher_ids)) return run_topk(a, exec, t, scalars, host);
    if (!a->standardise) return run_dense(a, exec, t, scalars, host);
    const kd_mark mark = kd_stack_mark(exec->stack);
    const kd_status status = run_standardised(a, exec, t, scalars, host);
    kd_stack_release(exec->stack, mark);
    return status;
}

/* By rows where the host's rows are padded. */
static kd_status transfer(kd_exec *exec, const kd_tensor *device, const kd_tensor *host, bool back)
{
    if (!kd_present(host) || kd_tensor_elements(host) == 0) return KD_OK;
    if (kd_tensor_contiguous(host))
        return back ? kd_download(exec, host->data, device) : kd_upload(exec, device, host->data);
    for (int64_t i = 0; i < host->shape[0]; i++) {
        const kd_tensor to = kd_tensor_slice(device, 0, i, 1),
                        from = kd_tensor_slice(host, 0, i, 1);
        KD_TRY(transfer(exec, &to, &from, back));
    }
    return KD_OK;
}

static kd_status put(kd_tensor *device, kd_exec *exec, const char *name, const kd_tensor *host)
{
    if (!kd_present(host)) return KD_OK;
    KD_TRY(kd_push(device, exec, name, host->dtype, kd_shape_of(host)));
    return transfer(exec, device, host, false);
}

static kd_status run_over_copies(applier *a, kd_exec *exec, const kd_loss_tensors *t)
{
    kd_loss_tensors copy = { .loss = { 0 } };
    const kd_tensor host_scalars = scalars_of(a);
    kd_tensor scalars;
    KD_TRY(put(&copy.student, exec, "student", &t->student));
    if (a->type->teacher) {
        KD_TRY(put(&copy.teacher, exec, "teacher", &t->teacher));
        KD_TRY(put(&copy.teacher_ids, exec, "teacher ids", &t->teacher_ids));
        KD_TRY(put(&copy.teacher_log_p, exec, "teacher", &t->teacher_log_p));
        KD_TRY(put(&copy.teacher_sampling, exec, "sampling", &t->teacher_sampling));
        KD_TRY(put(&copy.teacher_tail, exec, "teacher tail", &t->teacher_tail));
    }
    KD_TRY(put(&copy.labels, exec, "labels", &t->labels));
    KD_TRY(put(&copy.weight, exec, "weight", &t->weight));
    KD_TRY(put(&scalars, exec, "scalars", &host_scalars));
    KD_TRY(kd_push(&copy.loss, exec, "loss", KD_F32, kd_shape_of(&t->loss)));
    KD_TRY(run_op(a, exec, &copy, &scalars, t));
    KD_TRY(transfer(exec, &copy.loss, &t->loss, true));
    KD_TRY(transfer(exec, &copy.student, &t->student, true));
    return kd_sync(exec);
}

/* What an ignored row holds may be anything; through its z-scores it has reached the gradient. */
static void clear_ignored(const kd_loss_tensors *t)
{
    for (int64_t i = 0; i < t->student.shape[0]; i++) {
        const kd_tensor row = kd_tensor_slice(&t->student, 0, i, 1);
        const bool by_label = kd_present(&t->labels) &&
                              ((const int32_t *)t->labels.data)[i * t->labels.stride[0]] == -1;
        const bool by_weight = kd_present(&t->weight) &&
                               ((const float *)t->weight.data)[i * t->weight.stride[0]] == 0.0f;
        if (by_label || by_weight) memset(row.data, 0, kd_tensor_bytes(&row));
    }
}

static kd_status run(applier *a, const kd_loss_tensors *t)
{
    kd_exec exec = { .device = a->device, .stack = &a->stack };
    const kd_tensor scalars = scalars_of(a);
    if (a->device->type == &kd_device_cpu) {
        KD_TRY(run_op(a, &exec, t, &scalars, NULL));
    } else {
        const kd_mark mark = kd_stack_mark(exec.stack);
        const kd_status status = run_over_copies(a, &exec, t);
        kd_stack_release(exec.stack, mark);
        KD_TRY(status);
    }
    if (a->standardise && !kd_planning(&exec)) clear_ignored(t);
    return KD_OK;
}

static void close_applier(applier *a)
{
    if (a->device) kd_stack_close(&a->stack, a->device);
    kd_device_close(a->device);
    *a = (applier){ 0 };
}

/* Scale 1: the gradient is that of the sum of the rows' losses. */
static kd_status open_applier(applier *a, int loss, const kd_loss_options *o,
                              const kd_loss_tensors *t)
{
    kd_loss_info info;
    KD_TRY(kd_loss_describe(&info, loss));
    *a = (applier){ .type = &kd_row_types[loss],
                    .stack = { .planning = true },
                    .terms = { .count = 1, .kind = { (kd_row_kind)loss } },
                    .classes = o->classes,
                    .standardise = o->standardise,
                    .topk = (kd_topk)o->topk,
                    .capture =
                        o->teacher_temperature != 0.0 ? (float)o->teacher_temperature : 1.0f };
    KD_TRY(check_options(a->type, o));
    KD_TRY(kd_tensor_expect(&t->student, "student", -1, KD_SHAPE(-1, -1)));
    KD_TRY(kd_tensor_expect(&t->loss, "loss", KD_F32, KD_SHAPE(t->student.shape[0])));
    if (a->classes == 0) a->classes = t->student.shape[1];
    if (o->classes == 0 && a->type->teacher && kd_present(&t->teacher) && t->teacher.rank == 2)
        a->classes = kd_min_i64(a->classes, t->teacher.shape[1]);
    const double temperature = o->temperature > 0.0 ? o->temperature : 1.0;
    a->scalars.term[0] =
        (kd_term_scalars){ .scale = 1.0f,
                           .temperature = (float)temperature,
                           .t_squared = o->t_squared ? (float)(temperature * temperature) : 1.0f,
                           .option = (float)o->option,
                           .option2 = (float)o->option2 };
    kd_status status;
    KD_TRY_GOTO(kd_device_open(&a->device, o->device ? o->device : "cpu"), status, failed);
    KD_TRY_GOTO(run(a, t), status, failed);
    KD_TRY_GOTO(kd_stack_open(&a->stack, a->device), status, failed);
    return KD_OK;
failed:
    close_applier(a);
    return status;
}

kd_status kd_loss_apply(int loss, const kd_loss_tensors *tensors, const kd_loss_options *options)
{
    applier a;
    KD_TRY(open_applier(&a, loss, options, tensors));
    const kd_status status = run(&a, tensors);
    close_applier(&a);
    return status;
}

/* ---- from file to file ------------------------------------------------------------------------ */

enum { CHUNK_BYTES = 8 << 20 }; /* of the student's logits */

typedef struct file_job {
    const char *name; /* of the loss */
    kd_arena *arena;
    kd_st_file *in;
    kd_st_writer *out;
    const kd_st_entry *student, *teacher; /* teacher NULL: not read */
    int64_t rows, chunk;
    kd_loss_tensors all;  /* labels, weight: of all rows */
    kd_loss_tensors part; /* buffers of one chunk */
} file_job;

static kd_status find_logits(const kd_st_entry **entry, const file_job *job, const char *name)
{
    *entry = kd_st_find(job->in, name);
    if (!*entry)
        return kd_fail(KD_EFORMAT, "%s: no tensor \"%s\", which %s reads", job->in->path, name,
                       job->name);
    const kd_st_entry *e = *entry;
    if (e->rank != 2 || (e->dtype != KD_F32 && e->dtype != KD_BF16 && e->dtype != KD_F16))
        return kd_fail(KD_EFORMAT, "%s: %s is %s of rank %d; expected f32, bf16 or f16 [n, V]",
                       job->in->path, name, e->dtype_name, (int)e->rank);
    if (e->shape[1] < 1)
        return kd_fail(KD_EFORMAT, "%s: %s has no columns; expected [n, V]", job->in->path, name);
    if (job->student && e->shape[0] != job->student->shape[0])
        return kd_fail(KD_EFORMAT, "%s: %s has %lld rows, student %lld", job->in->path, name,
                       (long long)e->shape[0], (long long)job->student->shape[0]);
    return KD_OK;
}

/* Hugging Face marks an ignored label with -100. */
static kd_status read_labels(file_job *job, bool needed)
{
    int32_t *labels;
    int64_t count;
    if (!needed && !kd_st_find(job->in, "labels")) return KD_OK;
    KD_TRY(kd_verb_integers(&labels, &count, job->arena, job->in, "labels", 1));
    if (count != job->rows)
        return kd_fail(KD_EFORMAT, "%s: labels has %lld rows, student %lld", job->in->path,
                       (long long)count, (long long)job->rows);
    for (int64_t i = 0; i < count; i++)
        if (labels[i] == -100) labels[i] = -1;
    job->all.labels = kd_tensor_of(labels, KD_I32, KD_SHAPE(count));
    return KD_OK;
}

/* f32 [n], or [n, columns], of that name; nothing where the file has none. */
static kd_status read_floats(kd_tensor *to, file_job *job, const char *name, int64_t columns)
{
    const kd_st_entry *entry = kd_st_find(job->in, name);
    const int64_t count = job->rows * (columns ? columns : 1);
    float *data;
    if (!entry) return KD_OK;
    if (entry->rank != (columns ? 2 : 1) || entry->shape[0] != job->rows ||
        entry->elements != count ||
        (entry->dtype != KD_F32 && entry->dtype != KD_BF16 && entry->dtype != KD_F16))
        return kd_fail(KD_EFORMAT, "%s: %s is %s of %lld elements; expected f32 [%lld%s%.0lld]",
                       job->in->path, name, entry->dtype_name, (long long)entry->elements,
                       (long long)job->rows, columns ? ", " : "", (long long)columns);
    KD_TRY(KD_ARENA_ARRAY(&data, job->arena, kd_max_i64(count, 1)));
    KD_TRY(kd_st_read(data, KD_F32, job->in, entry, 0, count));
    *to = kd_tensor_of(data, KD_F32, columns ? KD_SHAPE(job->rows, columns) : KD_SHAPE(job->rows));
    return KD_OK;
}

/* A teacher that is known at some classes of a row. */
static kd_status read_topk(file_job *job)
{
    const kd_st_entry *entry = kd_st_find(job->in, "teacher_ids");
    int32_t *ids;
    int64_t count;
    if (kd_st_find(job->in, "teacher"))
        return kd_fail(KD_EFORMAT, "%s: both teacher and teacher_ids; expected one of them",
                       job->in->path);
    KD_TRY(kd_verb_integers(&ids, &count, job->arena, job->in, "teacher_ids", 2));
    if (entry->shape[0] != job->rows || entry->shape[1] < 1)
        return kd_fail(KD_EFORMAT, "%s: teacher_ids is [%lld, %lld], student has %lld rows",
                       job->in->path, (long long)entry->shape[0], (long long)entry->shape[1],
                       (long long)job->rows);
    const int64_t k = entry->shape[1];
    job->all.teacher_ids = kd_tensor_of(ids, KD_I32, KD_SHAPE(job->rows, k));
    if (!kd_st_find(job->in, "teacher_logprobs"))
        return kd_fail(KD_EFORMAT, "%s: teacher_ids without \"teacher_logprobs\"", job->in->path);
    KD_TRY(read_floats(&job->all.teacher_log_p, job, "teacher_logprobs", k));
    KD_TRY(read_floats(&job->all.teacher_sampling, job, "teacher_sampling", k));
    return read_floats(&job->all.teacher_tail, job, "teacher_tail", 0);
}

static kd_status take_rows(kd_tensor *rows, file_job *job, const kd_st_entry *entry)
{
    float *data;
    int64_t elements;
    if (!kd_mul_i64(&elements, job->chunk, entry->shape[1]))
        return kd_fail(KD_EFORMAT, "%s: %s: too large", job->in->path, entry->name);
    KD_TRY(KD_ARENA_ARRAY(&data, job->arena, kd_max_i64(elements, 1)));
    *rows = kd_tensor_of(data, KD_F32, KD_SHAPE(job->chunk, entry->shape[1]));
    return KD_OK;
}

static kd_status open_job(file_job *job, const kd_row_type *type, const char *in)
{
    float *loss;
    KD_TRY(kd_arena_create(&job->arena));
    KD_TRY(kd_st_open(&job->in, in));
    KD_TRY(find_logits(&job->student, job, "student"));
    job->rows = job->student->shape[0];
    if (type->teacher && kd_st_find(job->in, "teacher_ids"))
        KD_TRY(read_topk(job));
    else if (type->teacher)
        KD_TRY(find_logits(&job->teacher, job, "teacher"));
    const int64_t row_bytes = kd_max_i64(job->student->shape[1], 1) * (int64_t)sizeof(float);
    job->chunk = kd_min_i64(kd_max_i64(CHUNK_BYTES / row_bytes, 1), job->rows);
    KD_TRY(read_labels(job, type->label));
    KD_TRY(read_floats(&job->all.weight, job, "weight", 0));
    KD_TRY(take_rows(&job->part.student, job, job->student));
    if (job->teacher) KD_TRY(take_rows(&job->part.teacher, job, job->teacher));
    KD_TRY(KD_ARENA_ARRAY(&loss, job->arena, kd_max_i64(job->chunk, 1)));
    job->part.loss = kd_tensor_of(loss, KD_F32, KD_SHAPE(job->chunk));
    return KD_OK;
}

static kd_tensor rows_of(const kd_tensor *t, int64_t begin, int64_t count)
{
    return kd_present(t) ? kd_tensor_slice(t, 0, begin, count) : *t;
}

/* The parts of a chunk that are in memory whole. */
static void take_part(kd_loss_tensors *part, const kd_loss_tensors *all, int64_t at, int64_t n)
{
    part->labels = rows_of(&all->labels, at, n);
    part->weight = rows_of(&all->weight, at, n);
    part->teacher_ids = rows_of(&all->teacher_ids, at, n);
    part->teacher_log_p = rows_of(&all->teacher_log_p, at, n);
    part->teacher_sampling = rows_of(&all->teacher_sampling, at, n);
    part->teacher_tail = rows_of(&all->teacher_tail, at, n);
}

static kd_status read_rows(const kd_tensor *to, const file_job *job, const kd_st_entry *entry,
                           int64_t at)
{
    if (!entry) return KD_OK;
    return kd_st_read(to->data, KD_F32, job->in, entry, at * entry->shape[1],
                      to->shape[0] * entry->shape[1]);
}

static kd_status run_chunk(file_job *job, applier *a, int64_t at)
{
    const int64_t n = kd_min_i64(job->chunk, job->rows - at);
    kd_loss_tensors t = { .student = rows_of(&job->part.student, 0, n),
                          .teacher = rows_of(&job->part.teacher, 0, n),
                          .loss = rows_of(&job->part.loss, 0, n) };
    take_part(&t, &job->all, at, n);
    KD_TRY(read_rows(&t.student, job, job->student, at));
    KD_TRY(read_rows(&t.teacher, job, job->teacher, at));
    KD_TRY(run(a, &t));
    KD_TRY(kd_st_writer_write(job->out, "loss", t.loss.data, kd_tensor_bytes(&t.loss)));
    return kd_st_writer_write(job->out, "d_student", t.student.data, kd_tensor_bytes(&t.student));
}

static kd_status declare(const file_job *job)
{
    KD_TRY(kd_st_writer_declare(job->out, "loss", KD_F32, 1, &job->rows));
    KD_TRY(kd_st_writer_declare(job->out, "d_student", KD_F32, 2, job->student->shape));
    return kd_st_writer_begin(job->out);
}

kd_status kd_loss_file(int loss, const char *in, const char *out, const kd_loss_options *options)
{
    kd_loss_info info;
    KD_TRY(kd_loss_describe(&info, loss));
    file_job job = { .name = info.name };
    applier a = { 0 };
    kd_status status;
    KD_TRY_GOTO(open_job(&job, &kd_row_types[loss], in), status, done);
    /* The plan sees the largest chunk; labels and weights only have to be there. */
    kd_loss_tensors shapes = job.part;
    take_part(&shapes, &job.all, 0, kd_min_i64(job.chunk, job.rows));
    if (job.rows > 0)
        KD_TRY_GOTO(kd_verb_of_file(in, open_applier(&a, loss, options, &shapes)), status, done);
    KD_TRY_GOTO(kd_st_writer_create(&job.out, out), status, done);
    KD_TRY_GOTO(declare(&job), status, done);
    for (int64_t at = 0; at < job.rows; at += job.chunk)
        KD_TRY_GOTO(kd_verb_of_file(in, run_chunk(&job, &a, at)), status, done);
    status = kd_st_writer_close(job.out);
    job.out = NULL;
done:
    kd_st_writer_abort(job.out);
    close_applier(&a);
    kd_st_close(job.in);
    kd_arena_destroy(job.arena);
    return status;
}
