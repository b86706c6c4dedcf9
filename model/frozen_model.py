"""The frozen language model on transformers, in plain blocking calls.

Owns weights, tokenizer and what is computed with them: states, answers, likelihoods, and the gradient
with respect to latents. `model/transformers_engine.py` makes it asynchronous, `model/gradient_worker.py`
puts it into its own process. Knows nothing of vLLM.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from model.choice_trie import ChoiceTrie
from model.decoder import Draft, decode
from model.engine import (
    Decoding,
    Generation,
    Label,
    LatentGradient,
    ModelUnavailableError,
    PlacementError,
    PromptTooLongError,
    SteeredPrompt,
    UnsupportedError,
)
from model.fingerprint import checkpoint_dtype, space_of
from model.grouped_attention import share_heads
from model.packed_linear import pack
from model.placement import Placement, PlacementKind, render_chat
from model.prefill import Row, batches, last_states, prefill
from model.prefixes import LIMIT_BYTES, Prefixes, kv_values
from model.target import Reading, offsets_of, readings, values_of

_DECODING_BYTES = 2**30
"""Most KV cache of one batch that is decoded. Rows that finish leave it, so it starts with many: few rows
use a processor badly."""
_FORWARD_COLUMNS = 8192
"""Most padded columns of one batch whose answers are scored: 0.4 GB of KV cache for the default model."""
_GRADIENT_COLUMNS = 512
"""Most padded columns after the prefix of one batch with gradient: about 0.5 GB for the default model."""
_LONGEST = 8192


class FrozenModel:
    """A causal language model whose weights never change. For one thread at a time.

    Args:
        model_path: Hugging Face folder or hub id.
        length: L, soft vectors per latent.
        placement: where latents go, `model/placement.py`.
        dtype: of the computation; the checkpoint's own enters the space.
        device: where it runs.
        max_model_len: longest prompt, latents and answer; None: the model's, at most 8192.
        network: the model itself, ready and frozen, when it is not to be loaded: `dtype` and `device`
            are then its own.
        prefix_bytes: most memory of the KV caches of prompts that are kept between calls.

    Raises:
        ModelUnavailableError: the files cannot be read.
    """

    def __init__(
        self,
        model_path: str,
        *,
        length: int,
        placement: PlacementKind,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        max_model_len: int | None = None,
        network: Any | None = None,
        prefix_bytes: int = LIMIT_BYTES,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
            if network is None:
                network = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
                network = network.eval().requires_grad_(False).to(device)
                pack(network)
                share_heads(network)
        except (OSError, ValueError) as error:
            raise ModelUnavailableError(f"cannot load {model_path}: {error}") from error
        self.network: Any = network
        self._prefixes = Prefixes(prefix_bytes)
        self._embed: Any = self.network.get_input_embeddings()
        self._placement = Placement.of(self.tokenizer, placement)
        text_config = self.network.config.get_text_config()
        self.space = space_of(
            model_path,
            self.tokenizer,
            int(text_config.hidden_size),
            checkpoint_dtype(model_path),
            length,
            placement,
        )
        limit = int(getattr(text_config, "max_position_embeddings", _LONGEST))
        self.max_model_len = min(limit, max_model_len or _LONGEST)
        self.ends = _end_tokens(self.network, self._placement.end)
        """Tokens that end an answer, the one that is written first."""
        if not self.ends:
            raise ModelUnavailableError(f"{model_path} names no end-of-sequence token")

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
        return (*self.tokenizer.encode(text, add_special_tokens=False), self.ends[0])

    def position(self, token_ids: Sequence[int]) -> int:
        """Return the index before which latents go, or raise PlacementError."""
        return self._placement.position(token_ids)

    def neutral_latent(self) -> torch.Tensor:
        """Return the embeddings of the placement's neutral tokens, (L, d) float32."""
        return self.embeddings(self._placement.neutral_tokens(self.space.length))

    def embeddings(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the input embeddings of tokens, (T, d) float32."""
        return self._embeddings(token_ids).float().cpu()

    def raw_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return uncentred final hidden states at the prompts' last tokens, (B, d) float32."""
        states = torch.zeros(len(prompts), self.space.hidden_size)
        for prompt in prompts:
            self._room(SteeredPrompt(tuple(prompt)))
        sizes = [len(prompt) for prompt in prompts]
        for group in batches(sizes, _FORWARD_COLUMNS, sizes.__getitem__):
            states[group] = last_states(self.network, [prompts[index] for index in group])
        return states

    def generate(
        self,
        prompts: Sequence[SteeredPrompt],
        decodings: Sequence[Decoding],
        given_up: Sequence[Callable[[], bool]] | None = None,
    ) -> list[Generation]:
        """Decode one answer per prompt; one that is given up meanwhile is cut off where it is."""
        if given_up is None:
            given_up = [lambda: False] * len(prompts)
        asked = zip(prompts, decodings, given_up, strict=True)
        drafts = [self._draft(prompt, how, gone) for prompt, how, gone in asked]
        rows = [self._row(prompt, self._checked(prompt)) for prompt in prompts]
        sizes = [
            len(prompt.token_ids) + len(row.rest) + how.max_tokens
            for prompt, row, how in zip(prompts, rows, decodings, strict=True)
        ]
        column = kv_values(self.network.config.get_text_config()) * self.network.dtype.itemsize
        columns = _DECODING_BYTES // max(column, 1)
        for group in batches(sizes, columns, lambda index: _neighbourhood(rows[index])):
            for index in group:
                drafts[index].cut_if_given_up()
            wanted = [index for index in group if drafts[index].finish_reason is None]
            if wanted:
                chosen, written = [rows[index] for index in wanted], [drafts[index] for index in wanted]
                decode(self.network, chosen, written, self._prefixes)
        return [draft.generation() for draft in drafts]

    def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        """Return what each label is worth, (B,) float32, as `Engine.log_likelihood` says."""
        latents = [self._checked(prompt) for prompt in prompts]
        self._check_answers(prompts, labels)
        # Labels of one prompt under one latent are read off the same rows.
        same = [
            (prompt.token_ids, self._place(prompt), None if latent is None else latent.numpy().tobytes())
            for prompt, latent in zip(prompts, latents, strict=True)
        ]
        needed = readings(labels, same, self._tries(labels))
        rows = [self._row(prompts[one.label], latents[one.label], one.inputs) for one in needed]
        values = torch.zeros(len(prompts))
        sizes = [len(row.prefix) + len(row.rest) for row in rows]
        for group in batches(sizes, _FORWARD_COLUMNS, lambda index: _neighbourhood(rows[index])):
            with torch.no_grad():
                parts = self._parts([rows[index] for index in group], [needed[index] for index in group])
            for label, value in parts:
                values[label] += value.cpu()
        return values

    def latent_gradient(
        self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label], weights: Sequence[float]
    ) -> LatentGradient:
        """Return what each label is worth, (B,), and the weighted gradients by latents, (B, L, d)."""
        if any(prompt.latent is None for prompt in prompts):
            raise ValueError("a gradient needs a latent in every prompt")
        if not len(prompts) == len(labels) == len(weights):
            raise ValueError(f"{len(prompts)} prompts, {len(labels)} labels, {len(weights)} weights")
        self._check_answers(prompts, labels)
        values = torch.zeros(len(prompts))
        gradients = torch.zeros(len(prompts), *self.space.shape)
        latents = [self.space.check(p.latent) for p in prompts if p.latent is not None]
        needed = readings(labels, range(len(labels)), self._tries(labels))  # each has its own gradient
        # The prefix runs without gradient and costs little: what counts is the rest.
        places = [self._place(prompt) for prompt in prompts]
        sizes = [
            len(prompts[one.label].token_ids) - places[one.label] + self.space.length + len(one.inputs)
            for one in needed
        ]

        def neighbourhood(index: int) -> tuple[int, tuple[int, ...], int]:
            at = needed[index].label
            return places[at], prompts[at].token_ids[: places[at]], sizes[index]

        for group in batches(sizes, _GRADIENT_COLUMNS, neighbourhood):
            read = [needed[index] for index in group]
            leaf = torch.stack([latents[one.label] for one in read]).requires_grad_()  # (b, L, d)
            with torch.enable_grad():
                rows = [self._row(prompts[one.label], leaf[at], one.inputs) for at, one in enumerate(read)]
                parts = self._parts(rows, read)
                weighted = torch.stack([weights[label] * value for label, value in parts]).sum()
                (gradient,) = torch.autograd.grad(weighted, leaf)
            for label, value in parts:
                values[label] += value.detach().cpu()
            for one, rise in zip(read, gradient, strict=True):
                gradients[one.label] += rise
        return LatentGradient(values, gradients)

    def _parts(self, rows: Sequence[Row], needed: Sequence[Reading]) -> list[tuple[int, torch.Tensor]]:
        """Return (index of a label, what an answer adds to it, a scalar) for all that is read off rows."""
        offsets = offsets_of(needed)
        logits = prefill(self.network, rows, offsets, self._prefixes).logits  # (B, len(offsets), V)
        return values_of(logits, needed, offsets)

    def _tries(self, labels: Sequence[Label]) -> dict[tuple[str, ...], ChoiceTrie]:
        return {choices: self._trie(choices) for choices in {label.choices for label in labels} if choices}

    def _row(self, prompt: SteeredPrompt, latent: torch.Tensor | None, inputs: Sequence[int] = ()) -> Row:
        at = self._place(prompt)
        rest = self._embeddings((*prompt.token_ids[at:], *inputs))
        if latent is not None:
            rest = torch.cat([latent.to(rest.device, rest.dtype), rest])
        return Row(prompt.token_ids[:at], rest)

    def _place(self, prompt: SteeredPrompt) -> int:
        """Where the prefix ends: before the latents, or before a plain prompt's last token."""
        if prompt.latent is None:
            return len(prompt.token_ids) - 1
        return self.position(prompt.token_ids) if prompt.position is None else prompt.position

    def _checked(self, prompt: SteeredPrompt) -> torch.Tensor | None:
        return None if prompt.latent is None else self.space.check(prompt.latent)

    def _check_answers(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> None:
        for prompt, label in zip(prompts, labels, strict=True):
            longest = max(map(len, label.answers))
            if self._room(prompt) < longest:
                raise PromptTooLongError(f"the prompt leaves no room for an answer of {longest} tokens")

    def _room(self, prompt: SteeredPrompt) -> int:
        """Tokens that are left for an answer, at least 1."""
        size = len(prompt.token_ids)
        if not size:
            raise ValueError("a prompt has no tokens")
        if prompt.position is not None and not 0 <= prompt.position <= size:
            raise PlacementError(f"position {prompt.position} lies outside the prompt of {size} tokens")
        latents = 0 if prompt.latent is None else self.space.length
        if size + latents >= self.max_model_len:
            raise PromptTooLongError(
                f"prompt of {size} tokens with {latents} latents leaves no room in {self.max_model_len}"
            )
        return self.max_model_len - size - latents

    def _draft(self, prompt: SteeredPrompt, decoding: Decoding, given_up: Callable[[], bool]) -> Draft:
        if decoding.native is not None:
            raise UnsupportedError("the transformers engine does not decode as another engine's requests ask")
        trie = None
        if decoding.choices is not None:
            trie = self._trie(decoding.choices)
        room = min(decoding.max_tokens, self._room(prompt))
        return Draft(decoding, room, frozenset(self.ends), trie, self.decode, given_up)

    def _trie(self, choices: tuple[str, ...]) -> ChoiceTrie:
        encoded = [self.tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
        return ChoiceTrie(encoded, self.ends[0])

    def _embeddings(self, token_ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor(list(token_ids), dtype=torch.long, device=self.network.device)
        embedded: torch.Tensor = self._embed(tokens)
        return embedded


def _neighbourhood(row: Row) -> tuple[int, tuple[int, ...], int]:
    return len(row.prefix), row.prefix, len(row.rest)


def _end_tokens(network: Any, first: int | None) -> tuple[int, ...]:
    """Tokens that end an answer: the template's first, then those of the generation config."""
    named = network.generation_config.eos_token_id
    several = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys(int(end) for end in (first, *several) if end is not None))
