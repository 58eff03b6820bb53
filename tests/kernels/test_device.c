/*
 * A CUDA device itself: opening, what it says of itself and of what is missing, memory, copies, events,
 * graphs, and the two ways of looking for a wrong kernel, KD_POISON and KD_ON_CPU.
 */
#include "support/emulated.h"
#include "support/parity.h"

#include <stdlib.h>

enum { HALF = 8 << 20 }; /* of the memory that uploads pass through: see src/device/cuda_stage.c */

/* ---- a device with memory --------------------------------------------------------------------- */

typedef struct fixture {
    kd_device *device;
    kd_stack stack;
    kd_exec exec;
    unsigned char *memory, *host; /* [bytes] */
    size_t bytes;
} fixture;

static void open_fixture(fixture *f, size_t bytes)
{
    void *memory;
    *f = (fixture){ .bytes = bytes };
    if (kd_device_cuda.count() == 0) cr_skip_test("no CUDA device");
    test_ok(kd_device_cuda.open(&f->device, 0));
    test_ok(kd_device_alloc(&memory, f->device, bytes, "test"));
    f->memory = memory;
    f->host = malloc(bytes + 1);
    cr_assert_not_null(f->host);
    f->exec = (kd_exec){ .device = f->device, .stack = &f->stack };
}

static void close_fixture(fixture *f)
{
    kd_device_release(f->device, f->memory);
    kd_device_close(f->device);
    free(f->host);
}

/* Bytes of device memory from `at`. */
static kd_tensor part(const fixture *f, size_t at, size_t bytes)
{
    return kd_tensor_of(f->memory + at, KD_U8, KD_SHAPE((int64_t)bytes));
}

static unsigned char pattern(size_t i, unsigned seed)
{
    return (unsigned char)((i * 2654435761u + seed * 40503u) >> 13);
}

static void write_pattern(unsigned char *to, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++) to[i] = pattern(i, seed);
}

static void expect_pattern(const unsigned char *found, size_t bytes, unsigned seed,
                           const char *what)
{
    size_t i = 0;
    while (i < bytes && found[i] == pattern(i, seed)) i++;
    cr_assert(i == bytes, "%s: byte %zu of %zu is %d, expected %d", what, i, bytes, (int)found[i],
              (int)pattern(i, seed));
}

/* All of the device's memory into f->host. */
static void fetch(fixture *f)
{
    const kd_tensor all = part(f, 0, f->bytes);
    memset(f->host, 0x5a, f->bytes);
    test_ok(kd_download(&f->exec, f->host, &all));
    test_ok(kd_sync(&f->exec));
}

static void expect_bytes(fixture *f, size_t at, size_t bytes, int value, const char *what)
{
    fetch(f);
    for (size_t i = at; i < at + bytes; i++)
        cr_assert(f->host[i] == value, "%s: byte %zu is %d, expected %d", what, i, (int)f->host[i],
                  value);
}

static void fill(fixture *f, int value)
{
    test_ok(f->device->type->fill(f->device, f->exec.queue, f->memory, value, f->bytes));
}

/* ---- opening ---------------------------------------------------------------------------------- */

Test(device, says_what_it_is)
{
    for (int again = 0; again < 2; again++) {
        fixture f;
        kd_device_info info;
        open_fixture(&f, 1);
        kd_device_describe(&info, f.device);
        const int capability = kd_cuda_limits_of(&f.exec)->capability;
        char end[16];
        snprintf(end, sizeof end, ", sm_%d", capability);
        cr_assert_str_eq(info.type, "cuda");
        cr_assert(capability >= 80 && strstr(info.name, end) && *info.name != ',', "name \"%s\"",
                  info.name);
        cr_assert(strtod(info.driver, NULL) >= 12 && strncmp(info.software, "CUDA 1", 6) == 0 &&
                      strstr(info.software, ", cuBLASLt 1"),
                  "driver \"%s\", software \"%s\"", info.driver, info.software);
        cr_assert(info.memory > 0 && info.memory <= info.total, "%zu bytes of %zu", info.memory,
                  info.total);
        close_fixture(&f);
    }
}

