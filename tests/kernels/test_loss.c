/*
 * kd_loss_apply and kd_loss_file on a CUDA device against the same on the CPU: every loss, both types,
 * padded rows, rows that are ignored, and a label that only the elements tell.
 */
#include "format/format.h"
#include "support/students.h"

#include <kd/loss.h>

enum { ROWS = 7, COLUMNS = 75, TEACHER_COLUMNS = 71 };

static void make(kd_loss_tensors *t, test_bench *b, kd_dtype dtype, bool full)
{
    b->seed = 3;
    *t = (kd_loss_tensors){
        .student = test_filled(b, dtype, KD_SHAPE(ROWS, COLUMNS), full ? 5 : 0, -4, 4),
        .teacher = test_filled(b, dtype, KD_SHAPE(ROWS, TEACHER_COLUMNS), full ? 1 : 0, -4, 4),
        .loss = test_tensor(b, KD_F32, KD_SHAPE(ROWS), 0),
        .labels = test_tensor(b, KD_I32, KD_SHAPE(ROWS), 0)
    };
    for (int n = 0; n < ROWS; n++) test_set(&t->labels, n, n == 2 ? -1 : 9 * n);
    if (full) t->weight = test_filled(b, KD_F32, KD_SHAPE(ROWS), 1, 0.5, 2);
}

static void require_cuda(void)
{
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
}

static void check(test_bench *b, int loss, kd_dtype dtype, bool full)
{
    const int mark = test_mark(b);
    kd_loss_info info;
    kd_loss_tensors cpu, gpu;
    test_ok(kd_loss_describe(&info, loss));
    kd_loss_options options = { .temperature = full ? 2.5 : 0.0,
                                .t_squared = full,
                                .option = info.option_default,
                                .classes = full ? TEACHER_COLUMNS - 2 : 0 };
    make(&cpu, b, dtype, full);
    make(&gpu, b, dtype, full);
    test_ok(kd_loss_apply(loss, &cpu, &options));
    options.device = "cuda";
    test_ok(kd_loss_apply(loss, &gpu, &options));
    /* T^2 at most, twice the weight, of logits up to 4. */
    const double scale = 8 * 2 * 2.5 * 2.5;
    test_near(&gpu.loss, test_doubles(b, &cpu.loss), scale, COLUMNS, "%s: loss", info.name);
    test_near(&gpu.student, test_doubles(b, &cpu.student), scale, COLUMNS, "%s: d_student",
              info.name);
    test_release(b, mark);
}

Test(loss, has_the_cpu_s_values_on_a_device)
{
    test_bench b;
    require_cuda();
    test_open(&b, 1 << 10);
    for (int loss = 0; loss < kd_loss_count(); loss++)
        for (int way = 0; way < 4; way++) check(&b, loss, way & 1 ? KD_BF16 : KD_F32, way & 2);
    test_close(&b);
}

Test(loss, refuses_on_a_device_what_the_cpu_refuses)
{
    test_bench b;
    kd_loss_tensors t;
    int loss;
    kd_loss_options options = { .device = "cuda" };
    require_cuda();
    test_open(&b, 1 << 10);
    test_ok(kd_loss_find(&loss, "ce"));
    make(&t, &b, KD_F32, true);
    test_set(&t.labels, 4, COLUMNS);
    test_refused(kd_loss_apply(loss, &t, &options), KD_EINVAL, "row 4: label 75");
    t.labels = (kd_tensor){ 0 };
    test_refused(kd_loss_apply(loss, &t, &options), KD_EINVAL, "needs labels");
    options.device = "cuda:77";
    test_refused(kd_loss_apply(loss, &t, &options), KD_EDEVICE, "cuda:77: ");
    options.device = "gpu";
    test_refused(kd_loss_apply(loss, &t, &options), KD_EINVAL, "expected auto, cpu, cuda");
    test_close(&b);
}

/* ---- from file to file ------------------------------------------------------------------------ */

enum { FILE_ROWS = 5, FILE_COLUMNS = 500000 }; /* four rows are a chunk (verb/loss.c) */

static void write_logits(const char *path, const kd_tensor *student)
{
    kd_st_writer *w;
    test_ok(kd_st_writer_create(&w, path));
    test_ok(kd_st_writer_declare(w, "student", student->dtype, 2, student->shape));
    test_ok(kd_st_writer_begin(w));
    test_ok(kd_st_writer_write(w, "student", student->data, kd_tensor_bytes(student)));
    test_ok(kd_st_writer_close(w));
}

Test(loss, goes_from_file_to_file_over_a_device)
{
    const char *folder = test_folder();
    char in[512], out[512];
    test_bench b;
    kd_st_file *file;
    int loss;
    require_cuda();
    test_open(&b, 1 << 10);
    const kd_loss_options options = { .device = "auto" };
    kd_loss_tensors t = {
        .student = test_filled(&b, KD_F32, KD_SHAPE(FILE_ROWS, FILE_COLUMNS), 0, -9, 9),
        .loss = test_tensor(&b, KD_F32, KD_SHAPE(FILE_ROWS), 0),
    };
    const kd_tensor got = test_tensor(&b, KD_F32, KD_SHAPE(FILE_ROWS), 0);
    const kd_tensor gradient = test_tensor(&b, KD_F32, KD_SHAPE(FILE_ROWS, FILE_COLUMNS), 0);
    snprintf(in, sizeof in, "%s", test_path(folder, "in"));
    snprintf(out, sizeof out, "%s", test_path(folder, "out"));
    write_logits(in, &t.student);
    test_ok(kd_loss_find(&loss, "z_loss"));
    test_ok(kd_loss_file(loss, in, out, &options));
    test_ok(kd_loss_apply(loss, &t, &options));
    test_ok(kd_st_open(&file, out));
    test_ok(kd_st_read(got.data, KD_F32, file, kd_st_find(file, "loss"), 0, FILE_ROWS));
    test_ok(kd_st_read(gradient.data, KD_F32, file, kd_st_find(file, "d_student"), 0,
                       FILE_ROWS * FILE_COLUMNS));
    kd_st_close(file);
    test_same_bits(&gradient, &t.student, "gradient of a file in chunks");
    test_same_bits(&got, &t.loss, "loss of a file in chunks");
    test_close(&b);
    test_ok(kd_dir_remove(folder));
}
