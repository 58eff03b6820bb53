/* selftest.h - launches and copies for the emulator's own tests; a CUDA error ends the program. */
#ifndef CUDASIM_SELFTEST_H
#define CUDASIM_SELFTEST_H

#include <cuda_runtime.h>
#include <cudasim.h>

#include <cstdio>
#include <cstdlib>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        if (error_ != cudaSuccess) {                                                               \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call,                          \
                    cudaGetErrorString(error_));                                                   \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

template <class... Params, class... Args>
cudaError_t try_launch(void (*kernel)(Params...), dim3 grid, dim3 threads, size_t shared,
                       cudaStream_t stream, Args... args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, args...);
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 threads, size_t shared, cudaStream_t stream,
            Args... args)
{
    TRY(try_launch(kernel, grid, threads, shared, stream, args...));
}

template <class... Params, class... Args>
void launch_cluster(void (*kernel)(Params...), dim3 grid, dim3 threads, unsigned blocks,
                    cudaStream_t stream, Args... args)
{
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = { blocks, 1, 1 };
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = threads;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    TRY(cudaLaunchKernelEx(&config, kernel, args...));
}

/* Device memory of n elements; NaN at first. */
template <class T = float> T *device_array(size_t n)
{
    T *p;
    TRY(cudaMalloc(&p, n * sizeof(T)));
    return p;
}

template <class T> T first_of(const T *device)
{
    T value;
    TRY(cudaMemcpy(&value, device, sizeof value, cudaMemcpyDeviceToHost));
    return value;
}

/* main of a program whose cases shall all pass. */
struct test_case {
    const char *name;
    void (*run)();
};

template <int COUNT> int run_cases(const test_case (&cases)[COUNT], int argc, char **argv)
{
    for (const test_case &c : cases) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted = wanted || !strcmp(argv[i], c.name);
        if (!wanted) continue;
        fprintf(stderr, "%s\n", c.name);
        c.run();
    }
    return 0;
}

#endif
