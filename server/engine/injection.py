"""The one place where latents and answers enter vLLM's serving code.

Owns the hooks on vLLM's renderer of chats and on its engine. The first reads the request's `SteeringCall`,
hands the rendered prompt to steering, and gives vLLM a prompt with the latent that came back; where an answer
came back, the second gives vLLM's serving that in place of another decode, and any other it reads on its way.
The id of an answer ends in its trace's, so that feedback finds it. Knows nothing of how latents and answers
are found or of HTTP. Requests without a call, such as those of `/tokenize`, pass through untouched.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from model.choice_trie import MOST_TEXT
from model.engine import Decoding, cache_salt
from model.engine_time import engine_time
from server.engine.decoding import Native, handed_over, overheard, watched
from server.engine.guard import harmless
from server.engine.vllm import BEHIND, OWN_REQUEST, VLLMEngine
from server.steering.outcome import Answer, Outcome, reason_of
from server.steering.prompt import Options, RenderedPrompt, SteeringRejectedError
from server.steering.request import SteeringCall, current_call
from server.tracing import begin, current, headers_of, used

Steer = Callable[[RenderedPrompt, Options, str], Awaitable[Outcome]]
"""Steering: (prompt, options, trace id) → outcome."""

Tell = Callable[[str, Answer], None]
"""Told (trace id, answer) of what was decoded for a client."""

MOST_SCORED = 64
"""Choices; each costs a pass for every token that it has."""
_ANSWER = "latent_answer"
"""Where a prompt carries its answer from one hook to the other."""
_TRACE = "latent_trace"
"""Where it carries the id of its trace, if the answer is still to be decoded."""
_NOTES = frozenset({"$schema", "title", "description", "default", "examples"})
_DEFINITIONS = ("$defs", "definitions")
"""Keywords of a schema that allow and forbid nothing."""
_LENGTH_FIELDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def install(state: Any, engine: VLLMEngine, steer: Steer, answered: Tell = lambda *_: None) -> None:
    """Hook steering into the renderer of vLLM's app, and answers into its engine.

    Args:
        state: `app.state` of vLLM's app, initialised.
        engine: What decodes.
        steer: Asked about each request.
        answered: Told of answers that steering did not give.
    """
    renderer = state.online_renderer
    preprocess_chat = renderer.preprocess_chat
    generate = engine.llm.generate

    def decoded(prompt: Any, params: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:
        if request_id.startswith(OWN_REQUEST):
            return generate(prompt, params, request_id, *args, **kwargs)
        params = harmless(params)
        # Clients may let others go first, and not go before them.
        kwargs["priority"] = min(max(kwargs.get("priority", 0), 0), BEHIND - 1)
        part_caches(prompt)
        carried = prompt if isinstance(prompt, dict) else {}
        answer, trace_id = carried.pop(_ANSWER, None), carried.pop(_TRACE, None)
        if answer is not None:
            used(current(), len(carried["prompt_token_ids"]), len(answer.token_ids))
            return handed_over(answer, request_id)
        decoding = begin("decode")
        if (headers := headers_of(decoding)) is not None:
            kwargs["trace_headers"] = headers
        outputs = generate(prompt, params, request_id, *args, **kwargs)
        if (clock := engine_time.get()) is not None:
            outputs = watched(outputs, clock, decoding, current())
        if trace_id is None or params.n != 1:  # of several answers nobody knows which one is meant
            return outputs
        return overheard(outputs, lambda found: answered(trace_id, Answer.of(found)))

    async def steered_chat(request: Any, messages: list[Any], *args: Any, **kwargs: Any) -> Any:
        conversation, inputs = await preprocess_chat(request, messages, *args, **kwargs)
        return conversation, await steered(request, inputs, question_of(messages), kwargs)

    async def steered(
        request: Any, inputs: list[Any], question: str, rendering: Mapping[str, Any]
    ) -> list[Any]:
        request_call = current_call.get()
        if request_call is None:
            return inputs
        call = request_call.conversation()
        reason = why_untouched(call.options, request, inputs, state.openai_serving_models.lora_requests)
        if reason is not None:
            call.outcome = Outcome("plain", reason)
            return inputs
        part_caches(inputs[0])
        salt, token = cache_salt.set(inputs[0].get("cache_salt")), current_call.set(call)
        try:
            return [await _steered_input(engine, steer, call, request, inputs[0], question, rendering)]
        finally:
            current_call.reset(token)
            cache_salt.reset(salt)

    renderer.preprocess_chat = steered_chat
    engine.llm.generate = decoded


def part_caches(prompt: Any) -> None:
    """Let a tenant's prompt share the prefix cache with none but its own, whichever route it came by.

    What a client gives as salt itself parts its prompts further; it is kept as a digest, so that no client
    can write another tenant's.

    Raises:
        TypeError: it is of a kind that has no salt.
    """
    base = cache_salt.get()
    if base is None:
        return
    if not isinstance(prompt, dict) or prompt.get("type") not in ("token", "embeds", "multimodal"):
        raise TypeError(f"prompts of type {type(prompt).__name__} cannot be parted by tenant")
    given = prompt.get("cache_salt")
    if given is None:
        prompt["cache_salt"] = base
    elif not given.startswith(base):
        prompt["cache_salt"] = f"{base}.{hashlib.sha256(given.encode()).hexdigest()[:32]}"


async def _steered_input(
    engine: VLLMEngine,
    steer: Steer,
    call: SteeringCall,
    request: Any,
    plain: Any,
    question: str,
    rendering: Mapping[str, Any],
) -> Any:
    token_ids = tuple(plain["prompt_token_ids"])
    defaults = engine.llm.model_config.get_diff_sampling_param()
    asked = asked_length(request, defaults)
    sampling = harmless(sampling_of(request, asked, engine.max_model_len - len(token_ids), defaults))
    grammar = sampling.structured_outputs
    if grammar is not None and sum(map(len, grammar.choice or ())) > MOST_TEXT:
        call.outcome = Outcome("plain", "long-choices")
        return plain
    try:
        native = Native(sampling, reasoning_arguments(request, rendering))
        prompt = rendered_prompt(engine, token_ids, plain.get("prompt"), question, native, asked)
        outcome = await steer(prompt, call.options, call.trace_id)
        call.outcome, call.traced = outcome, True
        _name(request, call.trace_id)
        if outcome.answer is not None:
            return {**plain, _ANSWER: outcome.answer}
        if outcome.latent is None:
            return {**plain, _TRACE: call.trace_id}
        mixed = engine.mixed_input(token_ids, outcome.latent, outcome.position, text=plain.get("prompt"))
        return {**mixed, _TRACE: call.trace_id}
    except SteeringRejectedError as error:
        raise _rejected(str(error), error.param) from error
    except Exception as error:
        call.outcome = Outcome("plain", reason_of(error, call.trace_id))
    return plain


def _name(request: Any, trace_id: str) -> None:
    """Have the answer's id end in its trace's, unless the client has named the request itself."""
    if "request_id" in request.model_fields_set:
        return
    prefix, _, _ = request.request_id.rpartition("_")  # `resp` of responses
    request.request_id = f"{prefix}_{trace_id}" if prefix else trace_id


def why_untouched(
    options: Options, request: Any, inputs: Sequence[Any], adapters: Container[str] = ()
) -> str | None:
    """Return why a request passes untouched whatever steering would say, or None.

    Args:
        options: What steering may do.
        request: vLLM's own object of it.
        inputs: Its rendered prompts.
        adapters: Names of LoRA adapters: what is remembered and decoded here is the base model's.
    """
    if options.effort == "none":
        return "effort-none"
    if len(inputs) != 1:
        return "several-prompts"
    if inputs[0]["type"] != "token":
        return "not-text"
    if getattr(request, "model", None) in adapters:
        return "adapter"
    if getattr(request, "use_beam_search", False):
        return "beam-search"
    if getattr(request, "prompt_logprobs", None) is not None or getattr(request, "echo", False):
        return "prompt-logprobs"  # vLLM adds them to a prompt that it is to repeat
    if getattr(request, "logprob_token_ids", None):
        return "logprob-token-ids"
    if getattr(request, "kv_transfer_params", None):
        return "kv-transfer"
    return None


def asked_length(request: Any, defaults: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a request, else the server's `defaults`, want of an answer; None: any."""
    fields = vars(request)  # attribute access would warn of fields that OpenAI has deprecated
    values = (fields.get(name) for name in _LENGTH_FIELDS)
    asked = next((value for value in values if value is not None), defaults.get("max_tokens"))
    return None if asked is None else int(asked)


