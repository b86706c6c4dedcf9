"""vLLM's engine and its OpenAI app, started from our settings.

Owns the arguments and the environment that vLLM gets, and the order in which its parts start and end.
Knows nothing of what steering does; `injection.install` puts steering in afterwards.
"""

import asyncio
import importlib.metadata
import logging
import os
import shlex
import sysconfig
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from config.settings import Settings
from model.engine import EngineDeadError, EngineError
from model.gradient_worker import GradientWorker
from model.prefixes import kv_values
from server.engine.guard import close_client_embeds, hide_placeholders
from server.engine.process import start_engine, stop_engine
from server.engine.shared_gradient_worker import SharedGradientWorker, why_not_shared
from server.engine.vllm import VLLMEngine
from server.tracing import traces_endpoint
from server.vllm_args import split

logger = logging.getLogger(__name__)

MOST_ANSWERS = 128
"""To one request."""
MAX_MODEL_LEN = 8192
"""Longest context unless the settings name one: the KV cache of a laptop holds no more."""
PROGRAMS = Path(__file__).with_name("programs")
"""Folder of stand-ins for programs that vLLM runs and a machine may lack; those of the machine come first."""
_CPU_BLOCK_SIZE = 32
LEAST_KV_BYTES = 2**29
"""Of a KV cache on a CPU, unless the settings name its size: some short prompts at once."""


@dataclass(frozen=True)
class Launched:
    """A running engine and the app that serves it."""

    engine: VLLMEngine
    app: Any
    """vLLM's FastAPI app, started; every route of `vllm serve`, without authentication."""
    args: Namespace
    """What `vllm serve` would have parsed."""


@asynccontextmanager
async def launch(settings: Settings, model_path: str) -> AsyncIterator[Launched]:
    """Start vLLM on `model_path`; end it and every process of it on the way out.

    Raises:
        EngineDeadError: the engine did not start.
        ValueError: `settings.vllm_args` is not understood.
    """
    prepare_environment(settings, model_path)
    args = await asyncio.to_thread(parse_arguments, settings, model_path)
    async with AsyncExitStack() as stack:
        stack.enter_context(_socket_folder())
        gradient_worker: GradientWorker | SharedGradientWorker | None = None
        gradients_started: Awaitable[None] | None = None
        on_gpu = runs_on_cuda()
        if settings.gradient_worker and not on_gpu:
            # Beside vLLM's own start, most of which is one thread's work.
            gradient_worker, gradients_started = await stack.enter_async_context(
                _gradient_process(settings, model_path)
            )
        llm = await start_engine(args)
        stack.push_async_callback(stop_engine, llm)
        close_client_embeds(llm)
        hide_placeholders(llm)
        if settings.gradient_worker and on_gpu:
            gradient_worker = await shared_gradient_worker(llm, settings, model_path)
            if gradient_worker is None:
                gradient_worker, gradients_started = await stack.enter_async_context(
                    _gradient_process(settings, model_path)
                )
            else:
                stack.push_async_callback(gradient_worker.close)
        app = await _build_app(args, llm)
        engine = await VLLMEngine.create(llm, model_path, settings, gradient_worker)
        if gradients_started is not None:
            await gradients_started
        await stack.enter_async_context(app.router.lifespan_context(app))
        yield Launched(engine, app, args)


@contextmanager
def _socket_folder() -> Iterator[None]:
    """Give vLLM a folder for its sockets; in the temporary folder it leaves some at every start."""
    if "VLLM_RPC_BASE_PATH" in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="latentevolve-", ignore_cleanup_errors=True) as folder:
        os.environ["VLLM_RPC_BASE_PATH"] = folder
        try:
            yield
        finally:
            del os.environ["VLLM_RPC_BASE_PATH"]


async def _build_app(args: Namespace, llm: Any) -> Any:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await llm.get_supported_tasks()
    app = await asyncio.to_thread(build_app, args, tasks, llm.model_config)
    await init_app_state(llm, app.state, args, tasks)
    return app


