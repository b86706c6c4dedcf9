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
        if kind == "vllm":
            from server.engine.launch import launch

            path = resolve_model(settings.model, settings.cache_dir, lambda message: None)
            async with launch(settings, path) as launched:
                yield launched.engine
            return
        from worker.engine import open_engine as open_transformers

        engine = open_transformers(settings)
    except ModelUnavailableError as error:
        raise CommandError(str(error)) from error
    try:
        yield engine
    finally:
        await engine.close()