def sampling_of(request: Any, asked: int | None, room: int, defaults: dict[str, Any]) -> Any:
    """Return the `SamplingParams` that vLLM will use for the request's answer, beside a plain prompt.

    Args:
        request: vLLM's own object of it.
        asked: Tokens that it asks for, None: as many as fit.
        room: Tokens that the context has left beside the prompt.
        defaults: The server's own, of vLLM.
    """
    return request.to_sampling_params(max(1, room if asked is None else min(asked, room)), defaults)


def reasoning_arguments(request: Any, rendering: Mapping[str, Any]) -> dict[str, Any]:
    """Return what vLLM's serving gives `generate` for a server with a reasoning parser; without one nothing.

    With such a parser a grammar begins where reasoning has ended, and templates can turn reasoning off.

    Args:
        request: vLLM's own object of it, once it is rendered.
        rendering: Keyword arguments that it was rendered with.
    """
    parser = rendering.get("parser")
    if parser is None or parser.reasoning_parser_cls is None:
        return {}
    params = request.build_chat_params(
        rendering["default_template"], rendering["default_template_content_format"]
    ).with_defaults(rendering["default_template_kwargs"])
    given: dict[str, Any] = {"reasoning_parser_kwargs": {"chat_template_kwargs": params.chat_template_kwargs}}
    if hasattr(request, "resolve_reasoning_ended"):  # responses have none
        # Without a parser it says what the request fixes; None: the engine asks its own of the prompt.
        given["reasoning_ended"] = request.resolve_reasoning_ended(None, [])
    return given


