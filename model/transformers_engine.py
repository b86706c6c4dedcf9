"""The reference engine: transformers, in this process.

Owns the asynchronous face of `FrozenModel` and the centre of its keys. One worker thread runs one call
at a time, so the event loop stays free and memory stays bounded. Used for training, for machines
without vLLM, and as the reference that vLLM is checked against.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

import torch

from model.engine import Decoding, EngineDeadError, Finished, Generation, Label, LatentGradient, SteeredPrompt
from model.frozen_model import FrozenModel
from model.keys import KEY_PROBES, centre, centred
from model.placement import PlacementKind
from model.prefixes import LIMIT_BYTES

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


@dataclass
class _Call:
    """One caller's `generate`, on its way through the worker thread."""

    prompts: list[SteeredPrompt]
    decodings: list[Decoding]
    answers: asyncio.Future[list[Generation]]
    given_up: threading.Event = field(default_factory=threading.Event)

    def end(self, answers: list[Generation]) -> None:
        self.answers.get_loop().call_soon_threadsafe(self._settle, answers, None)

    def fail(self, error: Exception) -> None:
        self.answers.get_loop().call_soon_threadsafe(self._settle, None, error)

    def _settle(self, answers: list[Generation] | None, error: Exception | None) -> None:
        if self.answers.done():  # the caller was cancelled
            return
        if error is not None:
            self.answers.set_exception(error)
        else:
            self.answers.set_result(answers or [])


class TransformersEngine:
    """Implements `Engine` on transformers. Arguments and errors: `FrozenModel`. Loading blocks."""

    def __init__(
        self,
        model_path: str,
        *,
        length: int,
        placement: PlacementKind,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        max_model_len: int | None = None,
        prefix_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._model: FrozenModel | None = FrozenModel(
            model_path,
            length=length,
            placement=placement,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            prefix_bytes=prefix_bytes,
        )
        self.space = self._model.space
        self._centre: torch.Tensor | None = None
        self._calls: list[_Call] = []
        self._taking = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers")

    @property
    def model(self) -> FrozenModel:
        """The model itself, for blocking callers that share this engine with nobody."""
        if self._model is None:
            raise EngineDeadError("the transformers engine was closed")
        return self._model

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus latents plus answer, in tokens."""
        return self.model.max_model_len

    def render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Return the tokens of chat messages with the generation prompt."""
        return self.model.render(messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return self.model.decode(token_ids)

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a finished answer: the text's own, then the end of the sequence."""
        return self.model.answer_tokens(text)

    def position(self, token_ids: Sequence[int]) -> int:
        """Return the index before which latents go, or raise PlacementError."""
        return self.model.position(token_ids)

    def neutral_latent(self) -> torch.Tensor:
        """Return the neutral start, (L, d): embeddings of the placement's neutral tokens."""
        return self.model.neutral_latent()

    async def raw_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return uncentred final hidden states at the prompts' last tokens, (B, d)."""
        return await self._run(self.model.raw_states, prompts)

    async def keys(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the retrieval keys of plain prompts, (B, d), centred and of norm 1."""
        return await self._run(self._keys, prompts)

    async def generate(
        self,
        prompts: Sequence[SteeredPrompt],
        decoding: Decoding | Sequence[Decoding],
        *,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Decode one answer per prompt; an answer does not depend on the rest of the batch.

        Raises:
            LatentRejectedError, PlacementError, PromptTooLongError.
            UnsupportedError: a JSON schema is asked for.
        """
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        call = _Call(list(prompts), decodings, asyncio.get_running_loop().create_future())
        with self._taking:
            self._calls.append(call)
        try:
            await self._run(self._generate_waiting)
            answers = await call.answers
        except asyncio.CancelledError:
            call.given_up.set()  # ends it within a token where it is under way
            with self._taking:
                self._calls = [other for other in self._calls if other is not call]
            raise
        for index, answer in enumerate(answers):  # a batch ends as a whole
            if finished is not None:
                finished(index, answer)
        return answers

    async def choice_log_probabilities(
        self, prompts: Sequence[SteeredPrompt], choices: tuple[str, ...], *, held: bool
    ) -> torch.Tensor:
        """Return the log-probability of each choice, (B, choices), among them."""
        answers = [self.answer_tokens(choice) for choice in choices]
        labels = [Label.of(answer, choices if held else ()) for answer in answers]
        values = await self.log_likelihood(
            [prompt for prompt in prompts for _ in labels], [label for _ in prompts for label in labels]
        )
        values = values.reshape(len(prompts), len(choices))
        if not held:  # the engine's value of a free answer is a mean per token
            values = values * torch.tensor([float(len(answer)) for answer in answers])
        return values.log_softmax(dim=1)

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        """Return what each label is worth, (B,)."""
        return await self._run(self.model.log_likelihood, prompts, labels)

    async def latent_gradient(
        self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label], weights: Sequence[float]
    ) -> LatentGradient:
        """Return what each label is worth and the weighted gradients with respect to each prompt's latent."""
        return await self._run(self.model.latent_gradient, prompts, labels, weights)

    async def close(self) -> None:
        """Wait for the calls under way and release the model."""
        await asyncio.to_thread(self._thread.shutdown)
        self._model = None

    def _generate_waiting(self) -> None:
        """Decode what all callers wait for as one batch: a large one takes hardly longer than a small one."""
        with self._taking:
            calls, self._calls = self._calls, []
        if not calls:
            return  # an earlier turn of the thread has taken this call too
        try:
            answers = self._answers(calls)
        except Exception as error:
            if len(calls) == 1:
                calls[0].fail(error)
                return
            for call in calls:  # one bad request must not spoil the others'
                try:
                    call.end(self._answers([call]))
                except Exception as own:
                    call.fail(own)
            return
        start = 0
        for call in calls:
            call.end(answers[start : start + len(call.prompts)])
            start += len(call.prompts)

    def _answers(self, calls: Sequence[_Call]) -> list[Generation]:
        return self.model.generate(
            [prompt for call in calls for prompt in call.prompts],
            [decoding for call in calls for decoding in call.decodings],
            [call.given_up.is_set for call in calls for _ in call.prompts],
        )

    def _keys(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        if self._centre is None:
            probes = [self.render([{"role": "user", "content": probe}]) for probe in KEY_PROBES]
            self._centre = centre(self.model.raw_states(probes))
        return centred(self.model.raw_states(prompts), self._centre)

    async def _run(self, call: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        try:
            answer = asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except RuntimeError as error:
            raise EngineDeadError("the transformers engine was closed") from error
        return await answer
