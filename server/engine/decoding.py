"""Decoding options and answers, between our words and vLLM's.

Owns both translations, how an answer that was decoded already is given to vLLM's serving, and how one that
vLLM's serving decodes is read on the way. Knows nothing of prompts.
"""

import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span

from model.engine import Decoding, EngineError, Generation
from model.engine_time import EngineTime
from server.tracing import used


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
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    tokens = max(1, min(decoding.max_tokens, room))
    logprobs = 0 if decoding.logprobs else None
    grammar = None
    if decoding.choices is not None:
        grammar = StructuredOutputsParams(choice=list(decoding.choices))
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
            # As many as the client is to see, if this is the answer that it gets.
            logprobs=logprobs if native.logprobs is None else native.logprobs,
            logprob_token_ids=None,
            structured_outputs=grammar if len(decoding.choices or ()) == 1 else native.structured_outputs,
        )
    return SamplingParams(
        max_tokens=tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        stop=list(decoding.stop),
        structured_outputs=grammar,
        logprobs=logprobs,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_of(outputs: Sequence[Any]) -> Generation:
    """Return the answer that all `RequestOutput`s of a request make, each the part that is new.

    One that went round in circles counts as cut off.

    Raises:
        EngineError: vLLM did not finish it.
    """
    parts = [output.outputs[0] for output in outputs if output.outputs]
    reason = parts[-1].finish_reason if parts else None
    if reason not in ("stop", "length", "repetition"):
        raise EngineError(f"vLLM ended an answer with {reason!r}")
    return Generation(
        text="".join(part.text for part in parts),
        token_ids=tuple(token for part in parts for token in part.token_ids),
        finish_reason="stop" if reason == "stop" else "length",
        logprobs=tuple(
            entries[token].logprob
            for part in parts
            for token, entries in zip(part.token_ids, part.logprobs or (), strict=False)
        ),
        native=tuple(outputs),
    )


async def handed_over(answer: Generation, request_id: str) -> AsyncIterator[Any]:
    """Yield the outputs of an answer as those of vLLM's request of this id."""
    for output in answer.native:
        renamed = copy.copy(output)
        renamed.request_id = request_id
        yield renamed


async def watched(
    outputs: AsyncGenerator[Any, None], clock: EngineTime, *spans: Span
) -> AsyncGenerator[Any, None]:
    """Yield the outputs of one answer, and count the time from the first wait for them to their end.

    Spans are told of it; the first is its own, and ended with it.
    """
    told = [span for span in spans if span.is_recording()]
    read = written = 0
    reasons: list[str] = []
    with clock.running():
        try:
            async for output in outputs:
                if told:
                    read = len(output.prompt_token_ids or ())
                    written += sum(len(part.token_ids) for part in output.outputs)
                    reasons += [str(part.finish_reason) for part in output.outputs if part.finish_reason]
                yield output
        finally:
            for span in told:
                used(span, read, written)
                span.set_attribute("gen_ai.response.finish_reasons", reasons)
            for span in spans[:1]:
                span.end()
            await outputs.aclose()


async def overheard(
    outputs: AsyncGenerator[Any, None], tell: Callable[[Generation], None]
) -> AsyncGenerator[Any, None]:
    """Yield the outputs of one answer, each the part that is new, and tell what it was once it has ended."""
    texts: list[str] = []
    tokens: list[int] = []
    try:
        async for output in outputs:
            for part in output.outputs:
                texts.append(part.text)
                tokens.extend(part.token_ids)
                if part.finish_reason in ("stop", "length", "repetition"):
                    stopped = part.finish_reason == "stop"
                    tell(Generation("".join(texts), tuple(tokens), "stop" if stopped else "length"))
            yield output
    finally:
        await outputs.aclose()
