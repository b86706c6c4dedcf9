"""What keeps clients of vLLM's app away from our latents' door, and from each other.

The engine takes prompt embeddings because latents travel as such; clients must not send any: vLLM
would `torch.load` their data (CVE-2025-62164). And some of what vLLM 0.32 takes ends the engine or the
gateway for everybody. Owns the refusals, and what clients see of latents in token counts. Knows nothing of
steering.
"""

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

MOST_OF_A_GRAMMAR = 1 << 16
"""Characters of a JSON schema, pattern, grammar or list of choices."""
MOST_NESTED = MOST_REFERENCES = 1_000
"""Groups of a pattern inside each other, and references of a schema: compilers follow both by recursion, and
run over the end of the stack between 3,500 and 30,000."""
MOST_COUNTED = 100
"""Properties of an object that says how many of them there must be: compiling 128 takes two seconds."""


def harmless(params: Any) -> Any:
    """Return a client's `SamplingParams` without what would end the engine for everybody.

    The log-probabilities of a prompt are computed, as vLLM does by itself unless told otherwise, and not read
    where blocks are cached, which hold none.

    Raises:
        VLLMValidationError: a grammar is too long, or too deep to be compiled; or an answer is to be longer
            than it may be, which vLLM has checked before it lowered the one for want of room.
    """
    from vllm.exceptions import VLLMValidationError

    if params.structured_outputs is not None:
        _check_grammar(params.structured_outputs)
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise VLLMValidationError(
            f"min_tokens is {params.min_tokens}, and there is room for {params.max_tokens}",
            parameter="min_tokens",
        )
    if params.prompt_logprobs is not None:
        params.skip_reading_prefix_cache = True
    return params


def _check_grammar(grammar: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    kinds = ("json", "regex", "grammar", "structural_tag")
    text = json.dumps([*(getattr(grammar, kind) for kind in kinds), *(grammar.choice or ())])
    why = None
    if len(text) > MOST_OF_A_GRAMMAR:
        why = f"has {len(text):,} characters; {MOST_OF_A_GRAMMAR:,} are the most"
    elif text.count("$ref") > MOST_REFERENCES:
        why = f"has {text.count('$ref'):,} references; {MOST_REFERENCES:,} are the most"
    elif text.count("(") > MOST_NESTED < max(accumulate((mark == "(") - (mark == ")") for mark in text)):
        why = f"has groups inside each other more than {MOST_NESTED:,} deep"
    elif "Properties" in text and (count := _counted(grammar.json)) > MOST_COUNTED:
        why = f"counts {count:,} properties (minProperties, maxProperties); {MOST_COUNTED} are the most"
    if why is not None:
        raise VLLMValidationError(f"the grammar of the answer {why}", parameter="structured_outputs")


def _counted(schema: Any) -> int:
    """Return the most properties of any object in a schema that says how many of them there must be."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return 0  # vLLM refuses it
    most, left = 0, [schema]
    while left:
        part = left.pop()
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if isinstance(part, dict) and not part.keys().isdisjoint(("minProperties", "maxProperties")):
            named = part.get("properties")
            most = max(most, len(named) if isinstance(named, dict) else 0)
    return most


@contextmanager
def renderer_without_embeds() -> Iterator[None]:
    """Inside, engines get a renderer that knows of no prompt embeddings.

    With them vLLM adds a marker token to the tokenizer, beyond the model's vocabulary. A client that
    wrote it would be refused only while embeddings are enabled on the front end, and end the engine
    otherwise; without the marker its text is text.
    """
    from vllm.v1.engine import async_llm

    make_renderer = async_llm.renderer_from_config

    def make(config: Any) -> Any:
        config.model_config.enable_prompt_embeds = False
        try:
            return make_renderer(config)
        finally:
            config.model_config.enable_prompt_embeds = True

    async_llm.renderer_from_config = make
    try:
        yield
    finally:
        async_llm.renderer_from_config = make_renderer


def close_client_embeds(llm: Any) -> None:
    """Make prompt embeddings of clients a 400 naming `prompt_embeds`; ours still pass.

    vLLM asks the front end's model config about every request of a client, and the engine process's
    own copy about what it computes.
    """
    llm.model_config.enable_prompt_embeds = False


def hide_placeholders(llm: Any) -> None:
    """Report prompts with latents without the placeholders' tokens, so that usage counts real ones."""
    generate = llm.generate

    def generate_visible(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        outputs: AsyncGenerator[Any, None] = generate(prompt, *args, **kwargs)
        mask = prompt.get("is_token_ids") if isinstance(prompt, dict) else None
        return outputs if mask is None or all(mask) else _visible(outputs, mask)

    llm.generate = generate_visible


async def _visible(outputs: AsyncGenerator[Any, None], mask: Sequence[bool]) -> AsyncGenerator[Any, None]:
    try:
        async for output in outputs:
            if output.prompt_token_ids is not None:
                output.prompt_token_ids = real_tokens(output.prompt_token_ids, mask)
            if output.num_cached_tokens:
                output.num_cached_tokens = sum(mask[: output.num_cached_tokens])
            yield output
    finally:
        await outputs.aclose()


def real_tokens(token_ids: Sequence[int], mask: Sequence[bool]) -> list[int]:
    """Return the tokens whose mask is True."""
    return [token for token, real in zip(token_ids, mask, strict=True) if real]