Test(device, that_is_not_there_is_said_to_be_missing)
{
    kd_device *device;
    if (!EMULATED) cr_skip_test("skipped: only the emulator can lose its devices");
    cr_assert_eq(kd_device_cuda.open(&device, 1), KD_EDEVICE);
    cr_assert(strstr(kd_last_error(), "cuda:1: found 1 GPUs (driver "), "%s", kd_last_error());
    cudasim_set("KD_SIM_DEVICES", "0");
    cr_assert_eq(kd_device_cuda.count(), 0);
    cr_assert_eq(kd_device_cuda.open(&device, 0), KD_EDEVICE);
    cr_assert(strstr(kd_last_error(), "cuda:0: found 0 GPUs (driver "), "%s", kd_last_error());
}

/* ---- memory and copies ------------------------------------------------------------------------ */

Test(device, memory_is_zero_and_aligned)
{
    static const size_t sizes[] = { 1, 3, 255, 4096, 1000003 };
    for (int i = 0; i < KD_COUNT(sizes); i++) {
        fixture f;
        open_fixture(&f, sizes[i]);
        cr_assert_eq((uintptr_t)f.memory % KD_STACK_ALIGN, 0);
        expect_bytes(&f, 0, sizes[i], 0, "new memory");
        void *pinned;
        test_ok(kd_device_alloc_host(&pinned, f.device, sizes[i]));
        for (size_t k = 0; k < sizes[i]; k++) cr_assert_eq(((unsigned char *)pinned)[k], 0);
        kd_device_release_host(f.device, pinned);
        close_fixture(&f);
    }
}

/* Each upload's source is spoiled as soon as the call is back. */
Test(device, an_upload_leaves_its_source_free)
{
    static const size_t sizes[] = { 1,      2,        3,    255,      256,          257,
                                    100001, HALF - 1, HALF, HALF + 1, 2 * HALF + 77 };
    fixture f;
    open_fixture(&f, 2 * HALF + 256);
    unsigned char *source = malloc(f.bytes);
    cr_assert_not_null(source);
    for (unsigned i = 0; i < KD_COUNT(sizes); i++) {
        const size_t at = i % 5; /* any byte may be the first */
        const kd_tensor to = part(&f, at, sizes[i]);
        fill(&f, 0xc3);
        write_pattern(source, sizes[i], i);
        test_ok(kd_upload(&f.exec, &to, source));
        memset(source, 0xaa, sizes[i]);
        fetch(&f);
        expect_pattern(f.host + at, sizes[i], i, "upload");
        for (size_t k = 0; k < at; k++) cr_assert_eq(f.host[k], 0xc3);
        for (size_t k = at + sizes[i]; k < at + sizes[i] + 64; k++) cr_assert_eq(f.host[k], 0xc3);
    }
    free(source);
    close_fixture(&f);
}

/* Twice through both halves, in pieces of all sizes, on two queues. */
Test(device, many_uploads_do_not_meet)
{
    enum { PIECES = 400 };
    static size_t starts[PIECES + 1];
    static unsigned char source[200000];
    fixture f;
    kd_event *event;
    for (unsigned i = 0; i < PIECES; i++)
        starts[i + 1] = starts[i] + 1 + (i * 7919u * 131u) % (sizeof source - 1);
    open_fixture(&f, starts[PIECES]);
    kd_exec other = f.exec;
    other.queue = f.device->type->communication(f.device);
    test_ok(kd_event_create(&event, f.device));
    for (unsigned i = 0; i < PIECES; i++) {
        const size_t bytes = starts[i + 1] - starts[i];
        const kd_tensor to = part(&f, starts[i], bytes);
        write_pattern(source, bytes, i);
        test_ok(kd_upload(i % 17 == 3 ? &other : &f.exec, &to, source));
    }
    memset(source, 0, sizeof source);
    test_ok(kd_event_record(&other, event));
    test_ok(kd_event_await(&f.exec, event));
    fetch(&f);
    for (unsigned i = 0; i < PIECES; i++)
        expect_pattern(f.host + starts[i], starts[i + 1] - starts[i], i, "piece");
    kd_event_destroy(f.device, event);
    close_fixture(&f);
}

