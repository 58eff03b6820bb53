/* The operands of a cell: as many sets as no cache holds, and patterns that a peer can repeat. */
#include "bench/bench.h"

#include <stdlib.h>

/* ---- tensors ---------------------------------------------------------------------------------- */

static const kd_tensor none; /* stands for a tensor that could not be made */

static kd_tensor *take(bench_run *run, int set, kd_dtype dtype, kd_shape shape)
{
    if (run->status != KD_OK) return NULL;
    if (run->count[set] >= BENCH_TENSORS) {
        run->status = kd_fail(KD_EINTERNAL, "more than %d tensors in a cell", BENCH_TENSORS);
        return NULL;
    }
    kd_tensor *t = &run->tensor[set][run->count[set]++];
    *t = kd_tensor_of((void *)KD_STACK_ALIGN, dtype, shape);
    if (set == 0) run->operand_bytes += kd_tensor_bytes(t);
    if (run->counting) return t;
    run->status = kd_device_alloc(&t->data, run->exec.device, kd_tensor_bytes(t), "operand");
    return run->status == KD_OK ? t : NULL;
}

/* While the stack still plans, when kd_upload does nothing. */
static kd_status upload(bench_run *run, const kd_tensor *t, const void *from, size_t bytes)
{
    kd_device *device = run->exec.device;
    return device->type->upload(device, NULL, t->data, from, bytes);
}

/* Within the device's memory. */
static kd_status copy(bench_run *run, const kd_tensor *t, size_t at, const void *from, size_t bytes)
{
    kd_device *device = run->exec.device;
    return device->type->copy(device, NULL, (char *)t->data + at, from, bytes);
}

const kd_tensor *kd_bench_zeros(bench_run *run, int set, kd_dtype dtype, kd_shape shape)
{
    const kd_tensor *t = take(run, set, dtype, shape);
    return t ? t : &none;
}

const kd_tensor *kd_bench_given(bench_run *run, int set, kd_dtype dtype, kd_shape shape,
                                const void *values)
{
    const kd_tensor *t = take(run, set, dtype, shape);
    if (!t) return &none;
    if (!run->counting) run->status = upload(run, t, values, kd_tensor_bytes(t));
    return t;
}

/* [0, 1) with 24 bits; any language with 64-bit integers can say it. */
double kd_bench_hashed(int64_t index, unsigned salt)
{
    const uint64_t mixed = ((uint64_t)index + 1) * 2654435761u + (uint64_t)salt * 40503u;
    const uint64_t folded = (mixed & 0xffffffffu) * 2246822519u;
    return (double)(folded >> 8 & 0xffffffu) * 0x1p-24;
}

static void fill_period(void *to, kd_dtype dtype, int64_t count, double low, double high,
                        unsigned salt)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        const double x = low + (high - low) * kd_bench_hashed(i, salt);
        if (dtype == KD_F32) ((float *)to)[i] = (float)x;
        if (dtype == KD_BF16) ((uint16_t *)to)[i] = kd_f32_to_bf16((float)x);
        if (dtype == KD_F8_E4M3) ((uint8_t *)to)[i] = kd_f32_to_e4m3((float)x);
        if (dtype == KD_I32) ((int32_t *)to)[i] = (int32_t)x;
    }
}

const kd_tensor *kd_bench_filled(bench_run *run, int set, kd_dtype dtype, kd_shape shape,
                                 double low, double high, unsigned salt)
{
    const kd_tensor *t = take(run, set, dtype, shape);
    if (!t || run->counting) return t ? t : &none;
    const int64_t elements = kd_tensor_elements(t), rows = 64 * kd_tensor_columns(t);
    const int64_t period =
        shape.rank == 1 ? kd_min_i64(elements, 1 << 20) : kd_min_i64(elements, rows);
    const size_t bytes = (size_t)period * kd_dtype_size(dtype), all = kd_tensor_bytes(t);
    void *host = malloc(bytes ? bytes : 1);
    if (!host) {
        run->status = kd_fail(KD_ENOMEM, "no memory for %zu bytes of pattern", bytes);
        return t;
    }
    fill_period(host, dtype, period, low, high, salt);
    run->status = upload(run, t, host, bytes);
    /* Doubled on the device from what is there already: whole periods first. */
    for (size_t done = bytes; done < all && run->status == KD_OK;) {
        const size_t more = done < all - done ? done : all - done;
        run->status = copy(run, t, done, t->data, more);
        done += more;
    }
    free(host);
    return t;
}

