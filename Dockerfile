# One image for gateway and worker; docker-compose.yml's `command` says which it is.
#   docker build .                                   CPU
#   docker build --build-arg LOCK=gpu --build-arg PYTHON=3.12 .      GPU: vLLM with CUDA
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS build

ARG LOCK=cpu
# Where pip finds torch==2.13.0+cpu, when its index does not have it: a URL of PyTorch's CPU wheels.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN python -m venv /venv
COPY locks/${LOCK}.txt lock.txt
RUN PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" /venv/bin/pip install --no-deps -r lock.txt
COPY pyproject.toml README.md LICENSE ./
COPY bench bench
COPY cli cli
COPY config config
COPY memory memory
COPY model model
COPY server server
COPY worker worker
COPY examples examples
RUN /venv/bin/pip install --no-deps --no-build-isolation .

FROM python:${PYTHON}-slim-bookworm
# vLLM compiles small kernels at start; tcmalloc makes its CPU threads faster.
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc g++ libgomp1 libnuma1 libtcmalloc-minimal4 curl \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
RUN useradd --create-home --uid 1000 latentevolve \
    && install -d -o latentevolve -g latentevolve /data /cache
USER latentevolve
WORKDIR /home/latentevolve
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 \
    LATENTEVOLVE_HOST=0.0.0.0 LATENTEVOLVE_DATA_DIR=/data LATENTEVOLVE_CACHE_DIR=/cache \
    HF_HOME=/cache/huggingface
VOLUME ["/data", "/cache"]
EXPOSE 8000
CMD ["python", "-m", "server"]