/* What is pinned may be read after the event, with more work behind it. */
Test(device, a_result_is_there_after_its_event)
{
    fixture f;
    void *pinned;
    kd_event *event;
    open_fixture(&f, 1000);
    const kd_tensor all = part(&f, 0, f.bytes);
    test_ok(kd_device_alloc_host(&pinned, f.device, f.bytes));
    test_ok(kd_event_create(&event, f.device));
    test_ok(kd_event_sync(f.device, event)); /* never recorded: nothing to wait for */
    fill(&f, 17);
    test_ok(kd_download(&f.exec, pinned, &all));
    test_ok(kd_event_record(&f.exec, event));
    fill(&f, 18);
    test_ok(kd_event_sync(f.device, event));
    for (size_t i = 0; i < f.bytes; i++) cr_assert_eq(((unsigned char *)pinned)[i], 17);
    expect_bytes(&f, 0, f.bytes, 18, "what came after");
    kd_event_destroy(f.device, event);
    kd_device_release_host(f.device, pinned);
    close_fixture(&f);
}

/* ---- graphs ----------------------------------------------------------------------------------- */

Test(device, a_graph_runs_when_it_is_launched)
{
    fixture f;
    kd_graph *graph;
    open_fixture(&f, 300);
    cr_assert(f.device->graphs);
    fill(&f, 1);
    test_ok(kd_capture_begin(&f.exec));
    fill(&f, 2);
    test_ok(kd_capture_end(&graph, &f.exec));
    expect_bytes(&f, 0, f.bytes, 1, "captured, not launched");
    for (int i = 0; i < 3; i++) {
        test_ok(kd_graph_launch(&f.exec, graph));
        expect_bytes(&f, 0, f.bytes, 2, "launched");
        fill(&f, 3);
    }
    expect_bytes(&f, 0, f.bytes, 3, "after the last launch");
    kd_graph_destroy(f.device, graph);
    close_fixture(&f);
}

Test(device, the_environment_turns_graphs_off)
{
    fixture f;
    open_fixture(&f, 1);
    setenv("KD_GRAPHS", "1", 1);
    test_ok(kd_device_debug(f.device));
    cr_assert(f.device->graphs);
    setenv("KD_GRAPHS", "0", 1);
    test_ok(kd_device_debug(f.device));
    cr_assert(!f.device->graphs);
    close_fixture(&f);
}

/* ---- failures --------------------------------------------------------------------------------- */

typedef struct failing {
    const char *setting;           /* of KD_SIM_FAIL */
    kd_status (*call)(fixture *f); /* on an open device */
    kd_status want;
    const char *said;
} failing;

static kd_status do_open(fixture *f)
{
    kd_device *device;
    (void)f;
    return kd_device_cuda.open(&device, 0);
}

static kd_status do_alloc(fixture *f)
{
    void *memory;
    return kd_device_alloc(&memory, f->device, 4096, "gradients");
}

static kd_status do_alloc_host(fixture *f)
{
    void *memory;
    return kd_device_alloc_host(&memory, f->device, 4096);
}

static kd_status do_upload(fixture *f)
{
    const kd_tensor all = part(f, 0, f->bytes);
    KD_TRY(kd_upload(&f->exec, &all, f->host));
    return kd_upload(&f->exec, &all, f->host);
}

static kd_status do_download(fixture *f)
{
    const kd_tensor all = part(f, 0, f->bytes);
    return kd_download(&f->exec, f->host, &all);
}

static kd_status do_fill(fixture *f)
{
    return f->device->type->fill(f->device, NULL, f->memory, 0, f->bytes);
}

static kd_status do_sync(fixture *f) { return kd_sync(&f->exec); }

static kd_status do_event(fixture *f)
{
    kd_event *event;
    KD_TRY(kd_event_create(&event, f->device));
    kd_status status = kd_event_record(&f->exec, event);
    if (status == KD_OK) status = kd_event_await(&f->exec, event);
    if (status == KD_OK) status = kd_event_sync(f->device, event);
    kd_event_destroy(f->device, event);
    return status;
}

