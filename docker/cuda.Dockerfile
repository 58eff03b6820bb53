# kd for NVIDIA GPUs, with the README's two commands and tools/gpu_check.
#
#   docker build -f docker/cuda.Dockerfile -t kd-cuda .
#   docker run --rm --gpus all kd-cuda tools/gpu_check
#   docker run --rm --gpus all -v kd-out:/kd/out kd-cuda tools/quickstart
#
# The system is that of cpu.Dockerfile, so that one list of packages serves both; NVIDIA's packages for
# it are pinned to the toolkit that the tests run with.
FROM debian:12.12-slim

ARG CUDA=13-0
ARG KEYRING=https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/cuda-keyring_1.1-1_all.deb
ADD ${KEYRING} /tmp/cuda-keyring.deb
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates \
    && dpkg -i /tmp/cuda-keyring.deb && rm /tmp/cuda-keyring.deb && apt-get update \
    && apt-get install -y --no-install-recommends cuda-nvcc-${CUDA} cuda-cudart-dev-${CUDA} \
        libcublas-dev-${CUDA} cuda-sanitizer-${CUDA} libnccl-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/local/cuda/bin:$PATH LD_LIBRARY_PATH=/usr/local/cuda/lib64 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /kd
COPY tools/lib.sh tools/packages.sh tools/
COPY tools/data/requirements.txt tools/data/
RUN apt-get update && bash tools/packages.sh build test quickstart && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv .venv && .venv/bin/pip install --no-cache-dir -r tools/data/requirements.txt
COPY . .
RUN cmake --preset release -DKD_CUDA=ON && cmake --build --preset release
ENV PATH=/kd/build:$PATH
CMD ["kd", "--help"]
