/*
 * planted.cu - programs with one bug each, and the same without it.
 *
 *     planted CASE          must fail
 *     planted CASE fine     must pass: it is the bug that fails, not the program around it
 *
 * README.md has the table of which mode finds which.
 */
#include "selftest.h"

#include <cmath>
#include <nccl.h>
#include <thread>

namespace {

constexpr int N = 128;

/* The host's verdict on what a kernel computed; NaN is wrong. */
void verdict(const float *device, int n, float expected)
{
    float host[N];
    TRY(cudaMemcpy(host, device, (size_t)n * sizeof *host, cudaMemcpyDeviceToHost));
    for (int i = 0; i < n; i++)
        if (!(host[i] == expected)) {
            fprintf(stderr, "wrong result: [%d] is %g, expected %g\n", i, (double)host[i],
                    (double)expected);
            exit(1);
        }
}

void fill(float *x, int n, float value)
{
    float host[N];
    for (int i = 0; i < n; i++) host[i] = value;
    TRY(cudaMemcpy(x, host, (size_t)n * sizeof *host, cudaMemcpyHostToDevice));
}

/* Runs a kernel (float *x, bool bug) over x[N] of ones; every x[i] shall be `expected` then. */
void over_ones(void (*kernel)(float *, bool), bool bug, float expected, size_t shared = 0)
{
    float *x = device_array(N);
    fill(x, N, 1);
    launch(kernel, 1, N, shared, 0, x, bug);
    verdict(x, N, expected);
    TRY(cudaFree(x));
}

/* ---- out of bounds ------------------------------------------------------------------------------ */

__global__ void global_read_kernel(float *x, bool bug)
{
    const float next = x[bug ? threadIdx.x + 1 : threadIdx.x];
    x[threadIdx.x] = next * 0 + 1;
}
void global_read(bool bug) { over_ones(global_read_kernel, bug, 1); }

__global__ void global_write_kernel(float *x, bool bug) { x[threadIdx.x + bug] = 1; }
void global_write(bool bug) { over_ones(global_write_kernel, bug, 1); }

__global__ void shared_kernel(float *x, bool bug)
{
    KD_SHARED(float, s, [N]);
    s[threadIdx.x] = 2;
    __syncthreads();
    x[threadIdx.x] = s[bug ? threadIdx.x + 1 : threadIdx.x] * 0 + 1;
}
void static_shared(bool bug) { over_ones(shared_kernel, bug, 1); }

__global__ void dynamic_kernel(float *x, bool bug)
{
    KD_DYN_SHARED(float, s);
    s[threadIdx.x + bug] = 1;
    x[threadIdx.x] = 1;
}
void dynamic_shared(bool bug) { over_ones(dynamic_kernel, bug, 1, N * sizeof(float)); }

__global__ void one_kernel(float *x, bool) { x[threadIdx.x] = 1; }

void use_after_free(bool bug)
{
    float *x = device_array(N), *y = device_array(N);
    if (bug) TRY(cudaFree(x));
    launch(one_kernel, 1, N, 0, 0, x, false);
    if (!bug) TRY(cudaFree(x));
    TRY(cudaFree(y));
}

/* ---- races -------------------------------------------------------------------------------------- */

/* A barrier forgotten between writing and reading. */
__global__ void raw_kernel(float *x, bool bug)
{
    KD_SHARED(float, s, [N]);
    s[threadIdx.x] = x[threadIdx.x];
    if (!bug) __syncthreads();
    x[threadIdx.x] = s[(threadIdx.x + 1) % N];
}
void raw(bool bug) { over_ones(raw_kernel, bug, 1); }

/* A barrier forgotten between reading and writing anew. */
__global__ void war_kernel(float *x, bool bug)
{
    KD_SHARED(float, s, [N]);
    float sum = 0;
    for (int step = 0; step < 4; step++) {
        s[threadIdx.x] = (float)step;
        __syncthreads();
        sum += s[(threadIdx.x + 1) % N];
        if (!bug) __syncthreads();
    }
    x[threadIdx.x] = sum;
}
void war(bool bug) { over_ones(war_kernel, bug, 6); }

__global__ void lost_update_kernel(float *x, bool bug)
{
    if (bug)
        x[0] += 1;
    else
        atomicAdd(x, 1.0f);
}
void lost_update(bool bug)
{
    float *x = device_array(1);
    fill(x, 1, 0);
    launch(lost_update_kernel, 1, N, 0, 0, x, bug);
    verdict(x, 1, N);
    TRY(cudaFree(x));
}

/* __shfl_sync orders no memory. */
__global__ void shuffle_is_no_fence_kernel(float *x, bool bug)
{
    KD_SHARED(float, s, [32]);
    const int lane = (int)threadIdx.x % 32;
    if (threadIdx.x < 32) {
        s[lane] = 1;
        if (bug)
            (void)__shfl_xor_sync(0xffffffffu, 1.0f, 1);
        else
            __syncwarp();
        x[lane] = s[lane ^ 1];
    }
}
void shuffle_is_no_fence(bool bug) { over_ones(shuffle_is_no_fence_kernel, bug, 1); }

/* ---- meeting ------------------------------------------------------------------------------------ */

__global__ void two_barriers_kernel(float *x, bool bug)
{
    if (bug && threadIdx.x < 32)
        __syncthreads();
    else {
        x[threadIdx.x] = 1;
        __syncthreads();
    }
}
void two_barriers(bool bug) { over_ones(two_barriers_kernel, bug, 1); }

__global__ void barrier_and_shuffle_kernel(float *x, bool bug)
{
    if (bug && threadIdx.x % 2)
        x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    else
        __syncthreads();
}
void barrier_and_shuffle(bool bug) { over_ones(barrier_and_shuffle_kernel, bug, 1); }

__global__ void lane_exited_kernel(float *x, bool bug)
{
    if (bug && threadIdx.x == 5) return;
    x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
void lane_exited(bool bug) { over_ones(lane_exited_kernel, bug, 1); }

__global__ void inactive_lane_kernel(float *x, bool bug)
{
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, bug ? 20 : 10);
}
void inactive_lane(bool bug) { over_ones(inactive_lane_kernel, bug, 1); }

/* ---- asynchronous copies ------------------------------------------------------------------------ */

__global__ void cp_async_kernel(float *x, bool bug)
{
    KD_SHARED(float4, s, [N / 4]);
    float *const mine = reinterpret_cast<float *>(s) + threadIdx.x;
    simt::cp_async(mine, x + threadIdx.x, 4);
    simt::cp_commit();
    simt::cp_wait(bug ? 1 : 0);
    x[threadIdx.x] = *mine;
}
void cp_async_unwaited(bool bug) { over_ones(cp_async_kernel, bug, 1); }

__global__ void bulk_load_kernel(float *x, bool bug)
{
    KD_SHARED(float4, s, [N / 4]);
    KD_SHARED(uint64_t, full, [1]);
    if (threadIdx.x == 0) {
        simt::mbarrier_init(full, 1);
        simt::mbarrier_arrive_expect_tx(full, sizeof s);
        simt::bulk_load(s, x, sizeof s, full);
    }
    __syncthreads();
    while (!bug && !simt::mbarrier_try_wait(full, 0)) continue;
    const float mine = reinterpret_cast<const float *>(s)[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = mine;
    while (bug && !simt::mbarrier_try_wait(full, 0)) continue;
}
void bulk_load_unwaited(bool bug) { over_ones(bulk_load_kernel, bug, 1); }

__global__ void bulk_store_kernel(float *x, bool bug)
{
    KD_SHARED(float4, s, [N / 4]);
    reinterpret_cast<float *>(s)[threadIdx.x] = 3;
    __syncthreads();
    if (threadIdx.x) return;
    simt::bulk_store(x, s, sizeof s);
    simt::bulk_commit();
    if (!bug) simt::bulk_wait_read(0);
}
void bulk_store_unwaited(bool bug) { over_ones(bulk_store_kernel, bug, 3); }

__global__ void mbarrier_uninitialised_kernel(float *, bool bug)
{
    KD_SHARED(uint64_t, full, [1]);
    if (threadIdx.x == 0 && !bug) simt::mbarrier_init(full, N);
    __syncthreads();
    simt::mbarrier_arrive(full);
}
void mbarrier_uninitialised(bool bug) { over_ones(mbarrier_uninitialised_kernel, bug, 1); }

/* ---- clusters ----------------------------------------------------------------------------------- */

/* Every block reads its neighbour's shared memory, which must be written first and stay until then. */
__global__ void cluster_kernel(float *x, bool no_first, bool no_last)
{
    KD_SHARED(float, s, [1]);
    s[0] = 1;
    if (!no_first) {
        simt::cluster_arrive();
        simt::cluster_wait();
    }
    const unsigned other = (simt::cluster_rank() + 1) % simt::cluster_size();
    x[blockIdx.x] = *(const float *)simt::cluster_map(s, other);
    if (!no_last) {
        simt::cluster_arrive();
        simt::cluster_wait();
    }
}
void over_cluster(bool no_first, bool no_last)
{
    float *x = device_array(8);
    launch_cluster(cluster_kernel, 8, 1, 4, 0, x, no_first, no_last);
    verdict(x, 8, 1);
    TRY(cudaFree(x));
}
void cluster_read_early(bool bug) { over_cluster(bug, false); }
void cluster_block_gone(bool bug) { over_cluster(false, bug); }

/* ---- addresses and launches --------------------------------------------------------------------- */

__global__ void misaligned_kernel(float *x, bool bug)
{
    const float4 four = __ldg(reinterpret_cast<const float4 *>(x + bug));
    __syncthreads();
    x[threadIdx.x] = four.w;
}
void misaligned(bool bug) { over_ones(misaligned_kernel, bug, 1); }

__global__ void misaligned_plain_kernel(float *x, bool bug)
{
    const float4 four = *reinterpret_cast<const float4 *>(x + bug);
    __syncthreads();
    x[threadIdx.x] = four.w;
}
void misaligned_plain(bool bug) { over_ones(misaligned_plain_kernel, bug, 1); }

void host_pointer(bool bug)
{
    float host[N], *x = device_array(N);
    launch(one_kernel, 1, N, 0, 0, bug ? host : x, false);
    TRY(cudaFree(x));
}

void bad_launch(bool bug)
{
    float *x = device_array(N);
    launch(one_kernel, 1, bug ? 2048 : N, 0, 0, x, false);
    TRY(cudaFree(x));
}

void shared_without_leave(bool bug)
{
    float *x = device_array(N);
    if (!bug)
        TRY(cudaFuncSetAttribute(one_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 64 << 10));
    launch(one_kernel, 1, N, 64 << 10, 0, x, false);
    TRY(cudaFree(x));
}

/* Leave is given by the current device. */
void leave_of_another_device(bool bug)
{
    TRY(cudaSetDevice(bug ? 1 : 0));
    TRY(cudaFuncSetAttribute(one_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10));
    TRY(cudaSetDevice(0));
    float *x = device_array(N);
    launch(one_kernel, 1, N, 64 << 10, 0, x, false);
    TRY(cudaFree(x));
}

__global__ void both_shared_kernel(float *x, bool)
{
    KD_SHARED(float, share, [N]);
    share[threadIdx.x] = 1;
    x[threadIdx.x] = share[threadIdx.x];
}
void shared_twice(bool bug)
{
    const int most = 163 << 10, bytes = bug ? most : most - (int)sizeof(float[N]);
    TRY(cudaFuncSetAttribute(both_shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes));
    over_ones(both_shared_kernel, bug, 1, (size_t)bytes);
}

void copy_direction(bool bug)
{
    float host[N] = {}, *x = device_array(N);
    TRY(cudaMemcpy(x, host, sizeof host, bug ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice));
    TRY(cudaFree(x));
}

void device_leak(bool bug)
{
    float *x = device_array(N);
    if (!bug) TRY(cudaFree(x));
}

__global__ void stack_kernel(float *x, bool bug)
{
    volatile char large[(1 << 17) + 2048];
    for (size_t i = 0; i < (bug ? sizeof large : 1 << 10); i += 512)
        large[sizeof large - 1 - i] = 1;
    x[threadIdx.x] = 1;
}
void stack_overflow(bool bug)
{
    cudasim_set("KD_SIM_STACK_KB", bug ? "128" : "512");
    over_ones(stack_kernel, bug, 1);
}

/* ---- the host ----------------------------------------------------------------------------------- */

float *pinned_array(int n, float value)
{
    float *p;
    TRY(cudaMallocHost((void **)&p, (size_t)n * sizeof *p));
    for (int i = 0; i < n; i++) p[i] = value;
    return p;
}

void host_read(bool bug)
{
    float *x = device_array(N);
    fill(x, N, 1);
    const float seen = bug ? *(volatile float *)x : first_of(x);
    if (seen != 1) exit(1);
    TRY(cudaFree(x));
}

/* The result is read before the stream is waited for. */
void host_too_early(bool bug)
{
    float *x = device_array(1), *host = pinned_array(1, 0);
    launch(one_kernel, 1, 1, 0, 0, x, false);
    TRY(cudaMemcpyAsync(host, x, sizeof *host, cudaMemcpyDeviceToHost, 0));
    if (!bug) TRY(cudaStreamSynchronize(0));
    if (*host != 1) {
        fprintf(stderr, "wrong result: %g\n", (double)*host);
        exit(1);
    }
    TRY(cudaFree(x));
    TRY(cudaFreeHost(host));
}

/* A pinned buffer takes the next batch while the last is still being copied. */
void pinned_reused(bool bug)
{
    float *x = device_array(1), *host = pinned_array(1, 1);
    TRY(cudaMemcpyAsync(x, host, sizeof *host, cudaMemcpyHostToDevice, 0));
    if (!bug) TRY(cudaStreamSynchronize(0));
    *host = 2;
    verdict(x, 1, 1);
    TRY(cudaFree(x));
    TRY(cudaFreeHost(host));
}

/* One stream reads what another writes, without an event between them. */
void event_missing(bool bug)
{
    cudaStream_t first, second;
    cudaEvent_t written;
    float *x = device_array(N), *y = device_array(N);
    TRY(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    TRY(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    TRY(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
    launch(one_kernel, 1, N, 0, first, x, false);
    TRY(cudaEventRecord(written, first));
    if (!bug) TRY(cudaStreamWaitEvent(second, written, 0));
    TRY(cudaMemcpyAsync(y, x, N * sizeof *x, cudaMemcpyDeviceToDevice, second));
    TRY(cudaStreamSynchronize(second));
    verdict(y, N, 1);
    TRY(cudaEventDestroy(written));
    TRY(cudaStreamDestroy(first));
    TRY(cudaStreamDestroy(second));
    TRY(cudaFree(x));
    TRY(cudaFree(y));
}

void wait_while_capturing(bool bug)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    if (bug) TRY(cudaStreamSynchronize(stream));
    TRY(cudaStreamEndCapture(stream, &graph));
    TRY(cudaGraphDestroy(graph));
    TRY(cudaStreamDestroy(stream));
}

void allocate_while_capturing(bool bug)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    if (bug) (void)device_array(1);
    TRY(cudaStreamEndCapture(stream, &graph));
    TRY(cudaGraphDestroy(graph));
    TRY(cudaStreamDestroy(stream));
}

/* ---- ranks -------------------------------------------------------------------------------------- */

void rank_of_two(ncclUniqueId id, int rank, size_t count, bool comes)
{
    ncclComm_t comm;
    TRY(cudaSetDevice(rank));
    if (ncclCommInitRank(&comm, 2, id, rank) != ncclSuccess) exit(1);
    float *x = device_array(N);
    fill(x, N, 1);
    if (comes) {
        if (ncclAllReduce(x, x, count, ncclFloat32, ncclSum, comm, 0) != ncclSuccess) exit(1);
        verdict(x, 1, 2);
    }
    TRY(cudaFree(x));
    if (ncclCommDestroy(comm) != ncclSuccess) exit(1);
}

void two_ranks(size_t counts[2], bool second_comes)
{
    ncclUniqueId id;
    cudasim_set("KD_SIM_DEVICES", "2");
    cudasim_set("KD_SIM_TIMEOUT", "1");
    if (ncclGetUniqueId(&id) != ncclSuccess) exit(1);
    std::thread second(rank_of_two, id, 1, counts[1], second_comes);
    rank_of_two(id, 0, counts[0], true);
    second.join();
}

void ranks_disagree(bool bug)
{
    size_t counts[] = { N, bug ? (size_t)N - 1 : N };
    two_ranks(counts, true);
}

void rank_missing(bool bug)
{
    size_t counts[] = { N, N };
    two_ranks(counts, !bug);
}

#define CASE(name)                                                                                 \
    {                                                                                              \
#name, name                                                                                \
    }
const struct {
    const char *name;
    void (*run)(bool bug);
} cases[] = {
    CASE(global_read),
    CASE(global_write),
    CASE(static_shared),
    CASE(dynamic_shared),
    CASE(use_after_free),
    CASE(raw),
    CASE(war),
    CASE(lost_update),
    CASE(shuffle_is_no_fence),
    CASE(two_barriers),
    CASE(barrier_and_shuffle),
    CASE(lane_exited),
    CASE(inactive_lane),
    CASE(cp_async_unwaited),
    CASE(bulk_load_unwaited),
    CASE(bulk_store_unwaited),
    CASE(mbarrier_uninitialised),
    CASE(cluster_read_early),
    CASE(cluster_block_gone),
    CASE(misaligned),
    CASE(misaligned_plain),
    CASE(host_pointer),
    CASE(bad_launch),
    CASE(shared_without_leave),
    CASE(leave_of_another_device),
    CASE(shared_twice),
    CASE(copy_direction),
    CASE(device_leak),
    CASE(stack_overflow),
    CASE(host_read),
    CASE(host_too_early),
    CASE(pinned_reused),
    CASE(event_missing),
    CASE(wait_while_capturing),
    CASE(allocate_while_capturing),
    CASE(ranks_disagree),
    CASE(rank_missing),
};

} // namespace

int main(int argc, char **argv)
{
    const bool bug = argc == 2;
    for (const auto &c : cases)
        if (argc >= 2 && !strcmp(c.name, argv[1])) {
            c.run(bug);
            return 0;
        }
    fprintf(stderr, "planted CASE [fine]\n");
    return 2;
}
