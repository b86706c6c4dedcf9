"""Decoding options and answers, between our words and vLLM's.

Owns both translations. Knows nothing of prompts.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.engine import Decoding, EngineError, Generation


@dataclass(frozen=True)
class Native:
    """A request of vLLM's own: what its serving gives `AsyncLLM.generate` of it."""

    params: Any
    """`SamplingParams`."""
    reasoning: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that say where its grammar begins, behind what the model thinks aloud."""


def reasoning_of(decoding: Decoding) -> Mapping[str, Any]:
    """Return the keyword arguments of `AsyncLLM.generate` beside the parameters."""
    return {} if decoding.native is None else decoding.native.reasoning


def sampling_params(decoding: Decoding, room: int) -> Any:
    """Return vLLM's `SamplingParams` of `decoding`, with at most `room` tokens.

    Where `decoding` is of a request of vLLM's own, they are that request's but for how its answer is drawn:
    what is sampled obeys all that the answer obeys.
    """
    import msgspec
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    tokens = max(1, min(decoding.max_tokens, room))
    logprobs = 0 if decoding.logprobs else None
    if decoding.native is not None:
        # A copy, for vLLM writes into what it is given, and several answers share the request's.
        native = copy.deepcopy(decoding.native.params)
        return msgspec.structs.replace(
            native,
            n=1,
            max_tokens=tokens,
            min_tokens=min(native.min_tokens, tokens),
            temperature=decoding.temperature,
            seed=decoding.seed,
            logprobs=logprobs,
            logprob_token_ids=None,
        )
    grammar = None
    if decoding.choices is not None:
        grammar = StructuredOutputsParams(choice=list(decoding.choices))
    return SamplingParams(
        max_tokens=tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        stop=list(decoding.stop),
        structured_outputs=grammar,
        logprobs=logprobs,
    )


def generation_of(output: Any) -> Generation:
    """Return a finished `RequestOutput`'s first answer; one that went round in circles counts as cut off.

    Raises:
        EngineError: vLLM did not finish it.
    """
    answer = output.outputs[0]
    if answer.finish_reason not in ("stop", "length", "repetition"):
        raise EngineError(f"vLLM ended an answer with {answer.finish_reason!r}")
    return Generation(
        text=answer.text,
        token_ids=tuple(answer.token_ids),
        finish_reason="stop" if answer.finish_reason == "stop" else "length",
        logprobs=tuple(
            entries[token].logprob
            for token, entries in zip(answer.token_ids, answer.logprobs or (), strict=False)
        ),
    )
