/*
 * cuda_graph.c - work that repeats, captured once and launched as one.
 *
 * Launching a thousand kernels takes the host a few milliseconds, launching their graph some tens of
 * microseconds.  The mode is thread-local: what other threads (other ranks) do meanwhile is theirs.
 */
#include "device/cuda.h"

kd_status kd_cuda_capture_begin(kd_device *device, kd_queue *queue)
{
    CUDA_TRY(
        cudaStreamBeginCapture(kd_cuda_stream_of(device, queue), cudaStreamCaptureModeThreadLocal));
    return KD_OK;
}

kd_status kd_cuda_capture_end(kd_graph **out, kd_device *device, kd_queue *queue)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t whole = NULL;
    *out = NULL;
    CUDA_TRY(cudaStreamEndCapture(kd_cuda_stream_of(device, queue), &graph));
    const cudaError_t error = cudaGraphInstantiate(&whole, graph, 0);
    (void)cudaGraphDestroy(graph);
    if (error != cudaSuccess) return kd_cuda_failure((int)error, "cudaGraphInstantiate()");
    *out = (kd_graph *)whole;
    return KD_OK;
}

kd_status kd_cuda_graph_launch(kd_device *device, kd_queue *queue, kd_graph *graph)
{
    CUDA_TRY(cudaGraphLaunch((cudaGraphExec_t)graph, kd_cuda_stream_of(device, queue)));
    return KD_OK;
}

void kd_cuda_graph_destroy(kd_device *device, kd_graph *graph)
{
    (void)kd_cuda_stream_of(device, NULL);
    (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}
