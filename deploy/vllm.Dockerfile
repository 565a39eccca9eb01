# glm4 with vLLM, for GPUs of NVIDIA. In the repository: docker build -f deploy/vllm.Dockerfile -t glm4-vllm .
# Run it (docs/scale.md has more):
#   docker run --gpus all --ipc=host --read-only --tmpfs /tmp -v glm4-models:/models -p 127.0.0.1:8000:8000 \
#     -e GLM4_API_KEY=... glm4-vllm serve glm-4-9b-chat --backend vllm --host 0.0.0.0
FROM python:3.12-slim AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md LICENSE NOTICE ./
COPY csrc csrc
COPY src src
RUN python -m venv /opt/glm4 && /opt/glm4/bin/pip install --no-cache-dir ".[vllm]"

FROM python:3.12-slim
# vLLM compiles some kernels for the GPU at hand, for which it needs a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/glm4 /opt/glm4
RUN useradd --uid 10001 --no-create-home --home-dir /models glm4 \
    && install -d -o glm4 -g glm4 /models
ENV GLM4_HOME=/models HF_HOME=/models/huggingface HOME=/models PYTHONDONTWRITEBYTECODE=1 \
    VLLM_CACHE_ROOT=/models/vllm VLLM_NO_USAGE_STATS=1 \
    TRITON_CACHE_DIR=/models/triton TORCHINDUCTOR_CACHE_DIR=/models/torchinductor
USER 10001
WORKDIR /models
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["/opt/glm4/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["/opt/glm4/bin/glm4"]
CMD ["serve", "glm-4-9b-chat", "--backend", "vllm", "--host", "0.0.0.0"]
