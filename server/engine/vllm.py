"""The production engine: vLLM for keys and decoding, a gradient worker for gradients.

Owns the `Engine` protocol on `AsyncLLM`: how prompts with latents, decoding options and results
translate. Knows nothing of HTTP, memory or how latents are found. What keeps vLLM's processes is
`launch`'s.

A prompt with latents is one of vLLM's mixed prompts: rows whose `is_token_ids` is False are taken from
`prompt_embeds`, of which only these travel (`latent_rows.py`); all others are tokens. All prompts share one
prefix cache (`prefix_cache.py`): the pass that finds the key is the prefill of everything that follows.
"""

import asyncio
import os
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import torch

from config.settings import Settings
from model.choice_trie import ChoiceTrie
from model.engine import (
    Decoding,
    EngineError,
    Finished,
    Generation,
    Label,
    LatentGradient,
    PromptTooLongError,
    SteeredPrompt,
    UnsupportedError,
    cache_salt,
    in_background,
)
from model.engine_time import in_engine
from model.fingerprint import checkpoint_dtype, space_of
from model.keys import KEY_PROBES, centre, centred
from model.placement import Placement, has_template, render_chat
from model.space import LatentRejectedError, LatentSpace
from server.engine.decoding import generation_of, reasoning_of, sampling_params
from server.engine.errors import translated
from server.engine.extension import KEY_REQUEST
from server.engine.latent_rows import LatentRows, send_rows_alone
from server.tracing import headers_of

T = TypeVar("T")

BEHIND = 1_000_000
"""Priority of what nobody waits for; requests have 0 unless they name another, and go before it."""

OWN_REQUEST = f"latent.{uuid.uuid4().hex}."
"""How ids of what is decoded here begin, in place of what vLLM's serving decodes."""