def rendered_prompt(
    engine: VLLMEngine,
    token_ids: tuple[int, ...],
    text: str | None,
    question: str,
    native: Native,
    asked: int | None,
) -> RenderedPrompt:
    """Return what steering gets to see of a request."""
    sampling = native.params
    text = text or engine.tokenizer.decode(list(token_ids))
    grammar = sampling.structured_outputs
    choices = choices_of(grammar)
    return RenderedPrompt(
        token_ids=token_ids,
        text=text,
        question=question,
        decoding=Decoding(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            choices=choices if grammar and grammar.choice else None,
            native=native,
        ),
        scored_choices=()
        if native.reasoning or not scorable(sampling, engine.llm.model_config.get_diff_sampling_param())
        else scored(choices),
        asked_tokens=asked,
        answers=sampling.n,
        held_to=held_to(grammar),
        format_rules=format_rules(grammar, text),
    )


def choices_of(grammar: Any) -> tuple[str, ...]:
    """Return the texts that a grammar allows where they are few and said by a list, () of other grammars.

    They are sorted: clients send them in any order, and what is remembered of them goes by them.
    A JSON schema says them with an enum of strings, or an object of which that is the only property. More
    properties, where the schema says nothing of them, are left out: no grammar of vLLM's asks for any.
    """
    if grammar is None:
        return ()
    if grammar.choice:
        return _sorted(grammar.choice)
    schema = grammar.json
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return ()  # vLLM refuses it
    if not isinstance(schema, dict):
        return ()
    if (values := _enum(schema, schema)) is not None:
        return _texts(values)
    properties = schema.get("properties")
    known = {"type", "properties", "required", "additionalProperties", *_DEFINITIONS}
    if isinstance(properties, dict) and len(properties) == 1 and set(schema) - _NOTES <= known:
        ((name, of_it),) = properties.items()
        closed = schema.get("additionalProperties", False) is False and schema.get("required") == [name]
        if closed and (values := _enum(of_it, schema)) is not None:
            return _texts([{name: value} for value in values], inner=name)
    return ()


