# One image for gateway and worker; docker-compose.yml's `command` says which it is.
#   docker build .                                   CPU
#   docker build --build-arg LOCK=gpu --build-arg PYTHON=3.12 .      GPU: vLLM with CUDA
# `python3 scripts/containers.py` builds the CPU image, starts all of docker-compose.yml and tries it.
ARG PYTHON=3.11
ARG LOCK=cpu

FROM python:${PYTHON}-slim-bookworm AS build
ARG LOCK
# Where pip finds torch==2.13.0+cpu, when its index does not have it: a URL of PyTorch's CPU wheels.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/venv/bin/python
RUN apt-get update \
    && apt-get install --no-install-recommends -y binutils libnuma1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
RUN python -m venv --without-pip /venv
COPY locks/${LOCK}.txt lock.txt
# `--no-compile`, for pip reads PIP_NO_COMPILE=1 the other way round, as "compile".
# The CPU wheels come with debug symbols, static libraries, C++ tests, headers and GPU offloading: 0.8 GB that nothing loads.
RUN PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" pip install --no-compile --no-deps -r lock.txt \
    && if [ "${LOCK}" = cpu ]; then \
        cd /venv/lib/python3*/site-packages \
        && rm -rf torch/include torch/test torch/bin/test_* torch/bin/protoc* \
        && find /venv/lib -maxdepth 1 -name 'lib*' ! -type d ! -name libiomp5.so -delete \
        && strip --strip-unneeded vllm/*.so torch/lib/*.so llvmlite/binding/*.so; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY bench bench
COPY cli cli
COPY config config
COPY memory memory
COPY model model
COPY server server
COPY worker worker
COPY examples examples
# Byte code of what a start imports, a third of all: with it a start costs 12 s of a processor less.
RUN pip install --no-compile --no-deps --no-build-isolation . \
    && cd / \
    && if [ "${LOCK}" = cpu ]; then \
        /venv/bin/python -c "import cli.main, server.app, worker.night, celery.bin.worker, \
            vllm.entrypoints.launchers.app, vllm.v1.engine.async_llm, vllm.v1.worker.cpu_worker"; \
    else \
        /venv/bin/python -m compileall -q -j 0 /venv || true; \
    fi

FROM python:${PYTHON}-slim-bookworm AS runtime
RUN useradd --create-home --uid 1000 latentevolve \
    && install -d -o latentevolve -g latentevolve /data /cache

FROM runtime AS runtime-cpu
# No compiler: vLLM on a CPU compiles nothing while the engine is eager, which is the default.
RUN apt-get update \
    && apt-get install --no-install-recommends -y libgomp1 libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/*
# What `latentevolve serve` loads before all else, too: faster threads and memory.
ENV LD_PRELOAD=libtcmalloc_minimal.so.4:/venv/lib/libiomp5.so

FROM runtime AS runtime-gpu
# Triton compiles its launchers, torch.compile its wrappers.
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc g++ libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*

FROM runtime-${LOCK}
COPY --from=build /venv /venv
USER latentevolve
WORKDIR /home/latentevolve
# PIP_PYTHON: what an image on top of this one installs with pip goes where the server imports from.
ENV PATH=/venv/bin:$PATH PIP_PYTHON=/venv/bin/python PYTHONUNBUFFERED=1 \
    LATENTEVOLVE_HOST=0.0.0.0 LATENTEVOLVE_DATA_DIR=/data LATENTEVOLVE_CACHE_DIR=/cache \
    HF_HOME=/cache/huggingface
VOLUME ["/data", "/cache"]
EXPOSE 8000
CMD ["python", "-m", "server"]
