"""Decoding options and answers, between our words and vLLM's.

Owns both translations. Knows nothing of prompts.
"""

from typing import Any

from model.engine import Decoding, EngineError, Generation


def sampling_params(decoding: Decoding, room: int) -> Any:
    """Return vLLM's `SamplingParams` of `decoding`, with at most `room` tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    grammar = None
    if decoding.choices is not None:
        grammar = StructuredOutputsParams(choice=list(decoding.choices))
    elif decoding.json_schema is not None:
        grammar = StructuredOutputsParams(json=decoding.json_schema)
    elif decoding.regex is not None:
        grammar = StructuredOutputsParams(regex=decoding.regex)
    return SamplingParams(
        max_tokens=max(1, min(decoding.max_tokens, room)),
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        stop=list(decoding.stop),
        structured_outputs=grammar,
        logprobs=0 if decoding.logprobs else None,
    )


def generation_of(output: Any) -> Generation:
    """Return a finished `RequestOutput`'s first answer.

    Raises:
        EngineError: vLLM did not finish it.
    """
    answer = output.outputs[0]
    if answer.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended an answer with {answer.finish_reason!r}")
    return Generation(
        text=answer.text,
        token_ids=tuple(answer.token_ids),
        finish_reason=answer.finish_reason,
        logprobs=tuple(
            entries[token].logprob
            for token, entries in zip(answer.token_ids, answer.logprobs or (), strict=False)
        ),
    )