def _enum(schema: Any, root: dict[str, Any]) -> list[Any] | None:
    """Return the values of a schema that is one enum, or names one of the root's definitions; else None."""
    if not isinstance(schema, dict):
        return None
    if set(schema) - _NOTES == {"$ref"}:
        place, _, name = str(schema["$ref"]).removeprefix("#/").partition("/")
        definitions = root.get(place) if place in _DEFINITIONS else None
        named = definitions.get(name) if isinstance(definitions, dict) else None
        return None if not isinstance(named, dict) or "$ref" in named else _enum(named, root)
    values = schema.get("enum")
    known = {"type", "enum", *_DEFINITIONS} if schema is root else {"type", "enum"}
    return values if isinstance(values, list) and set(schema) - _NOTES <= known else None


def scored(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return choices that can be scored: not so many and long that scoring costs more than sampling."""
    few = len(choices) <= MOST_SCORED and sum(map(len, choices)) <= MOST_TEXT
    return choices if few else ()


def _texts(values: Sequence[Any], inner: str | None = None) -> tuple[str, ...]:
    """Return values as JSON; () where one is no string, or holds none."""
    plain = [value if inner is None else value[inner] for value in values]
    if not plain or not all(isinstance(value, str) for value in plain):
        return ()
    return _sorted(json.dumps(value, ensure_ascii=False) for value in values)


def _sorted(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(texts)))


def scorable(sampling: Any, defaults: Mapping[str, Any]) -> bool:
    """Return whether nothing but the model's probabilities decides between choices, and nobody asks for them.

    Args:
        sampling: `SamplingParams` of the request.
        defaults: The server's own, of vLLM: what all requests share is no wish of this one.
    """
    shifted = (
        sampling.logit_bias
        or sampling.bad_words
        or sampling.allowed_token_ids
        or sampling.presence_penalty != defaults.get("presence_penalty", 0.0)
        or sampling.frequency_penalty != defaults.get("frequency_penalty", 0.0)
        or sampling.repetition_penalty != defaults.get("repetition_penalty", 1.0)
    )
    # The answer is said under a grammar of one choice, whose log-probabilities would be other ones.
    return not shifted and sampling.logprobs is None


def held_to(grammar: Any) -> str | None:
    """Return the grammar of a request as text, the same for the same one; None: there is none."""
    if grammar is None:
        return None
    if choices := choices_of(grammar):
        return json.dumps({"choice": choices})
    kinds = ("json", "regex", "grammar", "json_object", "structural_tag")
    named = {kind: getattr(grammar, kind) for kind in kinds if getattr(grammar, kind) is not None}
    return json.dumps(named, sort_keys=True)


def format_rules(grammar: Any, text: str) -> Mapping[str, Any]:
    r"""Return the checks that a request implies about its answer.

    Keys: `json_schema` (a JSON schema as a dict), `json_object` (True), `regex` (a pattern that the
    whole answer matches), `boxed` (True: the prompt mentions `\boxed`, and no grammar holds it). Choices
    and calls of tools are no check: an answer that is held to them and was not cut off always passes, which
    would only raise every reward.
    """
    rules: dict[str, Any] = {}
    if grammar is not None:
        if grammar.json is not None:
            rules["json_schema"] = json.loads(grammar.json) if isinstance(grammar.json, str) else grammar.json
        if grammar.json_object:
            rules["json_object"] = True
        if grammar.regex is not None:
            rules["regex"] = grammar.regex
    elif "\\boxed" in text:
        rules["boxed"] = True
    return rules


def question_of(messages: Sequence[Any]) -> str:
    """Return the text of the last user message, "" without one."""
    for message in reversed(messages):
        if _field(message, "role") == "user":
            return _text(_field(message, "content"))
    return ""


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = (part if isinstance(part, str) else _field(part, "text") for part in content)
    return "\n".join(part for part in parts if isinstance(part, str))


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _rejected(message: str, param: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    error: Exception = VLLMValidationError(message, parameter=param)
    return error
