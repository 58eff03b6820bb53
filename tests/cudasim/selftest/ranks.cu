/* ranks.cu - NCCL as emulated: ranks in threads, and several in one. */
#include "selftest.h"

#include <cuda_bf16.h>
#include <nccl.h>
#include <thread>

namespace {

constexpr int RANKS = 4, N = 6;

#define NCCL(call)                                                                                 \
    do {                                                                                           \
        const ncclResult_t result_ = (call);                                                       \
        if (result_ != ncclSuccess) {                                                              \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, ncclGetErrorString(result_),    \
                    ncclGetLastError(nullptr));                                                    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

template <class T> void upload(T *x, const T *host, int n)
{
    TRY(cudaMemcpy(x, host, (size_t)n * sizeof(T), cudaMemcpyHostToDevice));
}
template <class T> void expect(const T *x, int n, T first, T step)
{
    T host[RANKS * N];
    TRY(cudaMemcpy(host, x, (size_t)n * sizeof(T), cudaMemcpyDeviceToHost));
    for (int i = 0; i < n; i++) EXPECT(host[i] == first + (T)i * step);
}

template <class T> void reductions(ncclComm_t comm, int rank, ncclDataType_t type)
{
    T host[RANKS * N];
    T *x = device_array<T>(RANKS * N), *y = device_array<T>(RANKS * N);
    cudaStream_t s;
    TRY(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    for (int i = 0; i < RANKS * N; i++) host[i] = (T)((rank + 1) * (i + 1));
    upload(x, host, RANKS * N);
    const struct {
        ncclRedOp_t op;
        T first;
    } ops[] = { { ncclSum, 10 }, { ncclMax, 4 }, { ncclMin, 1 } };
    for (const auto &o : ops) {
        NCCL(ncclAllReduce(x, y, N, type, o.op, comm, s));
        TRY(cudaStreamSynchronize(s));
        expect<T>(y, N, o.first, o.first);
    }
    NCCL(ncclReduceScatter(x, x + rank * N, N, type, ncclSum, comm, s)); /* in place */
    TRY(cudaStreamSynchronize(s));
    expect<T>(x + rank * N, N, (T)(10 * (rank * N + 1)), 10);
    NCCL(ncclAllGather(x + rank * N, x, N, type, comm, s)); /* in place */
    TRY(cudaStreamSynchronize(s));
    expect<T>(x, RANKS * N, 10, 10);
    upload(y, host, N);
    NCCL(ncclBroadcast(y, y, N, type, 2, comm, s));
    TRY(cudaStreamSynchronize(s));
    expect<T>(y, N, 3, 3);
    TRY(cudaStreamDestroy(s));
    TRY(cudaFree(x));
    TRY(cudaFree(y));
}

/* 1 + 2^-8 + 2^-8 + 2^-8 in f32, rounded to bf16 once; in bf16 all along it were 1. */
void narrow_sums(ncclComm_t comm, int rank)
{
    __nv_bfloat16 host = __float2bfloat16(rank ? 1.0f / 256 : 1.0f);
    __nv_bfloat16 *x = device_array<__nv_bfloat16>(1);
    upload(x, &host, 1);
    NCCL(ncclAllReduce(x, x, 1, ncclBfloat16, ncclSum, comm, 0));
    EXPECT(__bfloat162float(first_of(x)) == __bfloat162float(__float2bfloat16(1 + 3.0f / 256)));
    TRY(cudaFree(x));
}

void run_rank(ncclUniqueId id, int rank)
{
    ncclComm_t comm;
    TRY(cudaSetDevice(rank));
    NCCL(ncclCommInitRank(&comm, RANKS, id, rank));
    reductions<float>(comm, rank, ncclFloat32);
    reductions<double>(comm, rank, ncclFloat64);
    reductions<int>(comm, rank, ncclInt32);
    reductions<long>(comm, rank, ncclInt64);
    reductions<unsigned char>(comm, rank, ncclUint8);
    narrow_sums(comm, rank);
    ncclResult_t error;
    NCCL(ncclCommGetAsyncError(comm, &error));
    EXPECT(error == ncclSuccess);
    NCCL(ncclCommDestroy(comm));
}

void threads()
{
    ncclUniqueId id;
    NCCL(ncclGetUniqueId(&id));
    std::thread others[RANKS];
    for (int r = 1; r < RANKS; r++) others[r] = std::thread(run_rank, id, r);
    run_rank(id, 0);
    for (int r = 1; r < RANKS; r++) others[r].join();
}

__global__ void set_kernel(float *x, float value) { x[threadIdx.x] = value; }

/* One thread, two collectives of all ranks in one group, captured on rank 0's stream as well. */
void one_thread()
{
    ncclComm_t comms[RANKS];
    float *x[RANKS];
    NCCL(ncclCommInitAll(comms, RANKS, nullptr));
    for (int r = 0; r < RANKS; r++) {
        TRY(cudaSetDevice(r));
        x[r] = device_array(N);
        launch(set_kernel, 1, N, 0, 0, x[r], (float)(r + 1));
    }
    NCCL(ncclGroupStart());
    for (int r = 0; r < RANKS; r++) {
        TRY(cudaSetDevice(r));
        NCCL(ncclAllReduce(x[r], x[r], N, ncclFloat32, ncclAvg, comms[r], 0));
        NCCL(ncclAllReduce(x[r], x[r], N, ncclFloat32, ncclSum, comms[r], 0));
    }
    NCCL(ncclGroupEnd());
    for (int r = 0; r < RANKS; r++) {
        TRY(cudaSetDevice(r));
        expect<float>(x[r], N, 10, 0);
        TRY(cudaFree(x[r]));
        NCCL(ncclCommDestroy(comms[r]));
    }
}

/* A collective in a graph meets anew at each launch. */
void captured_rank(ncclUniqueId id, int rank)
{
    ncclComm_t comm;
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    TRY(cudaSetDevice(rank));
    NCCL(ncclCommInitRank(&comm, 2, id, rank));
    TRY(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    float *x = device_array(N);
    launch(set_kernel, 1, N, 0, s, x, 1.0f);
    TRY(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    NCCL(ncclAllReduce(x, x, N, ncclFloat32, ncclSum, comm, s));
    TRY(cudaStreamEndCapture(s, &graph));
    TRY(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 3; i++) TRY(cudaGraphLaunch(exec, s));
    TRY(cudaStreamSynchronize(s));
    expect<float>(x, N, 8, 0);
    TRY(cudaGraphExecDestroy(exec));
    TRY(cudaGraphDestroy(graph));
    TRY(cudaStreamDestroy(s));
    TRY(cudaFree(x));
    NCCL(ncclCommDestroy(comm));
}

void captured()
{
    ncclUniqueId id;
    NCCL(ncclGetUniqueId(&id));
    std::thread other(captured_rank, id, 1);
    captured_rank(id, 0);
    other.join();
}

void refusals()
{
    ncclUniqueId id;
    ncclComm_t comm;
    NCCL(ncclGetUniqueId(&id));
    cudasim_set("KD_SIM_TIMEOUT", "1");
    TRY(cudaSetDevice(0));
    EXPECT(ncclCommInitRank(&comm, 2, id, 2) == ncclInvalidArgument);
    EXPECT(ncclCommInitRank(&comm, 2, id, 0) == ncclSystemError); /* the other does not come */
    const int same[] = { 0, 0 };
    ncclComm_t comms[2] = {};
    EXPECT(ncclCommInitAll(comms, 2, same) == ncclInvalidUsage);
    NCCL(ncclCommDestroy(comms[0]));
    cudasim_set("KD_SIM_FAIL", "ncclGroupStart:1:1");
    EXPECT(ncclGroupStart() == ncclUnhandledCudaError);
}

#define CASE(name)                                                                                 \
    {                                                                                              \
#name, name                                                                                \
    }
const test_case cases[] = { CASE(threads), CASE(one_thread), CASE(captured), CASE(refusals) };

} // namespace

int main(int argc, char **argv)
{
    cudasim_set("KD_SIM_DEVICES", "4");
    return run_cases(cases, argc, argv);
}