static kd_status do_graph(fixture *f)
{
    kd_graph *graph;
    KD_TRY(kd_capture_begin(&f->exec));
    KD_TRY(do_fill(f));
    KD_TRY(kd_capture_end(&graph, &f->exec));
    const kd_status status = kd_graph_launch(&f->exec, graph);
    kd_graph_destroy(f->device, graph);
    return status;
}

static kd_status do_launch(fixture *f)
{
    const kd_tensor x = kd_tensor_of(f->memory, KD_F32, KD_SHAPE(1, 64));
    return KD_RUN(&f->exec, add, .y = &x, .a = &x, .b = &x);
}

/* A call that was asked to fail has done nothing: what it should have ended goes on. */
static void end_capture(fixture *f)
{
    kd_graph *graph;
    test_ok(kd_capture_end(&graph, &f->exec));
    kd_graph_destroy(f->device, graph);
}

Test(device, every_failing_call_is_named)
{
    static const failing cases[] = {
        { "cudaSetDevice:1:cudaErrorInvalidDevice", do_open, KD_EDEVICE,
          "cuda:0: cudaSetDevice: " },
        { "cudaDeviceGetAttribute:3", do_open, KD_EDEVICE, "cuda:0: cudaDeviceGetAttribute: " },
        { "cudaGetDeviceProperties:1", do_open, KD_EDEVICE, "cuda:0: cudaGetDeviceProperties: " },
        { "cudaMemGetInfo:1", do_open, KD_EDEVICE, "cuda:0: cudaMemGetInfo: " },
        { "cudaStreamCreateWithPriority:1:cudaErrorMemoryAllocation", do_open, KD_ENOMEM,
          "cuda:0: cudaStreamCreateWithPriority: " },
        { "cudaStreamCreateWithPriority:2", do_open, KD_EDEVICE,
          "cuda:0: cudaStreamCreateWithPriority: " },
        { "cudaMalloc:1", do_alloc, KD_ENOMEM,
          "gradients: 4.1 kB on cuda: cuda:0: cudaMalloc: out of memory "
          "(cudaErrorMemoryAllocation)" },
        { "cudaMalloc:1:cudaErrorIllegalAddress", do_alloc, KD_EDEVICE, "cudaErrorIllegalAddress" },
        { "cudaMemsetAsync:1", do_alloc, KD_EDEVICE, "cuda:0: cudaMemsetAsync: " },
        { "cudaHostAlloc:1:cudaErrorMemoryAllocation", do_alloc_host, KD_ENOMEM,
          "cuda:0: cudaHostAlloc: " },
        { "cudaHostAlloc:2:cudaErrorMemoryAllocation", do_upload, KD_ENOMEM,
          "cuda:0: cudaHostAlloc: " },
        { "cudaEventCreateWithFlags:1", do_upload, KD_EDEVICE,
          "cuda:0: cudaEventCreateWithFlags: " },
        { "cudaMemcpyAsync:1", do_upload, KD_EDEVICE, "cuda:0: cudaMemcpyAsync: " },
        { "cudaEventRecord:1", do_upload, KD_EDEVICE, "cuda:0: cudaEventRecord: " },
        { "cudaEventQuery:1", do_upload, KD_EDEVICE, "cuda:0: cudaEventQuery: " },
        { "cudaMemcpyAsync:1:cudaErrorECCUncorrectable", do_download, KD_EDEVICE,
          "cudaErrorECCUncorrectable" },
        { "cudaMemsetAsync:1", do_fill, KD_EDEVICE, "cuda:0: cudaMemsetAsync: " },
        { "cudaStreamSynchronize:1:cudaErrorIllegalAddress", do_sync, KD_EDEVICE,
          "cuda:0: cudaStreamSynchronize: " },
        { "cudaEventCreateWithFlags:1", do_event, KD_EDEVICE,
          "cuda:0: cudaEventCreateWithFlags: " },
        { "cudaEventRecord:1", do_event, KD_EDEVICE, "cuda:0: cudaEventRecord: " },
        { "cudaStreamWaitEvent:1", do_event, KD_EDEVICE, "cuda:0: cudaStreamWaitEvent: " },
        { "cudaEventSynchronize:1", do_event, KD_EDEVICE, "cuda:0: cudaEventSynchronize: " },
        { "cudaStreamBeginCapture:1", do_graph, KD_EDEVICE, "cuda:0: cudaStreamBeginCapture: " },
        { "cudaStreamEndCapture:1", do_graph, KD_EDEVICE, "cuda:0: cudaStreamEndCapture: " },
        { "cudaGraphInstantiate:1:cudaErrorMemoryAllocation", do_graph, KD_ENOMEM,
          "cuda:0: cudaGraphInstantiate: " },
        { "cudaGraphLaunch:1", do_graph, KD_EDEVICE, "cuda:0: cudaGraphLaunch: " },
        { "cudaLaunchKernelEx:1", do_launch, KD_EDEVICE, "add: cuda:0: add: " },
    };
    if (!EMULATED) cr_skip_test("skipped: only the emulator fails when it is asked to");
    for (int i = 0; i < KD_COUNT(cases); i++) {
        const failing *c = &cases[i];
        fixture f;
        open_fixture(&f, 2 * HALF);
        memset(f.host, 0, f.bytes);
        cudasim_set("KD_SIM_FAIL", c->setting);
        const kd_status status = c->call(&f);
        cudasim_set("KD_SIM_FAIL", "");
        cr_assert(status == c->want && strstr(kd_last_error(), c->said), "%s: %s, \"%s\"",
                  c->setting, kd_status_text(status), kd_last_error());
        if (strncmp(c->setting, "cudaStreamEndCapture", 20) == 0) end_capture(&f);
        test_ok(kd_sync(&f.exec)); /* nobody else is blamed for it */
        close_fixture(&f);
    }
}