class VLLMEngine:
    """Implements `Engine`. Build it with `create`.

    Attributes:
        llm: vLLM's `AsyncLLM`, also behind vLLM's own app.
        tokenizer: the Hugging Face tokenizer.
        gradient worker: engine for likelihoods and gradients, or None.
    """

    def __init__(
        self,
        llm: Any,
        space: LatentSpace,
        placement: Placement,
        gradient_worker: Any | None,
        *,
        rows_alone: bool = False,
    ) -> None:
        """Take a started engine.

        Args:
            rows_alone: Whether a latent's rows travel alone; without, prompts do as vLLM has it.
        """
        self.llm = llm
        self.tokenizer = llm.get_tokenizer()
        self.gradient_worker = gradient_worker
        self.space = space
        self._placement = placement
        self._rows_alone = rows_alone
        self._dtype: torch.dtype = llm.model_config.dtype
        self._centre = torch.zeros(space.hidden_size)
        self._neutral = torch.zeros(space.shape)

    @classmethod
    async def create(
        cls, llm: Any, model_path: str, settings: Settings, gradient_worker: Any | None = None
    ) -> "VLLMEngine":
        """Hook into `llm`'s workers and find the centre of keys through the engine's own key pass."""
        await llm.collective_rpc("end_with_front_end", args=(os.getpid(),))
        rows_alone = all(await llm.collective_rpc("hook_into_engine"))
        if rows_alone:
            send_rows_alone(llm)
        tokenizer = llm.get_tokenizer()
        placement = Placement.of(tokenizer, settings.placement)
        hidden_size = llm.model_config.get_hidden_size()
        space = await asyncio.to_thread(
            space_of,
            model_path,
            tokenizer,
            hidden_size,
            checkpoint_dtype(model_path),
            settings.latent_length,
            settings.placement,
        )
        engine = cls(llm, space, placement, gradient_worker, rows_alone=rows_alone)
        engine._neutral = await engine.embed(placement.neutral_tokens(space.length))
        if has_template(tokenizer):  # without one nothing is steered, and a self-check says so
            probes = [engine.render([{"role": "user", "content": probe}]) for probe in KEY_PROBES]
            engine._centre = centre(await engine.raw_states(probes))
        return engine

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus latents plus answer, in tokens."""
        return int(self.llm.model_config.max_model_len)

    def render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Return the tokens of chat messages with the generation prompt."""
        return render_chat(self.tokenizer, messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        text = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a finished answer: the text's own, then the end of the sequence."""
        return (*self.tokenizer.encode(text, add_special_tokens=False), self._end)

    @property
    def _end(self) -> int:
        if self._placement.end is None:
            raise EngineError("the tokenizer names no token that ends an answer")
        return self._placement.end

    def position(self, token_ids: Sequence[int]) -> int:
        """Return the index before which latents go.

        Raises:
            PlacementError: the prompt does not end as the chat template ends prompts.
        """
        return self._placement.position(token_ids)

    def neutral_latent(self) -> torch.Tensor:
        """Return the neutral start, (L, d): embeddings of the placement's neutral tokens."""
        return self._neutral.clone()

    async def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return input embeddings of tokens, (n, d) float32."""
        with translated():
            (rows, *_) = await self.llm.collective_rpc("embed_latent_tokens", args=(list(token_ids),))
        return torch.frombuffer(bytearray(rows), dtype=torch.float32).reshape(len(token_ids), -1)

    async def next_tokens(self, states: torch.Tensor) -> list[int]:
        """Return the tokens that the model's own head reads from final hidden states, (B, d)."""
        data = states.float().contiguous().numpy().tobytes()
        with translated():
            answers = await self.llm.collective_rpc("decode_key_states", args=(data,))
        return list(next((answer for answer in answers if answer), []))

    def mixed_input(
        self,
        token_ids: Sequence[int],
        latent: torch.Tensor | None = None,
        position: int | None = None,
        text: str | None = None,
    ) -> Any:
        """Return vLLM's input for a prompt, if need be with `latent`, (L, d), before `token_ids[position]`.

        Args:
            position: None: where the placement says.
            text: the prompt's text, when it is at hand.

        Raises:
            LatentRejectedError, PlacementError, PromptTooLongError, PromptRejectedError.
        """
        from vllm.inputs import embeds_input, tokens_input

        ids, length = list(token_ids), 0
        mask = [True] * len(ids)
        if latent is not None:
            latent = self.space.check(latent).to(self._dtype, copy=True).contiguous()
            if not bool(latent.any(dim=1).all()):
                # vLLM's digest of a block does not tell a row of zeros from a real token's (vllm#56655).
                raise LatentRejectedError("latent holds a row of zeros")
            if position is None:
                position = self.position(ids)
            elif not 1 <= position <= len(ids):
                raise ValueError(f"position {position} is outside of 1 to {len(ids)}")
            length = len(latent)
            # The token before is one the prompt has already, so penalties on repeated tokens stay.
            ids[position:position] = [ids[position - 1]] * length
            mask[position:position] = [False] * length
        if len(ids) >= self.max_model_len:
            raise PromptTooLongError(
                f"{len(token_ids)} prompt tokens and {length} latents leave no room in {self.max_model_len}"
            )
        with translated():
            self.llm.renderer.validate_token_ids(ids)  # vLLM itself validates tokens of plain prompts only
        salt = cache_salt.get()
        if latent is None and self._rows_alone:
            return tokens_input(ids, prompt=text, cache_salt=salt)
        if latent is None or position is None:
            rows = LatentRows(torch.zeros(0, self.space.hidden_size, dtype=self._dtype), 0, len(ids))
        else:
            rows = LatentRows(latent, position, len(ids))
        return embeds_input(
            rows if self._rows_alone else rows[:],
            prompt=text,
            cache_salt=salt,
            prompt_token_ids=ids,
            is_token_ids=mask,
        )

    async def raw_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the uncentred final hidden states at the last tokens of plain prompts, (B, d)."""
        return await self._last_states([self.mixed_input(prompt) for prompt in prompts])

    async def _last_states(self, inputs: Sequence[Any]) -> torch.Tensor:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )

        async def one(prompt: Any) -> torch.Tensor:
            # Not `generate`, which takes no other output than tokens.
            with translated():
                request_id = f"{KEY_REQUEST}{uuid.uuid4().hex}"
                queue = await self.llm.add_request(request_id, prompt, params, **self._beside())
                try:
                    output = await queue.get()
                except asyncio.CancelledError:
                    await self.llm.abort(queue.request_id, internal=True)
                    raise
            state: torch.Tensor | None = getattr(output.outputs, "data", None)
            if state is None:
                raise EngineError("the worker gave no hidden state of the request")
            return state

        with in_engine():
            return torch.stack(await _all([one(prompt) for prompt in inputs]))

    async def keys(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the retrieval keys of plain prompts, (B, d), centred and of norm 1."""
        return centred(await self.raw_states(prompts), self._centre)

    async def generate(
        self,
        prompts: Sequence[SteeredPrompt],
        decoding: Decoding | Sequence[Decoding],
        *,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Decode one answer per prompt, as one batch. Cancellation aborts what still runs.

        Raises:
            LatentRejectedError, PlacementError, PromptTooLongError, EngineDeadError.
        """
        each = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        inputs = [self.mixed_input(prompt.token_ids, prompt.latent, prompt.position) for prompt in prompts]

        async def one(index: int, prompt: Any, how: Decoding) -> Generation:
            room = self.max_model_len - len(prompt["prompt_token_ids"])
            request_id = f"{OWN_REQUEST}{uuid.uuid4().hex}"
            params = sampling_params(how, room)
            answer = generation_of(await self._outputs(prompt, params, request_id, **reasoning_of(how)))
            if finished is not None:
                finished(index, answer)
            return answer

        with in_engine():
            return await _all(
                [one(at, prompt, how) for at, (prompt, how) in enumerate(zip(inputs, each, strict=True))]
            )

    async def choice_log_probabilities(
        self, prompts: Sequence[SteeredPrompt], choices: tuple[str, ...], *, held: bool
    ) -> torch.Tensor:
        """Return the log-probability of each choice, (B, choices), among them.

        One pass for each place where choices part (held) or go on (not held), all in one batch; the prompt is
        read once, for they share its blocks.

        Raises:
            LatentRejectedError, PlacementError, PromptTooLongError, EngineDeadError.
        """
        trie = ChoiceTrie((self.answer_tokens(choice)[:-1] for choice in choices), self._end)
        places = trie.branches if held else trie.beginnings
        if len(choices) == 1 or not prompts:
            return torch.zeros(len(prompts), len(choices))
        inputs = []
        for prompt in prompts:
            position = prompt.position
            if prompt.latent is not None and position is None:
                position = self.position(prompt.token_ids)
            inputs += [
                self.mixed_input((*prompt.token_ids, *taken), prompt.latent, position) for taken in places
            ]
        states = await self._last_states(inputs)  # (B · places, d)
        allowed = [trie.allowed(taken) for taken in places] * len(prompts)
        with translated():
            answers = await self.llm.collective_rpc(
                "draw_from_key_states", args=(states.contiguous().numpy().tobytes(), allowed, held)
            )
        drawn = next(answer for answer in answers if answer)
        count = len(places)
        logs = [
            trie.log_probabilities(dict(zip(places, drawn[at : at + count], strict=True)))
            for at in range(0, len(drawn), count)
        ]
        return torch.tensor(logs).log_softmax(dim=1)

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        """Return what each label is worth, (B,).

        Raises:
            UnsupportedError: the engine has no gradient worker.
        """
        with in_engine():
            values: torch.Tensor = await self._gradient_worker().log_likelihood(
                self._checked(prompts), labels
            )
        return values

    async def latent_gradient(
        self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label], weights: Sequence[float]
    ) -> LatentGradient:
        """Return what each label is worth and the weighted gradients with respect to each prompt's latent.

        Raises:
            UnsupportedError: as `log_likelihood`.
        """
        with in_engine():
            gradient: LatentGradient = await self._gradient_worker().latent_gradient(
                self._checked(prompts), labels, weights
            )
        return gradient

    async def close(self) -> None:
        """Do nothing: vLLM and the gradient worker are ended by `launch`, which started them."""

    def _gradient_worker(self) -> Any:
        if self.gradient_worker is None:
            raise UnsupportedError(
                "likelihoods and gradients need the gradient worker (LATENTEVOLVE_GRADIENT_WORKER)"
            )
        return self.gradient_worker

    def _checked(self, prompts: Sequence[SteeredPrompt]) -> list[SteeredPrompt]:
        return [
            prompt
            if prompt.latent is None
            else SteeredPrompt(prompt.token_ids, self.space.check(prompt.latent), prompt.position)
            for prompt in prompts
        ]

    def _beside(self) -> dict[str, Any]:
        """Return what else vLLM is told of a request: whose child its span is, and how soon it is due.

        Work that nobody waits for goes behind all other; vLLM knows that by one policy only.
        """
        beside: dict[str, Any] = {}
        if (headers := headers_of()) is not None:
            beside["trace_headers"] = headers
        if in_background.get() and self.llm.vllm_config.scheduler_config.policy == "priority":
            beside["priority"] = BEHIND
        return beside

    async def _outputs(self, prompt: Any, params: Any, request_id: str, **beside: Any) -> list[Any]:
        with translated():
            return [
                output
                async for output in self.llm.generate(prompt, params, request_id, **beside, **self._beside())
            ]


async def _all(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; when one fails or the caller is cancelled, cancel the others and wait for them."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
