# rankzero with every engine, for GPUs (torch from PyPI brings CUDA) and CPUs: make image
#   docker run --rm --init --gpus all --shm-size 16g -v "$PWD:/work" rankzero train mt.yaml --config ddp_bf16
# On Linux add --user "$(id -u):$(id -g)", so that the run directory is yours.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# a compiler for torch.compile and DeepSpeed's operators
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 DS_BUILD_OPS=0 HF_HOME=/cache HOME=/tmp/home

# torch first: DeepSpeed's setup needs it. The layer stays until the constraints change.
COPY constraints.txt /src/
RUN python -m pip install -c /src/constraints.txt torch

COPY pyproject.toml README.md LICENSE /src/
COPY trainer /src/trainer
COPY launch /src/launch
COPY accelerate_configs /src/accelerate_configs
COPY slurm /src/slurm
RUN python -m pip install -c /src/constraints.txt '/src[deepspeed,adapters,track,sweep]' \
 && mkdir -m 1777 /cache /work /tmp/home

USER 1000
WORKDIR /work
ENTRYPOINT ["rankzero"]
CMD ["--help"]