/* ---- looking for a wrong kernel ---------------------------------------------------------------- */

static kd_status does_nothing(kd_exec *exec, const kd_fill_args *args)
{
    (void)exec, (void)args;
    return KD_OK;
}

Test(device, poison_shows_what_an_op_did_not_write)
{
    fixture f;
    open_fixture(&f, 4096);
    kd_ops lazy = *f.device->ops;
    lazy.fill = does_nothing;
    f.device->ops = &lazy;
    setenv("KD_POISON", "1", 1);
    test_ok(kd_device_debug(f.device));
    const kd_tensor y = kd_tensor_of(f.memory + 256, KD_F32, KD_SHAPE(3, 7));
    test_ok(KD_RUN(&f.exec, fill, .y = &y, .value = 0.0f));
    expect_bytes(&f, 0, 256, 0, "before the output");
    expect_bytes(&f, 256, 84, 0xff, "the output");
    expect_bytes(&f, 340, 1000, 0, "after the output");
    close_fixture(&f);
}

/* On the GPU's copies the same bits as on the CPU, by the same code. */
static void check_on_cpu(parity *p, kd_op_id op, const void *gpu, const void *cpu,
                         const kd_tensor *got, const kd_tensor *want)
{
    test_ok(kd_device_on_cpu(p->gpu, kd_op_infos[op].name));
    cr_assert(!p->gpu->graphs);
    test_ok(parity_run_gpu(p, op, gpu));
    test_ok(kd_op_run(&p->bench.exec, op, cpu));
    test_same_bits(got, want, "%s", kd_op_infos[op].name);
}

