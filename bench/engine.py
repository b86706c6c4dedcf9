"""The model of a benchmark that runs in this process.

Owns which engine is opened and its life. Knows nothing of what is asked.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

from cli.failure import CommandError
from config.settings import Settings

if TYPE_CHECKING:  # torch takes a second
    from model.engine import Engine

EngineKind = Literal["transformers", "vllm"]


@asynccontextmanager
async def open_engine(settings: Settings, kind: EngineKind) -> AsyncIterator["Engine"]:
    """Load the settings' model, both kinds with gradients, and release it in the end.

    Raises:
        CommandError: its files cannot be found or made.
    """
    from model.engine import ModelUnavailableError
    from model.pull import resolve_model

    try:
        path = resolve_model(settings.model, settings.cache_dir, lambda message: None)
    except ModelUnavailableError as error:
        raise CommandError(str(error)) from error
    if kind == "vllm":
        from server.engine.launch import launch

        async with launch(settings, path) as launched:
            yield launched.engine
        return
    import torch

    from model.transformers_engine import TransformersEngine

    on_gpu = torch.cuda.is_available()
    engine = TransformersEngine(
        path,
        length=settings.latent_length,
        placement=settings.placement,
        max_model_len=settings.max_model_len,
        device="cuda" if on_gpu else "cpu",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
    )
    try:
        yield engine
    finally:
        await engine.close()
