# kd on the CPU, with the README's two commands.
#
#   docker build -f docker/cpu.Dockerfile -t kd .
#   docker run --rm kd tools/test
#   docker run --rm -v kd-out:/kd/out kd tools/quickstart
FROM debian:12.12-slim

WORKDIR /kd
COPY tools/lib.sh tools/packages.sh tools/
COPY tools/data/requirements.txt tools/data/
RUN apt-get update && bash tools/packages.sh build test quickstart && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv .venv && .venv/bin/pip install --no-cache-dir -r tools/data/requirements.txt
COPY . .
RUN cmake --preset release && cmake --build --preset release
ENV PATH=/kd/build:$PATH
CMD ["kd", "--help"]