/* ---- a cell ----------------------------------------------------------------------------------- */

kd_status kd_bench_once(bench_run *run, int set)
{
    if (run->row->run) return run->row->run(run, set);
    return kd_op_run(&run->exec, (kd_op_id)run->row->op, run->args[set]);
}

/* Sets enough that going round them passes 256 MB, which no second-level cache holds, at most what
 * half of the memory has room for. */
static int sets_for(const bench_run *run)
{
    kd_device_info info;
    kd_device_describe(&info, run->exec.device);
    const int64_t bytes = (int64_t)(run->operand_bytes ? run->operand_bytes : 1);
    const int64_t wanted = kd_max_i64(kd_ceil_div((int64_t)256 << 20, bytes), 3);
    const int64_t room = (int64_t)(info.memory / 2) / bytes;
    return (int)kd_max_i64(1, kd_min_i64(kd_min_i64(wanted, room), BENCH_SETS));
}

/* What the run spoils is put back from a copy of set 0, which is what every set holds. */
static kd_status keep_pristine(bench_run *run)
{
    if (run->row->restored < 0) return KD_OK;
    const kd_tensor *from = &run->tensor[0][run->row->restored];
    run->pristine = *from;
    KD_TRY(kd_device_alloc(&run->pristine.data, run->exec.device, kd_tensor_bytes(from), "copy"));
    return copy(run, &run->pristine, 0, from->data, kd_tensor_bytes(from));
}

/* As a run does before its first step.  The memory that products are tried in is not the cell's. */
static kd_status tune(bench_run *run)
{
    if (!run->exec.device->tune) return KD_OK;
    kd_stack room = { .planning = true };
    kd_exec exec = run->exec;
    kd_tensor tried;
    exec.stack = &room;
    const int64_t bytes = (int64_t)(run->operand_bytes + run->stack.peak);
    KD_TRY(kd_push(&tried, &exec, "tuning", KD_U8, KD_SHAPE(bytes)));
    KD_TRY(kd_stack_open(&room, exec.device));
    const kd_status status = kd_device_tune(&exec);
    kd_stack_close(&room, exec.device);
    return status;
}

static kd_status open(bench_run *run)
{
    KD_TRY(kd_arena_create(&run->arena));
    run->counting = true;
    run->stack.planning = true;
    run->exec.stack = &run->stack;
    run->row->open(run, 0);
    KD_TRY(run->status);
    run->sets = sets_for(run);
    run->counting = false;
    run->operand_bytes = 0;
    run->count[0] = 0;
    for (int set = 0; set < run->sets; set++) {
        run->row->open(run, set);
        KD_TRY(run->status);
    }
    KD_TRY(keep_pristine(run));
    for (int set = 0; set < run->sets; set++) KD_TRY(kd_bench_once(run, set)); /* only counts */
    KD_TRY(tune(run));
    return kd_stack_open(&run->stack, run->exec.device);
}

kd_status kd_bench_open(bench_run *run, kd_device *device, const bench_row *row,
                        const bench_shape *shape)
{
    *run = (bench_run){ .row = row, .shape = shape, .exec.device = device };
    const kd_status status = open(run);
    if (status != KD_OK) kd_bench_close(run);
    return status;
}

/* A view has the memory of a tensor beside it. */
static bool owned(const bench_run *run, int set, int i)
{
    for (int j = 0; j < run->count[set]; j++)
        if (j != i && run->tensor[set][j].data == run->tensor[set][i].data) return j > i;
    return true;
}

void kd_bench_close(bench_run *run)
{
    kd_device *device = run->exec.device;
    for (int set = 0; set < run->sets && !run->counting; set++)
        for (int i = 0; i < run->count[set]; i++)
            if (owned(run, set, i)) kd_device_release(device, run->tensor[set][i].data);
    kd_device_release(device, run->pristine.data);
    if (!run->stack.planning) kd_stack_close(&run->stack, device);
    kd_arena_destroy(run->arena);
}
