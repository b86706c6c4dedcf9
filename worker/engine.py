"""The language model of a night.

Owns which engine a worker trains with, transformers, which gives gradients and needs no vLLM; and where it
runs.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from config.settings import Settings
from model.engine import Engine
from model.pull import resolve_model

logger = logging.getLogger(__name__)

EngineFactory = Callable[[Settings], Engine]
"""Builds an engine; blocks while the model loads."""

PREFIX_BYTES = 2**30
"""Most memory of the KV caches of episodes' prompts, which every epoch asks for again: about 23,000 tokens of
the default model, 44,000 of Qwen2.5-0.5B."""

ROOM = 3
"""Free memory that a GPU must have, in sizes of the model's weights: they, activations and gradients."""


def open_engine(settings: Settings) -> Engine:
    """Load the settings' model: in bfloat16 on a GPU that has room for it, else on the CPU in what that is
    quickest in (decisions/engine.md).

    Raises:
        ModelUnavailableError: there is no such model.
    """
    import torch

    from model.packed_linear import cpu_dtype
    from model.transformers_engine import TransformersEngine

    path = resolve_model(settings.model, settings.cache_dir, logger.info)
    on_gpu = has_room(Path(path))
    logger.info("the model runs on the %s", "GPU" if on_gpu else "CPU")
    return TransformersEngine(
        path,
        length=settings.latent_length,
        placement=settings.placement,
        max_model_len=settings.max_model_len,
        device="cuda" if on_gpu else "cpu",
        dtype=torch.bfloat16 if on_gpu else cpu_dtype(),
        prefix_bytes=PREFIX_BYTES,
    )


def has_room(model: Path) -> bool:
    """Return whether a GPU has room for the model in this folder beside all else that runs there."""
    import torch

    if not torch.cuda.is_available():
        return False
    free, _ = torch.cuda.mem_get_info()
    needed = ROOM * sum(file.stat().st_size for file in model.glob("*.safetensors")) + PREFIX_BYTES
    if free < needed:
        logger.warning(
            "the GPU has %.1f GiB free of the %.1f that training wants: leave room with "
            'LATENTEVOLVE_VLLM_ARGS="--gpu-memory-utilization ..."',
            free / 2**30,
            needed / 2**30,
        )
    return bool(free >= needed)