Test(device, an_op_may_run_on_the_cpu)
{
    enum { N = 5, H = 3, D = 8 };
    parity p;
    parity_open(&p, 1 << 20);
    test_bench *b = &p.bench;
    kd_tensor x[2], y[2], w[2], rstd[2], sum[2];
    for (int i = 0; i < 2; i++) {
        b->seed = 7;
        x[i] = test_filled(b, KD_BF16, KD_SHAPE(N, D), 3, -1, 1);
        w[i] = test_filled(b, KD_BF16, KD_SHAPE(D), 0, -1, 1);
        sum[i] = test_filled(b, KD_BF16, KD_SHAPE(N, D), 5, -1, 1);
        y[i] = test_tensor(b, KD_BF16, KD_SHAPE(N, D), 1);
        rstd[i] = test_tensor(b, KD_F32, KD_SHAPE(N), 0);
    }
#define RMS(i)                                                                                     \
    &(kd_rms_norm_args){ .y = &y[i],                                                               \
                         .rstd = &rstd[i],                                                         \
                         .sum = &sum[i],                                                           \
                         .x = &x[i],                                                               \
                         .residual = &sum[i],                                                      \
                         .weight = &w[i],                                                          \
                         .eps = 1e-5f }
    /* `sum` is `residual`: one copy for both. */
    check_on_cpu(&p, KD_OP_rms_norm, RMS(0), RMS(1), &y[0], &y[1]);
    test_same_bits(&sum[0], &sum[1], "sum");
    test_same_bits(&rstd[0], &rstd[1], "rstd");
#undef RMS
    /* Scratch and a transposed view of what another operand holds. */
    kd_tensor square[2];
    for (int i = 0; i < 2; i++) square[i] = test_tensor(b, KD_F32, KD_SHAPE(N, N), 2);
    const kd_tensor turned[2] = { kd_tensor_transposed(&y[0]), kd_tensor_transposed(&y[1]) };
    check_on_cpu(
        &p, KD_OP_matmul, &(kd_matmul_args){ .y = &square[0], .a = &y[0], .b = &turned[0] },
        &(kd_matmul_args){ .y = &square[1], .a = &y[1], .b = &turned[1] }, &square[0], &square[1]);
    /* Outputs between whose rows the other's lie, as inputs are. */
    kd_tensor in[2], out[2], halves[2][4];
    for (int i = 0; i < 2; i++) {
        b->seed = 9;
        in[i] = test_filled(b, KD_F32, KD_SHAPE(N, 2 * D), 0, -1, 1);
        out[i] = test_tensor(b, KD_F32, KD_SHAPE(N, 2 * D), 0);
        for (int k = 0; k < 4; k++)
            halves[i][k] = kd_tensor_slice(k < 2 ? &out[i] : &in[i], 1, k % 2 * D, D);
    }
#define SWIGLU(i)                                                                                  \
    &(kd_swiglu_backward_args){ .dgate = &halves[i][0],                                            \
                                .dup = &halves[i][1],                                              \
                                .dy = &halves[i][2],                                               \
                                .gate = &halves[i][2],                                             \
                                .up = &halves[i][3] }
    check_on_cpu(&p, KD_OP_swiglu_backward, SWIGLU(0), SWIGLU(1), &out[0], &out[1]);
#undef SWIGLU
    /* An empty tensor, and a refusal of the CPU's own. */
    const kd_tensor none = kd_tensor_slice(&y[0], 0, 0, 0);
    test_ok(kd_device_on_cpu(p.gpu, "add,embedding"));
    test_ok(PARITY_GPU(&p, add, .y = &none, .a = &none, .b = &none));
    const kd_tensor ids = test_values(b, KD_I32, KD_SHAPE(2), (const double[]){ 1, N });
    const kd_tensor found = test_tensor(b, KD_BF16, KD_SHAPE(2, D), 0);
    test_refused(PARITY_GPU(&p, embedding, .y = &found, .table = &x[0], .ids = &ids), KD_EINVAL,
                 "ids[1] is 5");
    parity_close(&p);
}

Test(device, an_unknown_op_of_KD_ON_CPU_is_refused)
{
    fixture f;
    open_fixture(&f, 1);
    setenv("KD_ON_CPU", "rope,softmax", 1);
    cr_assert_eq(kd_device_debug(f.device), KD_EINVAL);
    cr_assert(strstr(kd_last_error(), "\"softmax\""), "%s", kd_last_error());
    setenv("KD_ON_CPU", "rope,matmul", 1);
    test_ok(kd_device_debug(f.device));
    cr_assert_eq(f.device->on_cpu, UINT64_C(1) << KD_OP_rope | UINT64_C(1) << KD_OP_matmul);
    close_fixture(&f);
}
