"""A language model without weights, for tests.

Owns a byte tokenizer with a chat template, keys that group prompts by their topic word, and a
likelihood with a known best latent, so that what improves latents can be seen improving them.
Deterministic: the same calls give the same answers, in any batch and any process.

The model, in full. A prompt's topic is the first word of its last user message. For each topic a unit
direction u of shape (L, d) is drawn from the topic's name. A latent z stands at

    t(z) = <z − z_neutral, u> / (reach · ‖z_neutral‖),    s(z) = steepness · (1 − 2 (t − 1)²)

and the model answers well with probability sigmoid(s): 0.05 at the neutral start (t = 0) and without
a latent, 0.95 at `best_latent` (t = 1), less beyond. Greedy answers turn good at t ≈ 0.3. Moves across
u change nothing, and the direction of one topic is nearly orthogonal to that of any other.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.functional import logsigmoid, normalize

from model.engine import (
    Decoding,
    EngineDeadError,
    Finished,
    Generation,
    Label,
    LatentGradient,
    PlacementError,
    PromptRejectedError,
    PromptTooLongError,
    SteeredPrompt,
    UnsupportedError,
)
from model.engine_time import in_engine
from model.keys import KEY_VERSION
from model.placement import NEUTRAL_VERSION, Placement, PlacementKind
from model.space import LatentSpace

OPEN, CLOSE = 256, 257
"""Tokens that open and close a chat message; 0 … 255 are the bytes of UTF-8, and CLOSE ends an answer."""

GOOD, POOR = "Answer: ", "Perhaps "
"""How good and poor answers of the default script begin."""

Script = Callable[[str, torch.Tensor | None, Decoding], str]
"""Answer to (text of the rendered prompt, latent or None, decoding)."""


@dataclass(frozen=True)
class Call:
    """One call that reached the engine."""

    method: str
    prompts: tuple[tuple[int, ...], ...]
    latents: tuple[torch.Tensor | None, ...] = ()


class ScriptedEngine:
    """Implements `Engine` as the module says.

    Args:
        answer: script of answers; None: good and poor answers as the likelihood says.
        is_good: whether an answer text is one that better latents make likelier.
        delay_s: time that every asynchronous method takes.
        differentiable: False: no likelihoods and gradients, as an engine without a gradient worker.
        revision: enters the space id, so that two engines can be of two spaces.
    """

    def __init__(
        self,
        *,
        length: int = 4,
        hidden_size: int = 64,
        placement: PlacementKind = "user_turn_end",
        max_model_len: int = 8192,
        answer: Script | None = None,
        is_good: Callable[[str], bool] = lambda text: not text.startswith(POOR),
        reach: float = 0.1,
        steepness: float = 3.0,
        delay_s: float = 0.0,
        differentiable: bool = True,
        revision: str = "1",
    ) -> None:
        self.space = LatentSpace(
            model="scripted",
            revision=revision,
            template="bytes",
            length=length,
            hidden_size=hidden_size,
            placement=placement,
            dtype="float32",
            key_version=KEY_VERSION,
            neutral_version=NEUTRAL_VERSION,
        )
        self._max_model_len = max_model_len
        self._placement = Placement(placement, (CLOSE, OPEN, *b"assistant\n"), neutral=(), end=CLOSE)
        self._neutral = _drawn("newline", 1, hidden_size).repeat(length, 1)
        self._best_distance = reach * self._neutral.norm()
        self._answer = answer or self._default_answer
        self._is_good = is_good
        self._steepness = steepness
        self._differentiable = differentiable
        self.delay_s = delay_s
        self.alive = True
        """Set to False: every asynchronous method raises EngineDeadError."""
        self.calls: list[Call] = []

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus latents plus answer, in bytes."""
        return self._max_model_len

    def render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Return the tokens of chat messages with the generation prompt."""
        tokens: list[int] = []
        for message in messages:
            tokens += [OPEN, *f"{message['role']}\n{message['content']}".encode(), CLOSE]
        return (*tokens, OPEN, *b"assistant\n")

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of plain text: its bytes."""
        return tuple(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, OPEN and CLOSE left out."""
        return _decoded(tuple(token_ids))

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a finished answer: the text's own, then the end of the sequence."""
        return (*self.encode(text), CLOSE)

    def position(self, token_ids: Sequence[int]) -> int:
        """Return the index before which latents go.

        Raises:
            PlacementError: the prompt does not end as `render` ends prompts.
        """
        return self._placement.position(token_ids)

    def neutral_latent(self) -> torch.Tensor:
        """Return the neutral start, (L, d): one drawn row, repeated, wherever latents stand."""
        return self._neutral.clone()

    def topic(self, token_ids: Sequence[int]) -> str:
        """Return the first word of the last user message, or of the whole text, in lower case."""
        word = re.search(r"\w+", self._question(token_ids))
        return word[0].lower() if word else ""

    def best_latent(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the best latent for a prompt that is nearest to the neutral one, (L, d)."""
        best: torch.Tensor = self._neutral + self._best_distance * self._direction(token_ids)
        return best

    def score(self, token_ids: Sequence[int], latent: torch.Tensor | None) -> torch.Tensor:
        """Return s(z) of the module's docstring; differentiable in `latent`. None counts as neutral."""
        z = self._neutral if latent is None else latent
        t = ((z - self._neutral) * self._direction(token_ids)).sum() / self._best_distance
        score: torch.Tensor = self._steepness * (1 - 2 * (t - 1) ** 2)
        return score

    async def keys(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return keys, (B, d): cosine about 0.9 within a topic, about 0 across topics."""
        await self._enter("keys", [SteeredPrompt(tuple(prompt)) for prompt in prompts])
        rows = []
        for prompt in prompts:
            topic = _unit(f"key {self.topic(prompt)}", 1, self.space.hidden_size)
            itself = _unit(f"text {tuple(prompt)}", 1, self.space.hidden_size)
            rows.append(normalize(topic + 0.3 * itself, dim=-1))
        return torch.cat(rows) if rows else torch.zeros(0, self.space.hidden_size)

    async def generate(
        self,
        prompts: Sequence[SteeredPrompt],
        decoding: Decoding | Sequence[Decoding],
        *,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Answer each prompt by the script; `Generation.logprobs` is log sigmoid(s) at every token."""
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        if len(decodings) != len(prompts):
            raise ValueError(f"{len(decodings)} decodings for {len(prompts)} prompts")
        await self._enter("generate", prompts)
        answers = [self._generate(prompt, how) for prompt, how in zip(prompts, decodings, strict=True)]
        for index, answer in enumerate(answers):
            if finished is not None:
                finished(index, answer)
        return answers

    async def choice_log_probabilities(
        self, prompts: Sequence[SteeredPrompt], choices: tuple[str, ...], *, held: bool
    ) -> torch.Tensor:
        """Return log sigmoid(s) of good choices, log sigmoid(−s) of poor ones, (B, choices), held or not."""
        await self._enter("choice_log_probabilities", prompts)
        labels = [Label.of(self.answer_tokens(choice), choices) for choice in choices]
        values = [
            self._log_likelihood(prompt.token_ids, prompt.latent, label)
            for prompt in prompts
            for label in labels
        ]
        return torch.stack(values).reshape(len(prompts), len(choices))

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        """Return log sigmoid(s) for good answers, log sigmoid(−s) for poor ones, (B,), among choices too."""
        self._demand_gradients()
        await self._enter("log_likelihood", prompts)
        values = [
            self._log_likelihood(prompt.token_ids, prompt.latent, label)
            for prompt, label in zip(prompts, labels, strict=True)
        ]
        return torch.stack(values) if values else torch.zeros(0)

    async def latent_gradient(
        self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label], weights: Sequence[float]
    ) -> LatentGradient:
        """Return log-likelihoods and their weighted gradients with respect to each prompt's latent."""
        self._demand_gradients()
        await self._enter("latent_gradient", prompts)
        values, gradients = [], []
        for prompt, label, weight in zip(prompts, labels, weights, strict=True):
            if prompt.latent is None:
                raise ValueError("a gradient needs a latent in every prompt")
            latent = prompt.latent.detach().clone().requires_grad_()
            with torch.enable_grad():
                value = self._log_likelihood(prompt.token_ids, latent, label)
                (gradient,) = torch.autograd.grad(weight * value, latent)
            values.append(value.detach())
            gradients.append(gradient)
        if not values:
            return LatentGradient(torch.zeros(0), torch.zeros(0, *self.space.shape))
        return LatentGradient(torch.stack(values), torch.stack(gradients))

    async def close(self) -> None:
        """End the engine: later calls raise EngineDeadError."""
        self.alive = False

    async def _enter(self, method: str, prompts: Sequence[SteeredPrompt]) -> None:
        for prompt in prompts:
            if prompt.latent is not None:
                self.space.check(prompt.latent)
                if prompt.position is None:
                    self.position(prompt.token_ids)
                elif not 0 <= prompt.position <= len(prompt.token_ids):
                    raise PlacementError(f"position {prompt.position} lies outside the prompt")
            latents = 0 if prompt.latent is None else self.space.length
            if len(prompt.token_ids) + latents >= self._max_model_len:
                raise PromptTooLongError(
                    f"prompt of {len(prompt.token_ids)} tokens with {latents} latents leaves no room in "
                    f"{self._max_model_len}"
                )
            if not all(0 <= token <= CLOSE for token in prompt.token_ids):
                raise PromptRejectedError(f"tokens are 0 to {CLOSE}")
        self.calls.append(Call(method, tuple(p.token_ids for p in prompts), tuple(p.latent for p in prompts)))
        with in_engine():
            await asyncio.sleep(self.delay_s)
        if not self.alive:
            raise EngineDeadError("the scripted engine was ended")

    def _generate(self, prompt: SteeredPrompt, decoding: Decoding) -> Generation:
        text = self._answer(self.decode(prompt.token_ids), prompt.latent, decoding)
        ends = [at for at in (text.find(stop) for stop in decoding.stop) if at >= 0]
        if ends:
            text = text[: min(ends)]
        latents = 0 if prompt.latent is None else self.space.length
        room = min(decoding.max_tokens, self._max_model_len - len(prompt.token_ids) - latents)
        tokens = (*text.encode(), CLOSE)
        finished = len(tokens) <= room or (bool(ends) and len(tokens) - 1 <= room)
        if ends or not finished:
            tokens = tokens[: min(room, len(tokens) - 1)]
        confidence = float(logsigmoid(self.score(prompt.token_ids, prompt.latent)))
        return Generation(
            text=self.decode(tokens),
            token_ids=tokens,
            finish_reason="stop" if finished else "length",
            logprobs=(confidence,) * len(tokens) if decoding.logprobs else (),
        )

    def _default_answer(self, prompt: str, latent: torch.Tensor | None, decoding: Decoding) -> str:
        """Good: a number that the prompt fixes. Poor: one that also depends on latent and seed."""
        if decoding.native is not None:
            raise UnsupportedError("the default script decodes no other engine's requests; give `answer`")
        probability = float(torch.sigmoid(self.score(tuple(prompt.encode()), latent)))
        if decoding.temperature == 0:
            good = probability > 0.5
        else:
            good = _number(f"luck {decoding.seed} {_print(latent)} {prompt}") / 2**32 < probability
        right = _number(prompt)
        wrong = _number(f"{prompt} {_print(latent)} {decoding.seed if decoding.temperature else ''}")
        if decoding.choices:
            count = len(decoding.choices)
            if good or count == 1:
                return decoding.choices[right % count]
            return decoding.choices[(right + 1 + wrong % (count - 1)) % count]
        return f"{GOOD}{right % 1000}" if good else f"{POOR}{wrong % 1000}"

    def _log_likelihood(
        self, token_ids: Sequence[int], latent: torch.Tensor | None, label: Label
    ) -> torch.Tensor:
        score = self.score(token_ids, latent)
        signs = [1 if self._is_good(self.decode(answer)) else -1 for answer in label.answers]
        return logsigmoid(score * torch.tensor(signs)) @ torch.tensor(label.probabilities)

    def _direction(self, token_ids: Sequence[int]) -> torch.Tensor:
        return _unit(f"latent {self.topic(token_ids)}", *self.space.shape)

    def _question(self, token_ids: Sequence[int]) -> str:
        # Text without its markers is read too: scripts see the prompt as text.
        text = self.decode(token_ids)
        _, marker, after = text.rpartition("user\n")
        return after.removesuffix("assistant\n") if marker else text

    def _demand_gradients(self) -> None:
        if not self._differentiable:
            raise UnsupportedError("this engine has no gradient worker")


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _print(latent: torch.Tensor | None) -> str:
    return "" if latent is None else hashlib.sha256(latent.float().numpy().tobytes()).hexdigest()


def _drawn(name: str, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_number(name))
    return torch.randn(rows, columns, generator=generator)


@lru_cache(maxsize=4096)
def _decoded(token_ids: tuple[int, ...]) -> str:
    return bytes(token for token in token_ids if token < 256).decode(errors="replace")


@lru_cache(maxsize=4096)
def _unit(name: str, rows: int, columns: int) -> torch.Tensor:
    drawn = _drawn(name, rows, columns)
    unit: torch.Tensor = drawn / drawn.norm()
    return unit
