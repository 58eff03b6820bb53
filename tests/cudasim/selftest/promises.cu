/*
 * promises.cu - what the emulator does right, in every mode: warps, clusters, pipelines, streams,
 * graphs, memory, failures on demand.  ranks.cu has NCCL.
 */
#include "selftest.h"

#include <climits>
#include <cmath>
#include <thread>

namespace {

/* ---- warps -------------------------------------------------------------------------------------- */

__global__ void warp_kernel(int *out)
{
    const int lane = (int)threadIdx.x, group = lane & ~7;
    int good = __shfl_xor_sync(~0u, lane, 5) == (lane ^ 5);
    good &= __shfl_sync(~0u, lane, 3, 8) == group + 3;
    good &= __shfl_up_sync(~0u, lane, 2, 8) == (lane % 8 < 2 ? lane : lane - 2);
    good &= __shfl_down_sync(~0u, lane, 3, 8) == (lane % 8 > 4 ? lane : lane + 3);
    good &= __ballot_sync(~0u, lane % 3 == 0) == 0x49249249u;
    good &= __any_sync(~0u, lane == 7) && !__all_sync(~0u, lane == 7);
    good &= __reduce_add_sync(~0u, lane) == 496 && __reduce_max_sync(~0u, lane - 40) == -9;
    good &= __reduce_min_sync(~0u, (unsigned)lane + 4) == 4;
    good &= __reduce_xor_sync(~0u, 1u << lane) == ~0u;
    good &= __match_any_sync(~0u, lane % 16) == 0x10001u << lane % 16;
    const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u; /* each half of the warp for itself */
    if (lane < 16)
        good &= __reduce_add_sync(half, lane) == 120;
    else
        good &= __reduce_add_sync(half, lane) == 376;
    out[lane] = good & (__syncthreads_count(lane < 9) == 9) & (__syncthreads_or(lane == 31) != 0);
}

__global__ void math_kernel(int *out)
{
    int good = __float2int_rn(2.5f) == 2 && __float2int_rn(NAN) == 0 &&
               __float2int_rn(3e9f) == INT_MAX && __float2uint_rz(-1.0f) == 0;
    good &= __byte_perm(0x33221100, 0x77665544, 0x7520) == 0x77552200u;
    good &= __funnelshift_r(0x80000000u, 1, 31) == 3 && __brev(1) == 0x80000000u;
    good &= __clz(1) == 31 && __ffs(8) == 4 && __popc(255) == 8 && __umulhi(1u << 31, 4) == 2;
    good &= min(NAN, 1.0f) == 1 && max(2, 3) == 3 && min(-1, 1) == -1 && rsqrtf(4) == 0.5f;
    out[threadIdx.x] = good;
}

void check_ones(int *out, int n)
{
    TRY(cudaDeviceSynchronize());
    int host[256];
    TRY(cudaMemcpy(host, out, (size_t)n * sizeof *host, cudaMemcpyDeviceToHost));
    for (int i = 0; i < n; i++) EXPECT(host[i] == 1);
    TRY(cudaFree(out));
}

void warps()
{
    int *out = device_array<int>(32);
    launch(warp_kernel, 1, 32, 0, 0, out);
    check_ones(out, 32);
    out = device_array<int>(32);
    launch(math_kernel, 1, 32, 0, 0, out);
    check_ones(out, 32);
}

/* ---- sm_90 -------------------------------------------------------------------------------------- */

constexpr int BLOCKS = 4, THREADS = 64, STAGES = 2, TILE = 64;

/* Each block sums its share, and then everybody's, out of the others' shared memory. */
__global__ void cluster_sum_kernel(float *out)
{
    KD_SHARED(float, mine, [THREADS]);
    KD_DYN_SHARED(float, unused);
    (void)unused;
    mine[threadIdx.x] = (float)(blockIdx.x * THREADS + threadIdx.x);
    simt::cluster_arrive();
    simt::cluster_wait();
    float sum = 0;
    for (unsigned r = 0; r < simt::cluster_size(); r++)
        sum += ((const float *)simt::cluster_map(mine, r))[threadIdx.x];
    out[blockIdx.x * THREADS + threadIdx.x] = sum;
    simt::cluster_arrive();
    simt::cluster_wait();
}

/* One warp loads tile after tile, the others add them up: full and empty barriers per stage. */
__global__ void pipeline_kernel(const float *x, float *out, int tiles)
{
    KD_SHARED(float4, buffer, [STAGES][TILE / 4]);
    KD_SHARED(uint64_t, full, [STAGES]);
    KD_SHARED(uint64_t, empty, [STAGES]);
    KD_SHARED(uint64_t, summed, [1]);
    if (threadIdx.x < STAGES) {
        simt::mbarrier_init(&full[threadIdx.x], 1);
        simt::mbarrier_init(&empty[threadIdx.x], TILE);
    }
    if (threadIdx.x == STAGES) simt::mbarrier_init(summed, TILE);
    __syncthreads();
    float sum = 0;
    for (int t = 0; t < tiles; t++) {
        const int stage = t % STAGES, round = t / STAGES;
        if (threadIdx.x == TILE) {
            while (!simt::mbarrier_try_wait(&empty[stage], (unsigned)(round + 1) & 1)) continue;
            simt::mbarrier_arrive_expect_tx(&full[stage], sizeof buffer[stage]);
            simt::bulk_load(buffer[stage], x + t * TILE, sizeof buffer[stage], &full[stage]);
        } else if (threadIdx.x < TILE) {
            while (!simt::mbarrier_try_wait(&full[stage], (unsigned)round & 1)) continue;
            sum += reinterpret_cast<const float *>(buffer[stage])[threadIdx.x];
            simt::mbarrier_arrive(&empty[stage]);
        }
    }
    if (threadIdx.x >= TILE) return;
    KD_SHARED(float4, result, [TILE / 4]);
    reinterpret_cast<float *>(result)[threadIdx.x] = sum;
    simt::mbarrier_arrive(summed);
    while (!simt::mbarrier_try_wait(summed, 0)) continue;
    if (threadIdx.x) return;
    simt::bulk_store(out, result, sizeof result);
    simt::bulk_commit();
    simt::bulk_wait_read(0);
}

void clusters()
{
    cudasim_set("KD_SIM_CAPABILITY", "90");
    float *out = device_array(2 * BLOCKS * THREADS);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = { BLOCKS, 1, 1 };
    cudaLaunchConfig_t config = {};
    config.gridDim = 2 * BLOCKS;
    config.blockDim = THREADS;
    config.dynamicSmemBytes = 64;
    config.attrs = &attribute;
    config.numAttrs = 1;
    TRY(cudaLaunchKernelEx(&config, cluster_sum_kernel, out));
    float host[2 * BLOCKS * THREADS];
    TRY(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 2 * BLOCKS * THREADS; i++) {
        const int first = i / (BLOCKS * THREADS) * BLOCKS * THREADS + i % THREADS;
        EXPECT(host[i] == (float)(BLOCKS * first + THREADS * BLOCKS * (BLOCKS - 1) / 2));
    }
    config.gridDim = BLOCKS + 1;
    EXPECT(cudaLaunchKernelEx(&config, cluster_sum_kernel, out) == cudaErrorInvalidClusterSize);
    (void)cudaGetLastError();
    TRY(cudaFree(out));
}

void pipelines()
{
    cudasim_set("KD_SIM_CAPABILITY", "90");
    enum { TILES = 8 };
    float host[TILES * TILE], sums[TILE];
    for (int i = 0; i < TILES * TILE; i++) host[i] = (float)i;
    float *x = device_array(TILES * TILE), *out = device_array(TILE);
    TRY(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    launch(pipeline_kernel, 1, TILE + 32, 0, 0, (const float *)x, out, (int)TILES);
    TRY(cudaMemcpy(sums, out, sizeof sums, cudaMemcpyDeviceToHost));
    for (int i = 0; i < TILE; i++)
        EXPECT(sums[i] == (float)(TILES * i + TILE * TILES * (TILES - 1) / 2));
    TRY(cudaFree(x));
    TRY(cudaFree(out));
}

/* ---- memory ------------------------------------------------------------------------------------- */

void memory()
{
    cudasim_set("KD_SIM_MEMORY", "1000000");
    size_t available, total;
    void *a, *b;
    TRY(cudaMalloc(&a, 600000));
    EXPECT(cudaMalloc(&b, 600000) == cudaErrorMemoryAllocation && !b);
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    TRY(cudaMemGetInfo(&available, &total));
    EXPECT(total == 1000000 && available == 400000);
    EXPECT(std::isnan(first_of((float *)a)));
    EXPECT(cudaFree((char *)a + 1) == cudaErrorInvalidValue);
    EXPECT(cudaMemset(a, 0, 600001) == cudaErrorInvalidValue);
    TRY(cudaFree(a));
    TRY(cudaMalloc(&b, 600000));
    TRY(cudaFree(b));
    TRY(cudaMalloc(&b, 0));
    EXPECT(!b);
    TRY(cudaFree(nullptr));
    (void)cudaGetLastError();
}

void failures()
{
    void *p;
    cudasim_set("KD_SIM_FAIL", "cudaMalloc:2");
    TRY(cudaMalloc(&p, 8));
    void *q;
    EXPECT(cudaMalloc(&q, 8) == cudaErrorMemoryAllocation);
    TRY(cudaMalloc(&q, 8));
    cudasim_set("KD_SIM_FAIL", "cudaMemset:1:cudaErrorIllegalAddress");
    EXPECT(cudaMemset(p, 0, 8) == cudaErrorIllegalAddress);
    EXPECT(!strcmp(cudaGetErrorName(cudaGetLastError()), "cudaErrorIllegalAddress"));
    cudasim_set("KD_SIM_FAIL", "");
    TRY(cudaMemset(p, 0, 8));
    TRY(cudaFree(p));
    TRY(cudaFree(q));
}

void counters()
{
    cudasim_counts c;
    cudasim_reset();
    float *x = device_array(10), host[10] = {};
    TRY(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    TRY(cudaMemsetAsync(x, 0, sizeof host, 0));
    TRY(cudaStreamSynchronize(0));
    cudasim_read(&c);
    EXPECT(c.allocations == 1 && c.frees == 0 && c.copies == 1 && c.fills == 1);
    EXPECT(c.synchronisations == 2 && c.launches == 0 && c.bytes == 40 && c.most_bytes == 40);
    TRY(cudaFree(x));
    cudasim_read(&c);
    EXPECT(c.frees == 1 && c.bytes == 0 && c.most_bytes == 40);
}

/* ---- devices ------------------------------------------------------------------------------------ */

__global__ void set_kernel(float *x, float value) { x[threadIdx.x] = value; }
__global__ void add_kernel(float *y, const float *x) { y[threadIdx.x] += x[threadIdx.x]; }

void devices()
{
    cudasim_set("KD_SIM_DEVICES", "2");
    int count, index, major;
    TRY(cudaGetDeviceCount(&count));
    EXPECT(count == 2 && cudaSetDevice(2) == cudaErrorInvalidDevice);
    TRY(cudaSetDevice(1));
    cudaStream_t stream;
    TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::thread([&] {
        TRY(cudaGetDevice(&index)); /* of this thread, which never chose one */
        EXPECT(index == 0);
        float *x = device_array(1);
        EXPECT(try_launch(set_kernel, 1, 1, 0, stream, x, 1.0f) == cudaErrorInvalidResourceHandle);
        TRY(cudaFree(x));
    }).join();
    TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 1));
    EXPECT(major == 8 || major == 9);
    cudaDeviceProp properties;
    TRY(cudaGetDeviceProperties(&properties, 1));
    EXPECT(properties.major == major && properties.warpSize == 32);
    TRY(cudaStreamDestroy(stream));
    EXPECT(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
    TRY(cudaSetDevice(0));
}

/* ---- streams ------------------------------------------------------------------------------------ */

void streams()
{
    cudaStream_t blocking, other;
    cudaEvent_t start, end;
    TRY(cudaStreamCreate(&blocking));
    TRY(cudaStreamCreateWithPriority(&other, cudaStreamNonBlocking, -1));
    TRY(cudaEventCreate(&start));
    TRY(cudaEventCreate(&end));
    float *x = device_array(2), *y = device_array(2), host[2] = { 1, 2 };

    /* pageable memory is taken when the copy is asked for */
    TRY(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, other));
    host[0] = host[1] = 7;
    TRY(cudaEventRecord(start, other));
    TRY(cudaStreamWaitEvent(blocking, start, 0));
    launch(set_kernel, 1, 2, 0, blocking, y, 10.0f);
    launch(add_kernel, 1, 2, 0, 0, y,
           (const float *)x); /* the legacy stream waits for `blocking` */
    TRY(cudaMemcpyAsync(host, y, sizeof host, cudaMemcpyDeviceToHost, blocking)); /* and back */
    EXPECT(host[0] == 11 && host[1] == 12); /* pageable: over when the call returned */

    TRY(cudaEventRecord(end, other));
    while (cudaEventQuery(end) == cudaErrorNotReady) continue;
    float ms;
    TRY(cudaEventElapsedTime(&ms, start, end));
    EXPECT(ms >= 0 && cudaStreamQuery(other) == cudaSuccess);
    int called = 0;
    TRY(cudaLaunchHostFunc(
        other, [](void *p) { ++*(int *)p; }, &called));
    TRY(cudaStreamSynchronize(other));
    EXPECT(called == 1);
    TRY(cudaEventDestroy(start));
    TRY(cudaEventDestroy(end));
    TRY(cudaStreamDestroy(blocking));
    TRY(cudaStreamDestroy(other));
    TRY(cudaFree(x));
    TRY(cudaFree(y));
}

/* ---- graphs ------------------------------------------------------------------------------------- */

/* y += x on one stream, z = value on a fork of it, y += z after the join. */
cudaGraph_t capture(cudaStream_t s, cudaStream_t fork, cudaEvent_t e, float *y, float *x, float *z,
                    float value)
{
    cudaGraph_t graph;
    cudaStreamCaptureStatus status;
    TRY(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    TRY(cudaEventRecord(e, s));
    TRY(cudaStreamWaitEvent(fork, e, 0));
    launch(set_kernel, 1, 1, 0, fork, z, value);
    TRY(cudaStreamIsCapturing(fork, &status));
    EXPECT(status == cudaStreamCaptureStatusActive);
    launch(add_kernel, 1, 1, 0, s, y, (const float *)x);
    TRY(cudaEventRecord(e, fork));
    TRY(cudaStreamWaitEvent(s, e, 0));
    launch(add_kernel, 1, 1, 0, s, y, (const float *)z);
    TRY(cudaStreamEndCapture(s, &graph));
    TRY(cudaStreamIsCapturing(fork, &status));
    EXPECT(status == cudaStreamCaptureStatusNone);
    return graph;
}

void graphs()
{
    cudaStream_t s, fork;
    cudaEvent_t e;
    TRY(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    TRY(cudaStreamCreateWithFlags(&fork, cudaStreamNonBlocking));
    TRY(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    float *x = device_array(1), *y = device_array(1), *z = device_array(1), host;
    launch(set_kernel, 1, 1, 0, s, y, 0.0f);
    launch(set_kernel, 1, 1, 0, s, x, 1.0f);
    cudaGraph_t graph = capture(s, fork, e, y, x, z, 10);
    cudaGraphExec_t exec;
    size_t nodes = 0;
    TRY(cudaGraphGetNodes(graph, nullptr, &nodes));
    EXPECT(nodes == 3);
    TRY(cudaGraphInstantiate(&exec, graph, 0));
    TRY(cudaGraphDestroy(graph));
    TRY(cudaGraphLaunch(exec, s)); /* 11 */
    launch(set_kernel, 1, 1, 0, s, x, 2.0f);
    TRY(cudaGraphLaunch(exec, s)); /* 12 more: memory is read anew, the argument 10 is baked in */
    graph = capture(s, fork, e, y, x, z, 100);
    cudaGraphExecUpdateResultInfo info;
    TRY(cudaGraphExecUpdate(exec, graph, &info));
    TRY(cudaGraphDestroy(graph));
    TRY(cudaGraphLaunch(exec, s)); /* 102 more */
    TRY(cudaMemcpyAsync(&host, y, sizeof host, cudaMemcpyDeviceToHost, s));
    TRY(cudaStreamSynchronize(s));
    EXPECT(host == 125);
    TRY(cudaGraphExecDestroy(exec));
    TRY(cudaEventDestroy(e));
    TRY(cudaStreamDestroy(s));
    TRY(cudaStreamDestroy(fork));
    TRY(cudaFree(x));
    TRY(cudaFree(y));
    TRY(cudaFree(z));
}

void bad_captures()
{
    cudaStream_t s, fork, blocking;
    cudaEvent_t e;
    cudaGraph_t graph;
    float *x = device_array(1);
    TRY(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    TRY(cudaStreamCreateWithFlags(&fork, cudaStreamNonBlocking));
    TRY(cudaStreamCreate(&blocking));
    TRY(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    EXPECT(cudaStreamBeginCapture(0, cudaStreamCaptureModeGlobal) ==
           cudaErrorStreamCaptureUnsupported);

    TRY(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal)); /* a fork that is not joined */
    TRY(cudaEventRecord(e, s));
    TRY(cudaStreamWaitEvent(fork, e, 0));
    launch(set_kernel, 1, 1, 0, fork, x, 1.0f);
    EXPECT(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureUnjoined && !graph);

    TRY(cudaEventRecord(e, fork)); /* waiting for what was not captured */
    TRY(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    EXPECT(cudaStreamWaitEvent(s, e, 0) == cudaErrorStreamCaptureIsolation);
    EXPECT(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated);

    TRY(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal)); /* asking for a captured event */
    TRY(cudaEventRecord(e, s));
    EXPECT(cudaEventQuery(e) == cudaErrorCapturedEvent);
    EXPECT(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated);

    TRY(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
    EXPECT(try_launch(set_kernel, 1, 1, 0, 0, x, 1.0f) == cudaErrorStreamCaptureImplicit);
    TRY(cudaFree(device_array(1))); /* relaxed: allowed */
    TRY(cudaStreamEndCapture(blocking, &graph));
    TRY(cudaGraphDestroy(graph));
    (void)cudaGetLastError();
    TRY(cudaEventDestroy(e));
    TRY(cudaStreamDestroy(s));
    TRY(cudaStreamDestroy(fork));
    TRY(cudaStreamDestroy(blocking));
    TRY(cudaFree(x));
}

#define CASE(name)                                                                                 \
    {                                                                                              \
#name, name                                                                                \
    }
const test_case cases[] = {
    CASE(warps),    CASE(clusters), CASE(pipelines), CASE(memory), CASE(failures),
    CASE(counters), CASE(devices),  CASE(streams),   CASE(graphs), CASE(bad_captures),
};

} // namespace

int main(int argc, char **argv) { return run_cases(cases, argc, argv); }