async def shared_gradient_worker(
    llm: Any, settings: Settings, model_path: str
) -> SharedGradientWorker | None:
    """Return a started gradient worker on the weights of `llm`, None without one; the log says why."""
    reason = why_not_shared(llm.vllm_config)
    if reason is None:
        gradient_worker = SharedGradientWorker(
            llm, model_path, length=settings.latent_length, placement=settings.placement
        )
        try:
            await gradient_worker.start()
            logger.info("the gradient worker shares vLLM's weights")
            return gradient_worker
        except EngineDeadError:
            raise
        except EngineError as error:
            reason = str(error)
    logger.warning("the gradient worker becomes a process on the CPU, with a copy of the model: %s", reason)
    return None


@asynccontextmanager
async def _gradient_process(
    settings: Settings, model_path: str
) -> AsyncIterator[tuple[GradientWorker, Awaitable[None]]]:
    """Yield the gradient worker and what to await until it has started or failed to."""
    gradient_worker = GradientWorker(
        model_path,
        length=settings.latent_length,
        placement=settings.placement,
        max_model_len=settings.max_model_len,
    )

    async def start() -> None:
        try:
            await gradient_worker.start()
        except EngineDeadError as error:  # the self-checks say what that means
            logger.error("%s", error)

    starting = asyncio.create_task(start())
    try:
        yield gradient_worker, starting
    finally:
        await gradient_worker.close()
        await starting


def runs_on_cuda() -> bool:
    """Return whether vLLM computes on a GPU of NVIDIA's."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda())


def runs_on_cpu() -> bool:
    """Return whether vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def prepare_environment(settings: Settings, model_path: str) -> None:
    """Set what vLLM and its child processes read from the environment, before vllm is imported.

    What the operator has set stays, except the model runner: our hooks are written for V1.

    Raises:
        ValueError: the model is to be compiled on a CPU, and what that needs is missing; or
            `settings.vllm_args` is not understood.
    """
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    defaults = {
        # By default vLLM keeps a core for its scheduler: on two cores that leaves the model one.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        # Answers to one request: each has a copy of its prompt, and vLLM would let 16,384 be asked for.
        "VLLM_MAX_N_SEQUENCES": str(MOST_ANSWERS),
        "VLLM_LOGGING_LEVEL": settings.log_level,
    }
    if traces_endpoint(settings) is not None:
        defaults |= {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "latentevolve",
        }
    if Path(model_path).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(PROGRAMS)])
    preloaded = os.environ.get("LD_PRELOAD", "")
    runtime = intel_openmp()
    if runtime is not None and not any(name in preloaded for name in ("libiomp", "libomp", "libgomp")):
        os.environ["LD_PRELOAD"] = ":".join(filter(None, (str(runtime), preloaded)))
    if runs_on_cpu():
        if starts_eager(settings):
            # vLLM compiles parts of its sampler for an eager engine too: the self-check that asks for
            # log-probabilities would wait a dozen seconds or, without a compiler, end the engine.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        elif os.environ.get("TORCH_COMPILE_DISABLE") != "1":
            _require_compiler()
        if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
            # Nor in this process, where vLLM reads images and sound and torch has read the variable before.
            torch.compiler.set_stance("force_eager")


def starts_eager(settings: Settings) -> bool:
    """Return whether the model is not to be compiled, as vLLM will read it from `engine_arguments`.

    A `--config` file may make the engine eager where the setting does not; other options have the last word.

    Raises:
        ValueError: `settings.vllm_args` is not understood.
    """
    file, others = split(settings.vllm_args)
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    names = ("--enforce-eager", "--enforce_eager")
    parser.add_argument(*names, action=BooleanOptionalAction, default=False)
    ours = ["--enforce-eager"] if settings.enforce_eager else []
    known, _ = parser.parse_known_args([*file, *ours, *others])
    return bool(known.enforce_eager)


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    missing = []
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        missing.append("a C++ compiler")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python's headers")
    if missing:
        raise ValueError(
            f"enforce_eager is false, but compiling the model needs {' and '.join(missing)}: install "
            "them (on Debian: g++ and python3-dev), or set LATENTEVOLVE_ENFORCE_EAGER=true"
        )


