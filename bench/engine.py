"""The model of a benchmark that runs in this process.

Owns which engine is opened, its life, and the count of what it computes. Knows nothing of what is asked.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from cli.failure import CommandError
from config.settings import Settings

if TYPE_CHECKING:  # torch takes a second
    from model.engine import Engine, Generation, Label, SteeredPrompt

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


class Counted:
    """An engine that somebody else closes, and what it has computed.

    What rows of one call have in common counts once; each call reads its prompts anew.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.forward = 0
        """Forward-equivalent tokens: a token of a forward pass counts 1, of forward and backward 3."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def keys(self, prompts: Sequence[Sequence[int]]) -> Any:
        """As `Engine.keys`."""
        self.forward += sum(map(len, prompts))
        return await self._engine.keys(prompts)

    async def generate(
        self, prompts: "Sequence[SteeredPrompt]", *how: Any, **named: Any
    ) -> "list[Generation]":
        """As `Engine.generate`."""
        answers = await self._engine.generate(prompts, *how, **named)
        self._read(prompts)
        self.forward += sum(len(answer.token_ids) for answer in answers)
        return answers

    async def choice_log_probabilities(
        self, prompts: "Sequence[SteeredPrompt]", choices: tuple[str, ...], *, held: bool
    ) -> Any:
        """As `Engine.choice_log_probabilities`."""
        self._read(prompts)
        self.forward += len(prompts) * sum(len(self._engine.answer_tokens(choice)) for choice in choices)
        return await self._engine.choice_log_probabilities(prompts, choices, held=held)

    async def log_likelihood(self, prompts: "Sequence[SteeredPrompt]", labels: "Sequence[Label]") -> Any:
        """As `Engine.log_likelihood`."""
        self._read(prompts)
        self.forward += sum(len(answer) for label in labels for answer in label.answers)
        return await self._engine.log_likelihood(prompts, labels)

    async def latent_gradient(
        self, prompts: "Sequence[SteeredPrompt]", labels: "Sequence[Label]", weights: Sequence[float]
    ) -> Any:
        """As `Engine.latent_gradient`; what stands before a latent is read without gradient."""
        for prompt, label in zip(prompts, labels, strict=True):
            at = self._engine.position(prompt.token_ids) if prompt.position is None else prompt.position
            behind = len(prompt.token_ids) - at + self._engine.space.length
            self.forward += at + 3 * (behind + sum(map(len, label.answers)))
        return await self._engine.latent_gradient(prompts, labels, weights)

    async def close(self) -> None:
        """Leave it open."""

    def _read(self, prompts: "Sequence[SteeredPrompt]") -> None:
        different = {
            (prompt.token_ids, None if prompt.latent is None else prompt.latent.numpy().tobytes())
            for prompt in prompts
        }
        length = self._engine.space.length
        self.forward += sum(len(tokens) + (length if latent else 0) for tokens, latent in different)