def intel_openmp() -> Path | None:
    """Return the OpenMP runtime that vLLM's CPU builds bring along, None where there is none.

    Its threads sleep soon after their work instead of spinning: on two cores, which the engine's own
    processes share, answers come a third to a half faster. It has to be loaded before libgomp.
    """
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())).resolve() for file in files if file.name == "libiomp5.so")
    return next((path for path in found if path.is_file()), None)


def parse_arguments(settings: Settings, model_path: str) -> Namespace:
    """Return the namespace that `vllm serve` would parse from our settings.

    Raises:
        ValueError: `settings.vllm_args` is not understood.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = engine_arguments(
        settings,
        model_path,
        text_config(model_path),
        on_cpu=runs_on_cpu(),
        has_bfloat16=computes_in_bfloat16(),
    )
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    try:
        args: Namespace = parser.parse_args(arguments)
    except SystemExit as error:  # argparse has printed why
        raise ValueError(f"vLLM does not understand its options: {shlex.join(arguments)}") from error
    validate_parsed_serve_args(args)
    return args


def engine_arguments(
    settings: Settings, model_path: str, config: Any, *, on_cpu: bool, has_bfloat16: bool
) -> list[str]:
    """Return `vllm serve` options: our defaults, then `settings.vllm_args`, then what must hold.

    Args:
        settings: of the process.
        model_path: folder or hub id.
        config: of the model's text part, as transformers reads it.
        on_cpu: whether vLLM runs on a CPU.
        has_bfloat16: whether that CPU computes in bfloat16.
    """
    context = getattr(config, "max_position_embeddings", None)
    max_model_len = settings.max_model_len or (min(int(context), MAX_MODEL_LEN) if context else None)
    options = [
        "--model", model_path,
        "--served-model-name", settings.served_model_name or settings.model,
        "--max-num-seqs", str(settings.max_num_seqs),
        "--enable-auto-tool-choice",
        "--tool-call-parser", "hermes",
        "--scheduling-policy", "priority",
    ]  # fmt: skip
    if (endpoint := traces_endpoint(settings)) is not None:
        options += ["--otlp-traces-endpoint", endpoint]  # its spans become children of ours
    if max_model_len:
        options += ["--max-model-len", str(max_model_len)]
    if settings.enforce_eager:
        options.append("--enforce-eager")
    if on_cpu:
        # Not VLLM_CPU_KVCACHE_SPACE, which takes whole GiB only. Blocks of 128 tokens, the default on
        # CPUs, would leave most prompts without one full block that the steered pass can reuse.
        if settings.kv_cache_gib is not None:
            kv_bytes = int(settings.kv_cache_gib * 2**30)
        else:
            longest = (max_model_len or 0) + _CPU_BLOCK_SIZE
            kv_bytes = max(LEAST_KV_BYTES, longest * kv_values(config) * (2 if has_bfloat16 else 4))
        options += ["--kv-cache-memory-bytes", str(kv_bytes)]
        options += ["--block-size", str(_CPU_BLOCK_SIZE)]
        if not has_bfloat16:
            options += ["--dtype", "float32"]  # bfloat16 in software is many times slower
    options += shlex.split(settings.vllm_args)
    options += ["--enable-prefix-caching", "--enable-prompt-embeds"]
    options += ["--worker-extension-cls", "server.engine.extension.StateCatcher"]
    options += ["--enable-offline-docs"]  # the script and style of /docs
    options += ["--allowed-origins", "[]"]  # the gateway's own layer answers browsers (server/api/cors.py)
    return options


def text_config(model_path: str) -> Any:
    """Return the config of the model's text part."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model_path).get_text_config()


def computes_in_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
